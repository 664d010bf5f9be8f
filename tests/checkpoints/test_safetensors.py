"""Reading safetensors: values, types, headers that lie, indexes, and the memory it takes."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from unmask.checkpoints import foreign
from unmask.checkpoints import safetensors as tensor_files
from unmask.checkpoints.safetensors import DTYPES, INDEX, TensorFiles, read_header, read_tensors
from unmask.checkpoints.weights import compare
from unmask.errors import UnmaskError

TORCH = {kind: getattr(torch, name) for kind, name in DTYPES.items()}


def one_line(error: UnmaskError) -> str:
    message = str(error)
    assert len(message.splitlines()) == 1, message
    assert message.encode()
    return message


def refused(path: Path) -> str:
    with pytest.raises(UnmaskError) as caught:
        read_tensors(path)
    return one_line(caught.value)


# --- values -------------------------------------------------------------------------------------------------


def test_what_the_library_writes_is_read_to_the_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        kind: torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
        for kind, dtype in TORCH.items()
        if kind not in ("F8_E4M3", "F8_E5M2")
    }
    tensors |= {"eight": torch.randn(7, generator=generator).to(torch.float8_e4m3fn)}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "deep": torch.randn(1, 2, 1, 3)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    ours = read_tensors(tmp_path / "x.safetensors")
    assert ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        assert ours[name].untyped_storage().nbytes() == tensor.nbytes  # its own memory, not a view of the file
        if name != "eight":
            assert torch.equal(ours[name], tensor), name
    assert torch.equal(ours["eight"].float(), tensors["eight"].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_converted_piece_by_piece(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "CHUNK", 64)  # bytes
    tensors = {n: torch.randn(n) for n in range(1, 70, 4)}
    named = {f"{own}.{n}": t.to(TORCH[own]) for n, t in tensors.items() for own in ("F32", "BF16", "F16", "F64")}
    save_file({**named, "whole": torch.arange(9)}, tmp_path / "model.safetensors")
    for name, tensor in TensorFiles(tmp_path).tensors(dtype):
        expected = torch.arange(9) if name == "whole" else named[name].to(dtype)  # whole numbers are left alone
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("chunk", [8, 64, 2**20])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_tensors_are_transposed_as_they_are_read(
    chunk: int, dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "CHUNK", chunk)
    tensors = {f"{r}x{c}.w": torch.randn(r, c) for r, c in ((1, 1), (3, 40), (40, 3), (16, 16), (0, 4))}
    save_file(tensors, tmp_path / "model.safetensors")
    for name, tensor in TensorFiles(tmp_path).tensors(dtype, (".w",)):
        assert tensor.is_contiguous()
        assert torch.equal(tensor, tensors[name].T.to(dtype or torch.float32))


def test_a_file_cut_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1000)}, tmp_path / "model.safetensors")
    files = TensorFiles(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(UnmaskError, match="ends inside 'x'"):
        dict(files.tensors(None))


def test_reading_takes_no_more_memory_than_the_tensors(tmp_path: Path) -> None:
    """bfloat16 to float32: the peak grows by the float32 values and a buffer, not by the file as well."""
    count = 40_000_000
    save_file({"x": torch.zeros(count, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = dict(TensorFiles(tmp_path).tensors(torch.float32))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert kept["x"].nbytes == 4 * count
    assert grown < 4 * count + 2 * tensor_files.CHUNK


# --- headers ------------------------------------------------------------------------------------------------


def file_of(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[Any], *offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


HUGE = 2**62
LYING: dict[str, tuple[Any, int]] = {
    "a shape that overflows": ({"x": entry([2**32, 2**32], 0, 0)}, 0),
    "a product that overflows to the right size": ({"x": entry([2**62, 4], 0, 16)}, 16),
    "many dimensions": ({"x": entry([1] * 1000, 0, 4)}, 4),
    "offsets beyond the file": ({"x": entry([2], 0, 8)}, 4),
    "huge offsets": ({"x": entry([HUGE], 0, 4 * HUGE)}, 8),
    "backward offsets": ({"x": entry([2], 8, 0)}, 8),
    "a negative size": ({"x": entry([-2], 0, 8)}, 8),
    "a fraction": ({"x": entry([2.0], 0, 8)}, 8),
    "a truth value": ({"x": entry([True], 0, 4)}, 4),
    "three offsets": ({"x": entry([2], 0, 4, 8)}, 8),
    "no offsets": ({"x": {"dtype": "F32", "shape": [2]}}, 8),
    "an unknown type": ({"x": entry([2], 0, 8, dtype="F4")}, 8),
    "a type that is a list": ({"x": entry([2], 0, 8, dtype=["F32"])}, 8),
    "an overlap": ({"x": entry([2], 0, 8), "y": entry([2], 4, 12)}, 12),
    "a gap": ({"x": entry([1], 0, 4), "y": entry([1], 8, 12)}, 12),
    "more data than tensors": ({"x": entry([1], 0, 4)}, 12),
    "an entry that is a list": ({"x": []}, 0),
    "a list": ([], 0),
    "a number": (7, 0),
    "a name twice": (b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":1}', 4),
    "not JSON": (b"{", 0),
    "deep JSON": (b"[" * 100_000, 0),
    "bytes that are not text": (b"\xff\xfe{}", 0),
}


@pytest.mark.parametrize("what", LYING)
def test_lying_headers_are_refused(what: str, tmp_path: Path) -> None:
    header, size = LYING[what]
    assert "x.safetensors" in refused(file_of(tmp_path / "x.safetensors", header, bytes(size)))


@pytest.mark.parametrize("length", [0, 3, 2**31, 2**63, 2**64 - 1])
def test_absurd_header_lengths_are_refused_without_taking_memory(length: int, tmp_path: Path) -> None:
    refused(file_of(tmp_path / "x.safetensors", {}, bytes(8), length))


def test_the_message_of_a_cut_file_says_so(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(100)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-100])
    assert "cut or not fully downloaded" in refused(tmp_path / "x.safetensors")


numbers = st.integers(-1, 40) | st.sampled_from([2**31, 2**61, 2**63, 2**64, 10**30]) | st.booleans() | st.floats()
fuzzed = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPES, "F4", "X", ""]) | st.none(),
        "shape": st.lists(numbers, max_size=4) | st.none() | st.text(max_size=3),
        "data_offsets": st.lists(numbers, max_size=3) | st.integers(),
    },
)


@given(st.dictionaries(st.text(max_size=4), fuzzed, max_size=3), st.integers(0, 40))
def test_any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], size: int
) -> None:
    path = file_of(tmp_path_factory.mktemp("fuzz") / "x.safetensors", header, bytes(size))
    try:
        tensors = read_tensors(path)
    except UnmaskError as error:
        one_line(error)
    else:
        assert sum(t.nbytes for t in tensors.values()) == size


@given(st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), max_size=4))
def test_every_sound_header_is_read_as_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, described: list[tuple[str, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("sound") / "x.safetensors"
    tensors = {f"t{i}": torch.zeros(shape, dtype=TORCH[kind]) for i, (kind, shape) in enumerate(described)}
    save_file(tensors, path)
    assert {n: s.shape for n, s in read_header(path).items()} == {n: tuple(t.shape) for n, t in load_file(path).items()}


# --- shards and indexes -------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    for shard, names in {"a.safetensors": "xy", "b.safetensors": "z"}.items():
        save_file({name: torch.full((2,), float(ord(name))) for name in names}, tmp_path / shard)
    write_index(tmp_path, {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"})
    return tmp_path


def write_index(folder: Path, weight_map: Any, **more: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map, **more}))


def index_refused(folder: Path) -> str:
    with pytest.raises(UnmaskError) as caught:
        TensorFiles(folder)
    return one_line(caught.value)


def test_shards_are_one_set_of_tensors(sharded: Path) -> None:
    assert {name: t[0].item() for name, t in TensorFiles(sharded).tensors(None)} == {"x": 120, "y": 121, "z": 122}
    assert TensorFiles(sharded).bytes_by_dtype() == {"F32": 24}


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "b.safetensors").unlink()
    assert "b.safetensors is missing" in index_refused(sharded)


def test_an_index_that_does_not_fit_its_shards_is_refused(sharded: Path) -> None:
    write_index(sharded, {"x": "a.safetensors", "w": "b.safetensors"})
    assert "'w'" in index_refused(sharded)
    write_index(sharded, {"x": "b.safetensors", "z": "b.safetensors", "y": "a.safetensors"})
    assert "'x'" in index_refused(sharded)
    save_file({"z": torch.zeros(1), "x": torch.zeros(1)}, sharded / "b.safetensors")
    write_index(sharded, {"x": "a.safetensors", "z": "b.safetensors"})
    assert "both hold tensor 'x'" in index_refused(sharded)


@pytest.mark.parametrize(
    "name", [INDEX, "config.json", "../a.safetensors", "/a.safetensors", ".", "", "loop.safetensors"]
)
def test_an_index_that_leads_nowhere_is_refused(name: str, sharded: Path) -> None:
    (sharded / "loop.safetensors").symlink_to("loop.safetensors")  # to itself
    write_index(sharded, {"x": name})
    index_refused(sharded)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["a.safetensors", INDEX]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(json_values | st.fixed_dictionaries({"weight_map": json_values}))
def test_any_index_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    folder = tmp_path_factory.mktemp("index")
    save_file({"x": torch.zeros(1)}, folder / "a.safetensors")
    (folder / INDEX).write_text(json.dumps(content))
    try:
        TensorFiles(folder)
    except UnmaskError as error:
        one_line(error)


def test_an_absurdly_large_index_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no room
    assert "no such file has" in index_refused(tmp_path)


def test_pickles_and_lone_shards_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert INDEX in index_refused(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    message = index_refused(tmp_path)
    assert "pickle" in message
    assert "save_file" in message
    assert "weights_only=True" in message


def test_the_way_to_convert_a_pickle_is_right(tmp_path: Path) -> None:
    torch.save({"x": torch.arange(6.0).view(2, 3).T}, tmp_path / "FILE")
    code = foreign.CONVERT.split('"')[1].replace("FILE", str(tmp_path / "FILE"))
    exec(code.replace("model.safetensors", str(tmp_path / "model.safetensors")))
    assert torch.equal(read_tensors(tmp_path / "model.safetensors")["x"], torch.arange(6.0).view(2, 3).T)


# --- the report of what does not fit ------------------------------------------------------------------------


def test_the_report_counts_and_names() -> None:
    expected = {f"t{i}": (2, 3) for i in range(6)} | {"same": (1,)}
    found = {"t0": (3, 2), "t1": (2, 3), "same": (1,), "extra": (4,), "ok": (1,)}
    fit = compare(found, expected, allowed=["ok"])
    assert (fit.missing, fit.extra) == (("t2", "t3", "t4", "t5"), ("extra",))
    line = fit.problem("folder") or ""
    assert "4 tensors missing ('t2', 't3', 't4' and 1 more)" in line
    assert "1 tensor unknown ('extra')" in line
    assert "1 tensor misshapen ('t0' is [3, 2], config.json asks for [2, 3])" in line
    with pytest.raises(UnmaskError, match="missing"):
        fit.check("folder")
    assert compare(expected, expected).holds
