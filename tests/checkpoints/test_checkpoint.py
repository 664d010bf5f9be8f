from __future__ import annotations

import json
import pickle
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.checkpoints.families import registry
from unmask.checkpoints.folder import CONFIG, TOKENIZER
from unmask.checkpoints.open import Checkpoint
from unmask.checkpoints.safetensors import INDEX, WEIGHTS, read_tensors
from unmask.checkpoints.save import write_checkpoint
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

Tiny = Callable[..., Transformer]
CONFORMANCE = Path(__file__).parents[1] / "conformance"
HUGE = 2**60  # far beyond any memory, so that asking for it fails at once instead of swapping


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """A sound checkpoint, not to be written to."""
    folder, model = tmp_path_factory.mktemp("sound"), tiny(num_kv_heads=2)
    write(folder, model)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A sound checkpoint of the test's own."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def load(folder: Path, dtype: str = "float32") -> Transformer:
    return Checkpoint.open(folder, dtype=dtype).network()


def write(folder: Path, model: Transformer) -> None:
    """Saves in our own layout, a tied head once."""
    write_checkpoint(folder, model.config.to_dict(), {name: p.detach() for name, p in model.named_parameters()}, None)


def one_line(error: UnmaskError) -> str:
    """The message, made sure to be one line that a terminal can print."""
    message = str(error)
    assert len(message.splitlines()) == 1, message
    assert message.encode()  # a lone surrogate would not
    return message


def refused(folder: Path) -> str:
    """The one line with which loading fails."""
    with pytest.raises(UnmaskError) as caught:
        load(folder)
    return one_line(caught.value)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def edit_tensors(folder: Path, **changes: Tensor | None) -> None:
    """Replaces, adds or (None) removes tensors."""
    tensors: dict[str, Tensor | None] = {**load_file(folder / WEIGHTS), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / WEIGHTS)


# --- there and back -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_embeddings": False, "qkv_bias": True, "norm": "layer", "norm_bias": True},
        {"time_condition_size": 8, "layout": "block_causal", "block_length": 4, "shift": True, "qk_norm": True},
    ],
)
def test_a_checkpoint_comes_back_as_it_was(options: dict[str, Any], tmp_path: Path, tiny: Tiny) -> None:
    model = tiny(**options)
    write(tmp_path / "one", model)
    again = load(tmp_path / "one")
    assert Checkpoint.open(tmp_path / "one").family is None  # our own layout
    assert again.config == model.config
    assert not again.training
    write(tmp_path / "two", again)
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    ids = torch.arange(6)[None]
    assert torch.equal(model(ids), again(ids))
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [CONFIG, WEIGHTS]
    assert "head.weight" not in read_tensors(tmp_path / "one" / WEIGHTS) or not model.config.tie_embeddings


def test_weights_are_read_in_the_dtype_asked_for(sound: Path) -> None:
    assert {p.dtype for p in load(sound, dtype="bfloat16").parameters()} == {torch.bfloat16}


def test_half_precision_weights_are_read(folder: Path, sound: Path) -> None:
    edit_tensors(folder, **{name: t.half() for name, t in load_file(sound / WEIGHTS).items()})
    torch.testing.assert_close(load(folder).state_dict(), load(sound).state_dict(), atol=1e-3, rtol=1e-3)
    assert {p.dtype for p in load(folder, dtype="auto").parameters()} == {torch.half}


def test_a_tied_head_stays_tied(sound: Path) -> None:
    model = load(sound)
    assert model.head.weight is model.embedding.weight


