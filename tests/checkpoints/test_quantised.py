"""Quantised folders, packed here value by value, give the network of the values that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_behind_text import SDLM, saved
from torch import Tensor

from unmask import DiffusionLM, UnmaskError
from unmask.backends.native import network as native
from unmask.checkpoints.families import registry
from unmask.checkpoints.weights import expected_shapes
from unmask.models.network import on_meta

DREAM = Path(__file__).parents[1] / "conformance" / "dream"
Packed = tuple[dict[str, Tensor], Tensor]  # the tensors of a module by their last name, and the values they stand for


def words(codes: list[list[int]], bits: int) -> Tensor:
    """Codes in words of 32 bits, the lowest bits first, one word after another."""
    per = 32 // bits
    out = []
    for row in codes:
        row = row + [0] * (-len(row) % per)
        own = [sum(code << (bits * i) for i, code in enumerate(row[at : at + per])) for at in range(0, len(row), per)]
        out.append([word - 2**32 if word >= 2**31 else word for word in own])
    return torch.tensor(out, dtype=torch.int32)


def drawn(shape: tuple[int, int], bits: int, group: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K], scales and zero points [N, K / group]."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, shape, generator=draw)
    grid = (shape[0], shape[1] // group)
    scales = (torch.rand(grid, generator=draw) * 0.02 + 0.01).half()
    return codes, scales, torch.randint(1, 2**bits, grid, generator=draw)


def gptq(shape: tuple[int, int], seed: int, ordered: bool = True) -> Packed:
    codes, scales, zeros = drawn(shape, 4, 16, seed)
    group = torch.arange(shape[1]) // 16
    if not ordered:
        group = group[torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))]
    values = (codes - zeros[:, group]) * scales.float()[:, group]
    parts = {
        "qweight": words(codes.tolist(), 4).T.contiguous(),
        "qzeros": words((zeros.T - 1).tolist(), 4),
        "scales": scales.T.contiguous(),
        "g_idx": group.int(),
    }
    return parts, values


def awq(shape: tuple[int, int], seed: int) -> Packed:
    codes, scales, zeros = drawn(shape, 4, 16, seed)

    def interleaved(rows: Tensor) -> Tensor:
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # of eight neighbours, from the lowest bits on
        return words(rows.unflatten(-1, (-1, 8))[..., order].flatten(-2).tolist(), 4)

    values = (codes - zeros.repeat_interleave(16, 1)) * scales.float().repeat_interleave(16, 1)
    parts = {"qweight": interleaved(codes.T), "qzeros": interleaved(zeros.T), "scales": scales.T.contiguous()}
    return parts, values


def packed(shape: tuple[int, int], seed: int, bits: int = 4, symmetric: bool = True) -> Packed:
    codes, scales, zeros = drawn(shape, bits, 16, seed)
    zeros = torch.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
    values = (codes - zeros.repeat_interleave(16, 1)) * scales.float().repeat_interleave(16, 1)
    parts = {"weight_packed": words(codes.tolist(), bits), "weight_scale": scales, "weight_shape": torch.tensor(shape)}
    return parts | ({} if symmetric else {"weight_zero_point": words(zeros.T.tolist(), bits).T.contiguous()}), values


def mlx(shape: tuple[int, int], seed: int, bits: int = 4) -> Packed:
    codes, scales, _ = drawn(shape, bits, 16, seed)
    biases = -scales * 2 ** (bits - 1)
    values = codes * scales.float().repeat_interleave(16, 1) + biases.float().repeat_interleave(16, 1)
    return {"weight": words(codes.tolist(), bits).view(torch.uint32), "scales": scales, "biases": biases}, values


def fp8(shape: tuple[int, int], seed: int, block: int = 0) -> Packed:
    draw = torch.Generator().manual_seed(seed)
    stored = torch.randn(shape, generator=draw).to(torch.float8_e4m3fn)
    if not block:
        scale = torch.rand((), generator=draw) * 0.2 + 0.1
        return {"weight": stored, "weight_scale": scale, "input_scale": torch.ones(())}, stored.float() * scale
    grid = [-(-size // block) for size in shape]
    scale = torch.rand(grid, generator=draw) * 0.2 + 0.1
    spread = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[: shape[0], : shape[1]]
    return {"weight": stored, "weight_scale_inv": scale}, stored.float() * spread


def int8(shape: tuple[int, int], seed: int) -> Packed:
    draw = torch.Generator().manual_seed(seed)
    stored = torch.randint(-127, 128, shape, generator=draw).to(torch.int8)
    scale = torch.rand(shape[0], 1, generator=draw).bfloat16() * 0.01
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale.float()


def compressed(kind: str, bits: int) -> dict[str, Any]:
    groups = {"group_0": {"weights": {"num_bits": bits, "symmetric": True}}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups}}


def method(name: str, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": name, **more}}


CASES: dict[str, tuple[Callable[..., Packed], dict[str, Any], bool]] = {  # and whether embeddings are quantised too
    "gptq": (gptq, method("gptq", bits=4, group_size=16), False),
    "gptq-actorder": (lambda *a: gptq(*a, ordered=False), method("gptq", bits=4, group_size=16, desc_act=True), False),
    "awq": (awq, method("awq", bits=4, group_size=16, version="gemm"), False),
    "packed-4": (packed, compressed("pack-quantized", 4), False),
    "packed-8": (lambda *a: packed(*a, bits=8), compressed("pack-quantized", 8), False),
    "packed-asymmetric": (lambda *a: packed(*a, symmetric=False), compressed("pack-quantized", 4), False),
    "int8": (int8, compressed("int-quantized", 8), False),
    "float8": (fp8, compressed("float-quantized", 8), False),
    "fp8-blocks": (lambda *a: fp8(*a, block=40), method("fp8", weight_block_size=[40, 40]), False),
    "mlx-4": (mlx, {"quantization": {"group_size": 16, "bits": 4}}, True),
    "mlx-8": (lambda *a: mlx(*a, bits=8), {"quantization": {"group_size": 16, "bits": 8, "mode": "affine"}}, True),
}


def folders(root: Path, case: str, source: Path = DREAM) -> tuple[Path, Path]:
    """A quantised folder and one of the same values."""
    pack, config, embeddings = CASES[case]
    raw = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    plain, coded = dict(tensors), dict(tensors)
    for seed, name in enumerate(sorted(tensors)):
        module = name.removesuffix(".weight")
        if tensors[name].dim() == 2 and ("proj" in name or embeddings):
            parts, values = pack(tuple(tensors[name].shape), seed)
            del coded[name]
            coded |= {f"{module}.{leaf}": tensor for leaf, tensor in parts.items()}
            plain[name] = values
    for path, own, more in ((root / "coded", coded, config), (root / "plain", plain, {})):
        path.mkdir()
        save_file(own, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({**raw, **more}))
    return root / "coded", root / "plain"


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_that_were_packed(case: str, tmp_path: Path) -> None:
    coded, plain = folders(tmp_path, case)
    ours, theirs = (DiffusionLM.from_pretrained(path, dtype="float32") for path in (coded, plain))
    for name, parameter in theirs.model.named_parameters():
        torch.testing.assert_close(ours.model.get_parameter(name), parameter, rtol=0, atol=1e-6)
    assert any("quantised" in note for note in ours.loaded.notes)
    rows = ours.loaded.rows()
    for name in ("blocks.0.mixer.q_proj.weight", "blocks.1.mlp.down_proj.weight"):
        expected = theirs.model.get_parameter(name).detach().numpy()[3:9]
        torch.testing.assert_close(rows[name].values(3, 9), expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(native.library() is None, reason="installed without a C compiler")
def test_the_native_backend_packs_them_and_saving_forgets_the_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    source = saved(tmp_path / "source", bias=True, **SDLM)
    coded, plain = folders(tmp_path, "mlx-4", source)
    prompt = [4, 8, 15, 16]
    options: dict[str, Any] = {"max_new_tokens": 8, "seed": 0, "temperature": 0.0, "ignore_eos": True}
    one, other = (DiffusionLM.from_pretrained(path, quantize="none") for path in (coded, plain))
    assert one.generate(prompt, **options).token_ids == other.generate(prompt, **options).token_ids
    one.save_pretrained(tmp_path / "again")
    assert "quantization" not in json.loads((tmp_path / "again" / "config.json").read_text())
    ids = torch.tensor([prompt])
    torch.testing.assert_close(DiffusionLM.from_pretrained(tmp_path / "again").logits(ids), one.logits(ids))


@pytest.mark.parametrize(
    "config",
    [
        method("awq", bits=4, version="gemv"),
        method("gptq", bits=3),
        method("bitsandbytes"),
        method("compressed-tensors", format="marlin-24"),
        {"quantization": {"bits": 3, "group_size": 64}},
        {"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}},
    ],
)
def test_other_kinds_are_refused_by_name(config: dict[str, Any], tmp_path: Path) -> None:
    _, plain = folders(tmp_path, "int8")
    raw = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**raw, **config}))
    with pytest.raises(UnmaskError, match=r"quantised by .* are not read"):
        DiffusionLM.from_pretrained(plain)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    coded, _ = folders(tmp_path, "awq")
    tensors = load_file(coded / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.scales"))
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, coded / "model.safetensors")
    with pytest.raises(UnmaskError, match=r"q_proj' do not fit each other"):
        DiffusionLM.from_pretrained(coded)


@pytest.mark.parametrize("kind", ["coded", "plain"])
def test_experts_that_mlx_stacked_are_those_of_each(kind: str, tmp_path: Path) -> None:
    raw = json.loads((DREAM.parent / "llada_moe" / "config.json").read_text()) | {"expert_intermediate_size": 32}
    family = registry.recognise(raw, "")
    draw = torch.Generator().manual_seed(0)
    shapes = expected_shapes(on_meta(family.config(raw, "")), family)
    source = tmp_path / "source"
    source.mkdir()
    save_file({k: torch.randn(shape, generator=draw) for k, shape in shapes.items()}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(raw))
    folder = dict(zip(("coded", "plain"), folders(tmp_path, "mlx-4", source), strict=True))[kind]
    expected = DiffusionLM.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    stacks: dict[str, list[Tensor]] = {}
    for name in sorted(tensors, key=lambda name: [int(part) if part.isdigit() else 0 for part in name.split(".")]):
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            stacks.setdefault(f"{before}.switch_mlp.{after.partition('.')[2]}", []).append(tensors.pop(name))
    assert stacks
    again = tmp_path / "stacked"
    again.mkdir()
    save_file(tensors | {name: torch.stack(parts) for name, parts in stacks.items()}, again / "model.safetensors")
    (again / "config.json").write_text((folder / "config.json").read_text())
    ids = torch.arange(12)[None]
    assert torch.equal(DiffusionLM.from_pretrained(again).logits(ids), expected.logits(ids))


@pytest.mark.parametrize("shape", [(0, 4), (5000, 1), (2, 2)])
def test_stacks_that_are_none_are_one_line(shape: tuple[int, int], tmp_path: Path) -> None:
    _, plain = folders(tmp_path, "int8")
    tensors = load_file(plain / "model.safetensors")
    save_file(
        {**tensors, "model.layers.0.mlp.switch_mlp.up_proj.weight": torch.ones(shape)}, plain / "model.safetensors"
    )
    with pytest.raises(UnmaskError, match=r"unknown \('model.layers.0.mlp"):
        DiffusionLM.from_pretrained(plain).logits([[1, 2]])
