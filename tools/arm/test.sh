#!/bin/sh
# Cross-builds the native forward for ARM and runs its tests under qemu-user, on Debian with amd64 (as root, once):
#   dpkg --add-architecture arm64 && apt-get update && apt-get install gcc-aarch64-linux-gnu qemu-user unzip
# tools/arm/test.sh FOLDER [arguments of pytest]    FOLDER keeps what was downloaded (1 GB)
set -e
repository=$(cd "$(dirname "$0")/../.." && pwd)
folder=$1
shift
# tests that start a second Python are left out: the system cannot run one
[ $# -gt 0 ] || set -- tests/backends/test_native.py -k "not busy and not no_torch"
python=$repository/.venv/bin/python
mkdir -p "$folder/debs" "$folder/wheels" "$folder/root" "$folder/site"
cd "$folder"

if [ ! -e root/usr/bin/python3.11 ]; then # Python for ARM with its libraries
    (cd debs && apt-get download $(for name in python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib \
        libpython3.11 libpython3.11-dev libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libffi8 libssl3 libsqlite3-0 \
        libbz2-1.0 liblzma5 libuuid1 libcrypt1 libtinfo6 libncursesw6 libreadline8; do echo "$name:arm64"; done))
    for file in debs/*.deb; do dpkg -x "$file" root; done
fi
if [ ! -e site/torch ]; then
    get="$python -m pip download -q --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64
        --platform manylinux2014_aarch64 --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none -d wheels"
    $get numpy safetensors tokenizers gguf jinja2 rich typer pytest pytest-timeout hypothesis pyyaml prometheus-client starlette
    $get --no-deps torch==2.8.0 sympy mpmath networkx fsspec filelock # the last build for ARM that is of the CPU alone
    for file in wheels/*.whl; do unzip -q -o "$file" -d site; done
fi

rm -rf src tests tools benchmarks
cp -r "$repository/src" "$repository/tests" "$repository/tools" "$repository/benchmarks" "$repository/pyproject.toml" .
native=src/unmask/backends/native
rm -f $native/*.so
for build in "neon -march=armv8.2-a+dotprod" plain; do
    name=${build%% *}
    aarch64-linux-gnu-gcc -O3 -std=gnu11 -pthread -Wno-psabi -Wall -shared -fPIC -Iroot/usr/include/python3.11 -Iroot/usr/include \
        ${build#"$name"} $native/forward.c -o "$native/_forward_$name.cpython-311-aarch64-linux-gnu.so" -lm
done
PYTHONPATH=$PWD/site:$PWD/src QEMU_CPU=max exec qemu-aarch64 -L root root/usr/bin/python3.11 -m pytest -q -p no:cacheprovider \
    --timeout=3600 -rs "$@"
