"""Loading as a person meets it: memory first, one line of what is wrong, and `unmask models inspect`."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.load import PUBLIC
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from unmask import DiffusionLM, machine
from unmask.backends import refusal
from unmask.checkpoints import folder as folders
from unmask.checkpoints import gguf, safetensors, weights
from unmask.checkpoints import inspect as inspection
from unmask.checkpoints.families import registry
from unmask.checkpoints.folder import CONFIG
from unmask.checkpoints.inspect import inspect, lines, parameters
from unmask.checkpoints.open import Checkpoint
from unmask.checkpoints.safetensors import WEIGHTS, TensorFiles
from unmask.checkpoints.save import save_again, write_checkpoint
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

FIXTURES = Path(__file__).parents[1] / "conformance"
FAMILIES = sorted(p.parent.name for p in FIXTURES.glob("*/config.json") if (p.parent / WEIGHTS).is_file())


def copy(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in (CONFIG, WEIGHTS):
        shutil.copy(FIXTURES / name / file, folder / file)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**raw, **changes}))


def assert_one_line(error: UnmaskError) -> None:
    assert len(str(error).splitlines()) == 1, str(error)


def refused(folder: Path) -> str:
    with pytest.raises(UnmaskError) as caught:
        Checkpoint.open(folder).network()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("backend", ["torch", "native-f32", "native", "native-q4"])
def test_values_that_are_not_finite_are_refused(
    value: float, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention may swallow a NaN, and a likelihood would be a number of another network."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    config = ModelConfig(
        vocab_size=40, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, mask_token_id=3
    )
    network = Transformer(config).initialise(0)
    network.blocks[0].mixer.q_proj.weight.data[5, 7] = value
    write_checkpoint(tmp_path / "model", config.to_dict(), dict(network.named_parameters()), None)
    if backend != "torch" and (reason := refusal(backend, config)) is not None:
        pytest.skip(reason)
    with pytest.raises(UnmaskError, match=r"tensor 'blocks\.0\.mixer\.q_proj\.weight' holds infinite values or NaN"):
        DiffusionLM.from_pretrained(tmp_path / "model", backend=backend).load_backend()


# --- opening --------------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, seen: Counter[Path]) -> None:
    real = getattr(module, name)

    def count(path: Path) -> Any:
        seen[Path(path)] += 1
        return real(path)

    monkeypatch.setattr(module, name, count)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_each_header_is_read_once(
    kind: str, tmp_path: Path, gguf_writer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[Path] = Counter()
    counted(monkeypatch, gguf, "read", seen)
    counted(monkeypatch, safetensors, "read_header", seen)
    counted(monkeypatch, folders, "read_json", seen)
    path = copy("dream", tmp_path / "model") if kind == "folder" else gguf_writer(tmp_path / "x.gguf")
    if kind == "folder":
        (path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    found = Checkpoint.open(path)
    network = found.network()
    _ = (found.tokenizer, found.templates, found.special_tokens, found.chat_template)
    found.network()
    save_again(tmp_path / "again", network, found, {})
    read = {place for place in seen if place.is_relative_to(path)}
    assert read
    assert {seen[place] for place in read} == {1}


# --- memory -------------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("llada", tmp_path / "model")
    monkeypatch.setattr(TensorFiles, "tensors", None)  # reading would raise a TypeError
    monkeypatch.setattr(machine, "available", lambda: 1000)
    assert "0.00 GB is free; take dtype bfloat16" in refused(folder)
    with pytest.raises(UnmaskError, match=r"is free; free some") as caught:
        Checkpoint.open(folder, dtype="bfloat16").network()
    assert "bfloat16" not in str(caught.value)


def test_what_is_needed_follows_the_dtype(tmp_path: Path) -> None:
    folder = copy("diffugpt", tmp_path / "model")
    found = Checkpoint.open(folder)
    stored = found.folder.weights
    model = weights.build(found.config, stored, "x")
    table = weights.weight_table(model, found.family)
    values = sum(t.numel() for t in load_file(folder / WEIGHTS).values())
    for dtype, size in ((None, 4), (torch.float32, 4), (torch.bfloat16, 2)):
        assert weights.needed_bytes(model, stored, table, dtype) == values * size


def test_a_network_is_on_its_device_in_its_dtype(tmp_path: Path) -> None:
    model = Checkpoint.open(copy("llada2_moe", tmp_path / "model"), dtype="bfloat16").network()
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "cpu")}
    assert model.rope_cos.dtype == torch.float32


# --- what is wrong ------------------------------------------------------------------------------------------


def test_one_line_names_all_that_does_not_fit(tmp_path: Path) -> None:
    folder = copy("sdar", tmp_path / "model")
    tensors = load_file(folder / WEIGHTS)
    for name in [n for n in tensors if "k_norm" in n]:
        del tensors[name]
    tensors["surprise"] = torch.zeros(1)
    tensors["model.norm.weight"] = torch.zeros(7)
    save_file(tensors, folder / WEIGHTS)
    message = refused(folder)
    for part in ("2 tensors missing", "k_norm", "1 tensor unknown ('surprise')", "1 tensor misshapen", "[7]"):
        assert part in message


def test_a_wrong_vocabulary_is_named(tmp_path: Path) -> None:
    folder = copy("llada", tmp_path / "model")
    edit(folder, embedding_size=130, vocab_size=130)
    assert "'model.transformer.wte.weight' is [128, 48], config.json asks for [130, 48]" in refused(folder)


def test_quantised_and_unreadable_models_say_so(tmp_path: Path) -> None:
    folder = copy("dream", tmp_path / "model")
    edit(folder, quantization_config={"quant_method": "bitsandbytes"})
    assert "quantised by 'bitsandbytes'" in refused(folder)
    edit(folder, quantization_config=None, architectures=["ModernBertForMaskedLM"], model_type="modernbert")
    assert "ModernBertForMaskedLM is known but not read: the network has no local attention" in refused(folder)
    edit(folder, architectures=None)
    assert "known but not read" in refused(folder)


def test_an_unknown_family_says_what_was_looked_at(tmp_path: Path) -> None:
    folder = copy("dream", tmp_path / "model")
    edit(folder, architectures=["Novel"], model_type="new")
    message = refused(folder)
    for part in (
        "no known family by model_type 'new'",
        "architectures ['Novel']",
        "keys ['add_cross",
        "docs/families.md",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llada", {"block_type": "sequential"}),
        ("llada", {"alibi": True}),
        ("llada", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
        ("llada", {"layer_norm_type": "default"}),
        ("dream", {"use_sliding_window": True}),
        ("dream", {"layer_types": ["sliding_attention"]}),
        ("dream", {"hidden_act": "gelu"}),
        ("dream", {"rope_scaling": {"type": "su", "factor": 2.0}}),
        ("llada_moe", {"moe_router_score_function": "sigmoid"}),
        ("diffugpt", {"activation_function": "relu"}),
        ("diffugpt", {"scale_attn_by_inverse_layer_idx": True}),
        ("sedd_absorb", {"graph": {"type": "roulette"}}),
        ("sedd_absorb", {"model": 3}),
    ],
)
def test_what_the_network_does_not_have_is_refused_by_name(family: str, change: dict[str, Any], tmp_path: Path) -> None:
    folder = copy(family, tmp_path / "model")
    edit(folder, **change)
    assert next(iter(change)) in refused(folder)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 99)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**9, 10**30, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


GEMMA = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
HUGE = ("num_hidden_layers", "hidden_size", "head_dim", "query_pre_attn_scalar", "sliding_window", "rope_parameters")


@pytest.mark.parametrize("value", [10**9, 10**30, 10**400], ids=["9", "30", "400"])
@pytest.mark.parametrize("field", HUGE)
@pytest.mark.parametrize("family", ["gemma", "gemma3_text", "diffusion_gemma"])
def test_a_number_of_any_size_is_one_line_in_time_and_memory(
    family: str, field: str, value: int, tmp_path: Path
) -> None:
    """Before anything is made of it: a list of a thousand million layers, or a float of a number that none can hold."""
    raw: dict[str, Any] = {"model_type": family, **GEMMA}
    if family == "diffusion_gemma":
        raw = json.loads((FIXTURES / family / CONFIG).read_text())
    raw.get("text_config", raw)[field] = value
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    began = time.monotonic()
    assert len(refused(tmp_path)) < 1000
    assert time.monotonic() - began < 2


@settings(max_examples=150)
@given(st.sampled_from(FAMILIES), st.data())
def test_any_configuration_loads_or_raises_one_line(
    tmp_path_factory: pytest.TempPathFactory, family: str, data: st.DataObject
) -> None:
    folder = copy(family, tmp_path_factory.mktemp("fuzz") / "model")
    raw = json.loads((folder / CONFIG).read_text())
    for mapping in [raw, *(v for v in raw.values() if isinstance(v, dict))]:
        mapping |= data.draw(
            st.dictionaries(st.sampled_from([*sorted(mapping), "rope_scaling"]), json_values, max_size=2)
        )
    (folder / CONFIG).write_text(json.dumps(raw))
    for name in ("tokenizer_config", "generation_config", "added_tokens"):
        (folder / f"{name}.json").write_text(json.dumps(data.draw(st.dictionaries(st.text(max_size=3), json_values))))
    try:
        result = inspect(str(folder))
    except UnmaskError as error:
        assert_one_line(error)
        return
    lines(result.record)
    json.dumps(result.record)
    if result.problem is None:
        Checkpoint.open(folder).network()
    else:
        assert refused(folder) == result.problem


# --- sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_from_the_config(family: str) -> None:
    model = Checkpoint.open(FIXTURES / family).network()
    count = parameters(model.config)
    assert count.total == model.num_parameters()
    assert count.per_token <= count.total
    assert (count.per_token < count.total) == bool(model.config.num_experts)


PUBLISHED = {  # billions, by model cards and papers
    "llada-8b": 8.02, "illada-8b": 7.62, "llada2-mini-16b-a1.4b": 16.26, "dream-7b": 7.62, "open-dcoder-0.5b": 0.494,
    "sdar-8b": 8.19, "sdar-30b-a3b": 30.5, "a2d-qwen3-0.6b": 0.596, "fast-dllm-v2-1.5b": 1.54, "diffullama-7b": 6.74,
    "diffugpt-s": 0.124, "diffugpt-m": 0.355,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_public_sizes_are_recognised_and_as_large_as_published(name: str) -> None:
    family = registry.recognise(PUBLIC[name], name)
    assert family is not None
    total = parameters(family.config(PUBLIC[name], name)).total
    assert total / 1e9 == pytest.approx(PUBLISHED.get(name, total / 1e9), rel=0.005)


def test_the_table_of_sizes_is_what_the_configs_say() -> None:
    text = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    for name, raw in PUBLIC.items():
        family = registry.recognise(raw, name)
        assert family is not None
        total, token = parameters(family.config(raw, name))
        sizes = f"{total / 1e9:.2f} | {token / 1e9:.2f} | {2 * total / 1e9:.1f} | {4 * total / 1e9:.1f}"
        assert f"| {name} | {sizes} | {2 * total / 25e9 * 1e3:.0f} | {2 * total / 3e12 * 1e3:.2f} |" in text


# --- inspect ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_fixture_inspects_as_sound(family: str) -> None:
    result = inspect(str(FIXTURES / family))
    record = result.record
    assert result.problem is None
    assert record["fits"]
    assert record["weights"]["tensors"] == len(load_file(FIXTURES / family / WEIGHTS))
    assert sum(record["weights"]["bytes_by_dtype"].values()) > 4 * record["parameters"] - 1
    assert json.loads(json.dumps(record))["config"]["vocab_size"] > 0
    said = dict(lines(record))
    assert said["missing"] == said["extra"] == said["misshapen"] == "none"
    assert record["class"] in inspection.KINDS


def test_inspect_reports_what_does_not_fit(tmp_path: Path) -> None:
    folder = copy("llada", tmp_path / "model")
    (folder / "vocab.json").write_text("{}")
    edit(folder, n_layers=3, auto_map={"AutoModel": "modeling_llada.LLaDAModelLM"})
    result = inspect(str(folder))
    assert not result.record["fits"]
    assert len(result.record["weights"]["missing"]) == 9
    assert "9: 'model.transformer.blocks.2" in dict(lines(result.record))["missing"]
    assert "modeling_llada" in result.record["notes"][0]
    assert "not vocab.json" in dict(lines(result.record))["note"]
    assert result.problem == refused(folder)


def test_inspect_reports_weights_that_are_not_there(tmp_path: Path) -> None:
    folder = copy("llada", tmp_path / "model")
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    result = inspect(str(folder))
    assert result.record["weights"] is None
    assert "pickle" in (result.problem or "")
    assert dict(lines(result.record))["family"].startswith("LLaDA, class A (full canvas)")


def test_inspect_shows_where_ids_come_from() -> None:
    record = inspect(str(FIXTURES / "sedd_absorb")).record
    assert record["tokens"]["mask"] == {"id": 63, "text": None, "from": "the sizes in config.json"}
    assert "log_score" in dict(lines(record))["options"]


def test_inspect_of_shipped_models(smollm2: Path) -> None:
    record = inspect("default").record
    assert (record["base"], record["layout"], record["fits"]) == ("smollm2-135m-instruct", "drafts", True)
    assert record["tokens"]["mask"]["text"] == "<empty_output>"
    assert dict(lines(record))["base"] == "smollm2-135m-instruct"
    record = inspect("smollm2-135m-instruct").record
    assert record["class"] == "AR"
    assert set(record["weights"]["bytes_by_dtype"]) == {"Q4_1", "Q8_0", "F32"}
