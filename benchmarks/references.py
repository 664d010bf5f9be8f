"""The references' own generate functions, to run beside ours: from a checkout that the user names, on a CPU.

Their code is imported as it lies in the checkout; nothing of it is here. What is stood in for, because it needs
CUDA, is said in each reference's `replaced`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from unmask.decoding.convention import CONVENTIONS
from unmask.decoding.request import CacheKind
from unmask.decoding.rules import RuleOptions
from unmask.errors import UnmaskError

Kind = Literal["full canvas", "blocks"]
Generate = Callable[[Any, Tensor, "Asked"], Tensor]  # (their network, prompt [1, P], what) -> ids [1, P + new]


@dataclass(frozen=True)
class Asked:
    """What both sides decode: so many new tokens, blocks of so many, steps of a block."""

    new: int
    block: int
    steps: int
    mask_id: int


@dataclass(frozen=True)
class Way:
    """One of a reference's ways to decode, and the same of ours."""

    name: str
    cache: CacheKind
    rule: RuleOptions
    generate: Generate


@dataclass(frozen=True)
class Reference:
    """A project's code, imported."""

    kind: Kind
    version: str
    replaced: str  # what of it was stood in for; empty if nothing
    load: Callable[[Path], Any]  # their network of a checkpoint's folder, in float32
    ways: list[Way]