@torch.no_grad()
def test_shards_give_the_network_of_the_whole(folder: Path, sound: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / shard)
    weight_map = {name: shard for shard, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    ids = torch.arange(6)[None]
    assert torch.equal(load(folder)(ids), load(sound)(ids))
    (folder / "b.safetensors").unlink()
    assert "b.safetensors" in refused(folder)


# --- broken weights -----------------------------------------------------------------------------------------


def test_a_cut_file_is_refused(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        assert WEIGHTS in refused(folder)


def test_missing_extra_and_misshapen_tensors_are_named(folder: Path) -> None:
    name = "blocks.1.mixer.q_proj.weight"
    good = load_file(folder / WEIGHTS)[name]
    edit_tensors(folder, **{name: None})
    assert name in refused(folder)
    edit_tensors(folder, **{name: good[:-1].contiguous()})
    assert name in refused(folder)
    edit_tensors(folder, **{name: good.long()})
    assert name in refused(folder)
    edit_tensors(folder, **{name: good, "blocks.2.surprise": good.clone()})
    assert "blocks.2.surprise" in refused(folder)


def test_a_tensor_name_with_a_line_break_makes_one_line(folder: Path) -> None:
    edit_tensors(folder, **{"two\nlines": torch.zeros(1)})
    refused(folder)


class Trap:
    """Unpickling it writes a file: proof that a pickle was read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_pickle_with_another_name_is_refused_unread(dump: Callable[..., None], folder: Path) -> None:
    with (folder / WEIGHTS).open("wb") as file:
        dump({"embedding.weight": Trap(folder / "sprung")}, file)
    assert WEIGHTS in refused(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    "weight_map",
    [None, [], {}, {"a": None}, {"a": []}, {"a": {}}, {"a": 1}, {"a": "../a.safetensors"}, {"a": "/etc/passwd"},
     {"a": "a.bin"}, {"a": "a\n.safetensors"}, {"a": "\0.safetensors"}, {"a": "no.safetensors"}, {"a": "x" * 5000}],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_a_hostile_index_is_refused(weight_map: Any, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(folder)


def test_a_folder_of_pickles_is_refused_unread(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(folder)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert WEIGHTS in refused(folder)
    (folder / CONFIG).unlink()
    assert CONFIG in refused(folder)
    (folder / CONFIG).mkdir()
    assert CONFIG in refused(folder)
    refused(folder / "nowhere")


def safetensors_file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


# every type of the format, those that PyTorch may not know as well, and some that don't exist
DTYPES = (
    "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "I16", "U16", "F16", "BF16",
    "I32", "U32", "F32", "C64", "F64", "I64", "U64", "X99",
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_dtype_is_read_or_refused(dtype: str, folder: Path) -> None:
    for size in (4, 8, 16, 32, 64):  # one of them is the right one
        header = {"embedding.weight": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}}
        (folder / WEIGHTS).write_bytes(safetensors_file(json.dumps(header).encode(), bytes(size)))
        refused(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
offsets = st.lists(st.integers(-1, 64) | st.sampled_from([2**31, HUGE, 2**63, 2**64]), max_size=3)
entries = st.fixed_dictionaries(
    {},
    optional={"dtype": st.sampled_from(DTYPES) | json_values, "shape": offsets | json_values, "data_offsets": offsets},
)
headers = st.dictionaries(
    st.sampled_from(["embedding.weight", "norm.weight", "__metadata__"]) | st.text(max_size=5), entries | json_values
).map(lambda value: json.dumps(value).encode())
files = st.binary(max_size=64) | st.builds(safetensors_file, headers | st.binary(max_size=40), st.binary(max_size=64))


@given(files)
def test_hostile_weights_raise_one_line(sound: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copy(sound / CONFIG, folder)
    (folder / WEIGHTS).write_bytes(content)
    refused(folder)


# --- broken configurations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "12", '"text"', "{'a': 1}", "\ufeff{}", "[" * 100_000,
        '{"vocab_size": ' + "9" * 5000 + "}",
    ],
    ids=["empty", "cut", "list", "null", "number", "text", "quotes", "byte order mark", "deep", "long number"],
)  # fmt: skip
def test_what_is_not_a_json_object_is_refused(text: str, folder: Path) -> None:
    (folder / CONFIG).write_text(text)
    assert CONFIG in refused(folder)


def test_what_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b"\xff\xfe\x00{")
    assert CONFIG in refused(folder)


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"])
def test_a_missing_field_is_named(name: str, folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    del config[name]
    (folder / CONFIG).write_text(json.dumps(config))
    assert name in refused(folder)


WRONG: list[tuple[str, Any]] = [
    ("surprise", 1),
    ("hidden_size", "32"),
    ("hidden_size", 32.0),
    ("hidden_size", True),
    ("hidden_size", None),
    ("hidden_size", [32]),
    ("hidden_size", {}),
    ("num_layers", 0),
    ("num_layers", -1),
    ("num_heads", 0),
    ("num_heads", 5),  # the two groups don't divide it
    ("num_kv_heads", -2),
    ("num_kv_heads", 3),
    ("head_dim", -8),
    ("head_dim", 7),  # odd, so it can't be rotated in pairs
    ("rope_fraction", -0.5),
    ("rope_fraction", 1.5),
    ("rope_fraction", float("nan")),
    ("rope_theta", 0.0),
    ("rope_theta", float("nan")),
    ("norm_eps", -1.0),
    ("norm_eps", float("inf")),
    ("logit_softcap", -1.0),
    ("logit_softcap", float("inf")),
    ("router_scale", float("inf")),
    ("norm_eps", 10**400),
    ("norm", "batch"),
    ("norm", 3),
    ("norm", []),
    ("activation", "relu"),
    ("layout", "block_diffusion"),
    ("layout", "block_causal"),  # without a block length
    ("qk_norm", 1),
    ("qk_norm", "yes"),
    ("shift", None),
    ("mask_token_id", 13),
    ("mask_token_id", -1),
    ("mask_token_id", "12"),
    ("mask_token_id", False),
    ("time_condition_size", -1),
    ("block_length", -4),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value!r:.12}" for name, value in WRONG])
def test_a_wrong_value_is_refused_by_name(name: str, value: Any, folder: Path) -> None:
    edit_config(folder, **{name: value})
    message = refused(folder)
    related = {"num_heads": "head_dim", "head_dim": "rope_fraction", "layout": "block_length"}
    assert name in message or related.get(name, name) in message or "a number of 401 digits" in message


SIZES = (
    "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size",
    "max_length", "time_condition_size",
)  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [HUGE, 2**63, 10**30])
def test_huge_sizes_are_refused_before_memory_is_asked_for(name: str, size: int, folder: Path) -> None:
    edit_config(folder, **{name: size})
    if name == "num_heads":  # else its heads have no width
        edit_config(folder, head_dim=8)
    if name == "num_kv_heads":
        edit_config(folder, num_heads=size, head_dim=8)
    refused(folder)


@pytest.mark.parametrize(("name", "size"), [("num_heads", 2**14), ("head_dim", 2**15), ("time_condition_size", 2**13)])
def test_sizes_that_memory_has_room_for_are_refused_without_taking_it(name: str, size: int, folder: Path) -> None:
    """Each would take 100 MB and more; weights of 80 kB can't be theirs."""
    edit_config(folder, **{name: size})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # kB


def test_a_size_a_little_off_is_refused_by_its_tensors(folder: Path) -> None:
    for name, size in (("vocab_size", 14), ("num_layers", 3), ("num_layers", 1), ("intermediate_size", 47)):
        edited = folder / CONFIG
        before = edited.read_text()
        edit_config(folder, **{name: size})
        assert CONFIG in refused(folder)
        edited.write_text(before)


def test_names_and_values_with_line_breaks_make_one_line(folder: Path) -> None:
    for changes in ({"two\nlines": 1}, {"\ud800": 1}, {"norm": "two\nlines"}, {"hidden_size": "\x85"}):
        before = (folder / CONFIG).read_text()
        edit_config(folder, **changes)
        refused(folder)
        (folder / CONFIG).write_text(before)


fields = st.sampled_from([*sorted(ModelConfig.__dataclass_fields__), "model_type", "architectures"])
# sizes stay small here, so that what is accepted is cheap to build
values = json_values.filter(lambda v: not isinstance(v, int) or abs(v) < 1000) | st.integers(-9, 99)


@settings(max_examples=100)
@given(st.dictionaries(fields | st.text(max_size=5), values, max_size=4))
def test_hostile_configurations_load_or_raise_one_line(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path_factory.mktemp("hostile") / "model"))
    edit_config(folder, **changes)
    try:
        load(folder)
    except UnmaskError as error:
        one_line(error)


CONFIGS = [json.loads(path.read_text()) for path in sorted(CONFORMANCE.glob("*/config.json"))]
assert CONFIGS


@settings(max_examples=300)
@given(st.sampled_from(CONFIGS), st.data())
def test_hostile_configurations_of_other_families_are_read_or_raise_one_line(
    raw: dict[str, Any], data: st.DataObject
) -> None:
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(raw)), json_values, max_size=3))
    raw = {**raw, **changes}
    try:
        family = registry.recognise(raw, CONFIG)
        assert (ModelConfig.from_dict(raw, CONFIG) if family is None else family.config(raw, CONFIG)).vocab_size > 0
    except UnmaskError as error:
        one_line(error)


@given(st.text(max_size=20) | st.binary(max_size=20))
def test_any_bytes_as_configuration_raise_one_line(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path_factory.mktemp("hostile") / "model"))
    (folder / CONFIG).write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    refused(folder)


def test_a_configuration_comes_back_from_its_mapping(tiny: Tiny) -> None:
    config = tiny(num_kv_heads=2, rope_theta=5e5, eos_token_id=0).config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# --- tokenizers ---------------------------------------------------------------------------------------------


def test_a_folder_may_have_no_tokenizer(folder: Path) -> None:
    assert Checkpoint.open(folder).tokenizer is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": {"type": "Nope"}}', "\x00"])
def test_a_broken_tokenizer_raises_one_line(text: str, folder: Path) -> None:
    (folder / TOKENIZER).write_text(text)
    with pytest.raises(UnmaskError, match=TOKENIZER) as caught:
        _ = Checkpoint.open(folder).tokenizer
    one_line(caught.value)