def fast_dllm(root: Path) -> Reference:
    """NVlabs/Fast-dLLM: the folder `llada` with `generate.py` and `model/modeling_llada.py`."""
    source = _file(root, "llada/generate.py")
    sys.path.insert(0, str(source.parent))
    try:
        code = _module("unmask_reference_fast_dllm", source)
        network = importlib.import_module("model.modeling_llada").LLaDAModelLM
    finally:
        sys.path.remove(str(source.parent))

    def way(name: str, cache: CacheKind, run: Any) -> Way:
        def generate(model: Any, prompt: Tensor, asked: Asked) -> Tensor:
            steps = asked.steps * (asked.new // asked.block)
            ids: Tensor = run(model, prompt, steps, asked.new, asked.block, mask_id=asked.mask_id)[0]
            return ids

        return Way(name, cache, RuleOptions("quota"), generate)

    ways = [
        way("no cache", "none", code.generate),
        way("prefix cache", "prefix", code.generate_with_prefix_cache),
        way("dual cache", "dual", code.generate_with_dual_cache),
    ]
    return Reference("full canvas", _version(source), "", _pretrained(network), ways)


def llada(root: Path, networks: Path | None) -> Reference:
    """ML-GSAI/LLaDA's `generate.py`; its repository holds no network, so Fast-dLLM's copy of it is taken."""
    if networks is None:
        raise UnmaskError("LLaDA's repository holds no network: name --checkout fast-dllm=PATH as well")
    source = _file(root, "generate.py")
    code = _module("unmask_reference_llada", source)
    other = fast_dllm(networks)

    def generate(model: Any, prompt: Tensor, asked: Asked) -> Tensor:
        steps = asked.steps * (asked.new // asked.block)
        ids: Tensor = code.generate(model, prompt, None, steps, asked.new, asked.block, mask_id=asked.mask_id)
        return ids

    rule = RuleOptions("quota", CONVENTIONS["llada"])
    said = f"the network is that of Fast-dLLM {other.version}"
    return Reference("full canvas", _version(source), said, other.load, [Way("no cache", "none", rule, generate)])


def sdar(root: Path) -> Reference:
    """JetAstra/SDAR: `generate.py` and `training/model/SDAR-4B-Chat/modeling_sdar.py`."""
    source = _file(root, "generate.py")
    folder = _file(root, "training/model/SDAR-4B-Chat/modeling_sdar.py").parent
    package = ModuleType("unmask_reference_sdar_model")
    package.__path__ = [str(folder)]
    training = ModuleType(f"{package.__name__}.fused_linear_diffusion_cross_entropy")
    training.FusedLinearDiffusionCrossEntropyLoss = torch.nn.Module  # type: ignore[attr-defined]
    with _standing_in({package.__name__: package, training.__name__: training, **_flash_attention()}):
        network = importlib.import_module(f"{package.__name__}.modeling_sdar").SDARForCausalLM
    code = _module("unmask_reference_sdar", source)

    def generate(model: Any, prompt: Tensor, asked: Asked) -> Tensor:
        with _greedy():
            ids: Tensor = code.block_diffusion_generate(
                model, {"input_ids": prompt}, asked.mask_id, asked.new, asked.block, asked.steps,
                remasking_strategy="low_confidence_static",
            )  # fmt: skip
        return ids

    rule = RuleOptions("quota", CONVENTIONS["sdar"], schedule="block")
    said = "flash_attn by torch's rms_norm and scaled_dot_product_attention, torch.multinomial by argmax"
    way = Way("exact cache", "exact", rule, generate)
    return Reference("blocks", _version(source), said, _pretrained(network), [way])


def load(name: str, checkouts: dict[str, Path]) -> Reference:
    """The reference of a name. Raises UnmaskError where its files, or libraries that it imports, are not there."""
    try:
        if name == "fast-dllm":
            return fast_dllm(checkouts[name])
        return llada(checkouts[name], checkouts.get("fast-dllm")) if name == "llada" else sdar(checkouts[name])
    except ImportError as error:
        raise UnmaskError(
            f"{name}'s code cannot be imported here ({error}); it was written for transformers 4.52 and einops: "
            "install them into an environment of their own beside unmask"
        ) from None


NAMES = ("llada", "fast-dllm", "sdar")


def _file(root: Path, name: str) -> Path:
    if not (root / name).is_file():
        raise UnmaskError(f"{root} has no {name}; a checkout of the reference's repository is needed")
    return (root / name).resolve()


def _module(name: str, source: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(name, str(source))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _version(source: Path) -> str:
    """The commit that last changed the file; without git, what the file's SHA-256 begins with."""
    asked = ["git", "-C", str(source.parent), "log", "-1", "--format=%h", "--", source.name]
    try:
        commit = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except OSError:
        commit = ""
    return f"at {commit}" if commit else f"{source.name} with SHA-256 {sha256(source.read_bytes()).hexdigest()[:12]}"


def _pretrained(network: Any) -> Callable[[Path], Any]:
    return lambda folder: network.from_pretrained(folder, torch_dtype=torch.float32).eval()


@contextmanager
def _standing_in(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Modules by name while something is imported that asks for them."""
    added = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _flash_attention() -> dict[str, ModuleType]:
    """What SDAR's network takes of flash_attn, which needs CUDA, by PyTorch's own functions."""
    if importlib.util.find_spec("flash_attn") is not None:
        return {}

    def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, softmax_scale: float) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        options: Any = {"is_causal": causal, "scale": softmax_scale, "enable_gqa": True}
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)

    def rms_norm(x: Tensor, weight: Tensor, bias: None, eps: float) -> Tensor:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)

    names = ("flash_attn", "flash_attn.ops", "flash_attn.ops.triton", "flash_attn.ops.triton.layer_norm")
    modules = {name: ModuleType(name) for name in (*names, "flash_attn.bert_padding")}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
    modules["flash_attn"].__dict__.update(flash_attn_func=attention, flash_attn_varlen_func=None)
    modules["flash_attn.ops.triton.layer_norm"].__dict__["rms_norm_fn"] = rms_norm
    modules["flash_attn.bert_padding"].__dict__.update(index_first_axis=None, pad_input=None, unpad_input=None)
    return modules


@contextmanager
def _greedy() -> Iterator[None]:
    """SDAR's sampler cannot be greedy: the best token in place of a drawn one."""
    drawn: Any = torch.multinomial

    def best(p: Tensor, num_samples: int) -> Tensor:
        return p.argmax(-1, keepdim=True)

    setattr(torch, "multinomial", best)  # noqa: B010
    try:
        yield
    finally:
        setattr(torch, "multinomial", drawn)  # noqa: B010
