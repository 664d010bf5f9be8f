"""GGUF: values, names and order of rows; the tokenizer; one clear line for every file that cannot be read."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from unmask import DiffusionLM
from unmask.backends.native import network as native
from unmask.backends.native.packing import blocks
from unmask.checkpoints import gguf as gguf_file
from unmask.checkpoints import gguf_architectures, gguf_text
from unmask.checkpoints.families import registry
from unmask.checkpoints.open import Checkpoint
from unmask.checkpoints.rows import native_groups
from unmask.checkpoints.tokens import free_token
from unmask.checkpoints.weights import expected_shapes
from unmask.decoding.feed import TEXT, Columns, Feed
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.models.network import on_meta

Writer = Callable[..., Path]
Weights = Callable[..., dict[str, Any]]
TOKENS = Path(__file__).parent / "smollm2" / "tokens.json"


@pytest.fixture(scope="module")
def small(gguf_writer: Writer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file, not to be written to."""
    return gguf_writer(tmp_path_factory.mktemp("gguf") / "small.gguf")


def refused(use: Callable[[], Any]) -> str:
    """The one line with which something fails."""
    with pytest.raises(UnmaskError) as caught:
        use()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert message.isprintable(), message
    return message


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_values_of_every_type(kind: Kind, gguf_writer: Writer, weights: Weights, tmp_path: Path) -> None:
    written = weights(seed=1, tied=False)
    read = dict(gguf_file.read(gguf_writer(tmp_path / "x.gguf", written, kind)).arrays())
    assert read.keys() == written.keys()
    for name, values in written.items():
        stored = values if values.ndim == 1 else gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        np.testing.assert_array_equal(read[name], stored, err_msg=name)
        assert read[name].dtype == np.float32


def test_a_q4_1_block_by_hand(gguf_writer: Writer, weights: Weights, tmp_path: Path) -> None:
    """A block is scale, minimum, then 16 bytes: values 0..15 in the low halves, 16..31 in the high ones."""
    path = gguf_writer(tmp_path / "x.gguf", weights(), Kind.Q4_1)
    stored = gguf_file.read(path).stored["model.layers.0.mlp.up_proj.weight"]
    with path.open("r+b") as file:
        file.seek(stored.start)
        file.write(np.array([0.5, -1.0], np.float16).tobytes() + bytes(i | (15 - i) << 4 for i in range(16)))
    first = dict(gguf_file.read(path).arrays())["model.layers.0.mlp.up_proj.weight"].reshape(-1)[:32]
    np.testing.assert_array_equal(first, [0.5 * q - 1 for q in [*range(16), *range(15, -1, -1)]])


def test_rows_of_queries_and_keys_are_moved_back(gguf_writer: Writer, weights: Weights, tmp_path: Path) -> None:
    """Written as 0, 8, 1, 9, ... (the rotated pairs side by side), read as 0, 1, 2, ..."""
    written = weights()
    for part, rows in (("q", 64), ("k", 32)):
        written[f"model.layers.0.self_attn.{part}_proj.weight"] = np.repeat(np.arange(rows, dtype=np.float32), 64)
        written[f"model.layers.0.self_attn.{part}_proj.weight"].shape = (rows, 64)
    path = gguf_writer(tmp_path / "x.gguf", written)
    raw = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    assert raw["blk.0.attn_q.weight"][:6, 0].tolist() == [0, 8, 1, 9, 2, 10]
    read = dict(gguf_file.read(path).arrays())
    for part, rows in (("q", 64), ("k", 32)):
        assert read[f"model.layers.0.self_attn.{part}_proj.weight"][:, 0].tolist() == list(range(rows))


def test_the_header_agrees_with_the_packages_own_reader(small: Path) -> None:
    read, theirs = gguf_file.read(small), gguf.GGUFReader(small)
    for key, value in read.values.all.items():
        found = theirs.fields[key].contents()
        assert (list(value) if isinstance(value, tuple) else value) == found, key
    assert sorted(t.start for t in read.stored.values()) == sorted(t.data_offset for t in theirs.tensors)
    assert [t.size for t in read.stored.values()] == [t.n_bytes for t in theirs.tensors]


# --- as a checkpoint ----------------------------------------------------------------------------------------


def test_it_is_the_network_of_the_same_weights_in_safetensors(
    gguf_writer: Writer, weights: Weights, tmp_path: Path
) -> None:
    for tied in (True, False):
        folder = tmp_path / f"tied {tied}"
        (folder / "one").mkdir(parents=True)
        path = gguf_writer(folder / "one" / "toy.gguf", weights(3, tied))
        lm, by_folder = DiffusionLM.from_pretrained(path), DiffusionLM.from_pretrained(path.parent)
        assert (lm.name, by_folder.name) == ("toy", "one")
        assert (lm.config.layout, lm.config.shift, lm.config.mask_token_id) == ("causal", True, 3)
        plain = folder / "plain"
        plain.mkdir()
        save_file({k: torch.from_numpy(v) for k, v in weights(3, tied).items()}, plain / "model.safetensors")
        (plain / "config.json").write_text(json.dumps(gguf_file.read(path).config()))
        ids = torch.arange(40).view(2, 20)
        expected = DiffusionLM.from_pretrained(plain).logits(ids)
        assert torch.equal(lm.logits(ids), expected)
        assert torch.equal(by_folder.logits(ids), expected)
        lm.save_pretrained(folder / "saved")
        again = DiffusionLM.from_pretrained(folder / "saved")
        assert torch.equal(again.logits(ids), expected)
        assert again.generate("the", 5, seed=1).token_ids == lm.generate("the", 5, seed=1).token_ids


def test_side_files_take_the_place_of_the_metadata(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf_file.read(small)
    (tmp_path / "toy.gguf").write_bytes(small.read_bytes())
    for name, text in file.side_files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "chat_template.jinja", "config.json", "tokenizer.json", "toy.gguf",
    ]  # fmt: skip
    assert Checkpoint.open(tmp_path).raw_config == file.config()
    tokenizer = Checkpoint.open(tmp_path).tokenizer
    assert tokenizer is not None
    assert tokenizer.to_str() == file.text.tokenizer().to_str()
    monkeypatch.setattr(gguf_file, "read", None)  # its header takes long to read, and is not needed
    found = Checkpoint.open(tmp_path)
    assert found.special_tokens["eos_token"] == "<|im_end|>"
    assert found.chat_template is not None


def test_a_llama_folder_without_a_mask_takes_a_free_control_token(
    gguf_writer: Writer, weights: Weights, tmp_path: Path
) -> None:
    file = gguf_file.read(gguf_writer(tmp_path / "x.gguf"))
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({k: torch.from_numpy(v) for k, v in weights().items()}, folder / "model.safetensors")
    config = {**file.config(), "mask_token_id": None, "eos_token_id": [2, 0]}
    (folder / "config.json").write_text(json.dumps(config))
    assert DiffusionLM.from_pretrained(folder).config.mask_token_id is None  # without a tokenizer: ids in, scores out
    (folder / "tokenizer.json").write_text(file.side_files()["tokenizer.json"])
    assert DiffusionLM.from_pretrained(folder).config.mask_token_id == 3
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 3}))
    lm = DiffusionLM.from_pretrained(folder)  # none is free: it scores text and does not write
    assert lm.config.mask_token_id is None
    assert lm.likelihood(["the end"])[0].tokens > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_llamas_that_would_be_read_wrongly_are_refused(
    change: dict[str, Any], words: str, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "toy.gguf").write_bytes(small.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**gguf_file.read(small).config(), **change}))
    assert words in refused(lambda: Checkpoint.open(tmp_path).network())


def test_reading_and_finding_need_no_torch(small: Path) -> None:
    code = """if True:
        import sys, types, pathlib
        package = types.ModuleType("unmask")  # without what the package itself imports
        package.__path__, path = [sys.argv[1]], pathlib.Path(sys.argv[2])
        sys.modules["unmask"] = package
        from unmask.checkpoints import hub
        from unmask.checkpoints import gguf as gguf_file
        assert hub.find(str(path)) == path
        file = gguf_file.read(path)
        file.side_files(), dict(file.arrays())
        assert "torch" not in sys.modules
    """
    package = Path(gguf_file.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, package, small], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- as converters write them ------------------------------------------------------------------------------

ARCH = gguf.MODEL_ARCH
SIZES: dict[str, Any] = {
    "vocab_size": 265, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "eos_token_id": 2, "mask_token_id": 3,
}  # fmt: skip
LLADA: dict[str, Any] = {
    "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 96, "max_sequence_length": 64,
    "embedding_size": 265, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "eos_token_id": 2, "mask_token_id": 3,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
LLADA_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "expert_intermediate_size": 32, "dense_intermediate_size": 96,
}  # fmt: skip


def diffuses(shift: bool) -> Callable[[gguf.GGUFWriter], None]:
    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_causal_attention(False)
        writer.add_diffusion_shift_logits(shift)
        writer.add_mask_token_id(3)

    return write


def experts(writer: gguf.GGUFWriter) -> None:
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(32)


CONVERTED: dict[str, tuple[ARCH, dict[str, Any], list[Callable[[gguf.GGUFWriter], None]]]] = {
    "LlamaForCausalLM": (ARCH.LLAMA, {**SIZES, "model_type": "llama"}, []),
    "Qwen2ForCausalLM": (ARCH.QWEN2, {**SIZES, "model_type": "qwen2", "mask_token_id": None}, []),
    "Qwen3ForCausalLM": (ARCH.QWEN3, {**SIZES, "model_type": "qwen3"}, []),
    "Qwen3MoeForCausalLM": (ARCH.QWEN3MOE, {**SIZES, **EXPERTS, "model_type": "qwen3_moe"}, [experts]),
    "RND1LM": (
        ARCH.RND1,
        {**SIZES, **EXPERTS, "model_type": "rnd1"},
        [experts, lambda writer: writer.add_causal_attention(False), lambda writer: writer.add_mask_token_id(3)],
    ),
    "DreamModel": (ARCH.DREAM, {**SIZES, "model_type": "Dream"}, [diffuses(True)]),
    "LLaDAModelLM": (ARCH.LLADA, {**LLADA, "model_type": "llada"}, [diffuses(False)]),
    "LLaDAMoEModelLM": (
        ARCH.LLADA_MOE, {**SIZES, **LLADA_EXPERTS, "model_type": "lladamoe"}, [diffuses(False), experts],
    ),
}  # fmt: skip


def random_weights(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config of CONVERTED, and random weights by their names."""
    raw = {**CONVERTED[name][1], "architectures": [name]}
    family = registry.recognise(raw, name)
    assert family is not None
    shapes = expected_shapes(on_meta(family.config(raw, name)), family)
    draw = np.random.default_rng(7)
    return raw, {key: draw.normal(0, 0.2, shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_converters_write_is_the_model_that_they_read(name: str, converter: Writer, tmp_path: Path) -> None:
    architecture, _, extras = CONVERTED[name]
    raw, written = random_weights(name)
    (tmp_path / "plain").mkdir()
    save_file({key: torch.from_numpy(values) for key, values in written.items()}, tmp_path / "plain/model.safetensors")
    (tmp_path / "plain/config.json").write_text(json.dumps(raw))
    path = converter(tmp_path / "x.gguf", architecture, written, lambda writer: [extra(writer) for extra in extras])
    lm, plain = DiffusionLM.from_pretrained(path, backend="torch"), DiffusionLM.from_pretrained(tmp_path / "plain")
    assert replace(lm.config, mask_token_id=None) == replace(plain.config, mask_token_id=None)
    assert lm.config.mask_token_id == 3
    assert lm.defaults.convention == plain.defaults.convention
    ids = torch.arange(40).view(2, 20)
    read = [token for token in range(265) if token != 3]  # the plain Qwen2 has no mask
    torch.testing.assert_close(lm.logits(ids)[..., read], plain.logits(ids)[..., read], rtol=0, atol=1e-5)


GEMMA: dict[str, tuple[ARCH, str, dict[str, Any], list[Callable[[gguf.GGUFWriter], None]]]] = {
    "gemma": (ARCH.GEMMA, "Gemma", {}, []),
    "gemma 3": (
        ARCH.GEMMA3,
        "Gemma3Text",
        {"sliding_window": 24, "num_hidden_layers": 7, "query_pre_attn_scalar": 24, "final_logit_softcapping": 5.0},
        [lambda w: w.add_sliding_window(24), lambda w: w.add_final_logit_softcapping(5.0)],
    ),
    "gemma 3 that rotates otherwise": (
        ARCH.GEMMA3,
        "Gemma3Text",
        {
            "sliding_window": 24,
            "query_pre_attn_scalar": 24,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        [
            lambda w: w.add_sliding_window(24),
            lambda w: w.add_sliding_window_pattern([False, True]),
            lambda w: w.add_rope_freq_base_swa(500.0),
            lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
            lambda w: w.add_rope_scaling_factor(8.0),
        ],
    ),
    "gemma 3 without a window": (
        ARCH.GEMMA3,
        "Gemma3Text",
        {"query_pre_attn_scalar": 24, "layer_types": ["full_attention"] * 2},
        [],
    ),
    "the largest gemma 3": (
        ARCH.GEMMA3,
        "Gemma3Text",
        {"num_hidden_layers": 62, "query_pre_attn_scalar": 16, "sliding_window": 24},
        [lambda w: w.add_sliding_window(24)],
    ),
}


@pytest.mark.parametrize("name", GEMMA)
def test_gemma_has_the_logits_of_transformers(name: str, converter: Writer, tmp_path: Path) -> None:
    """Converters add 1 to weights of norms; the folder that is saved is transformers' own again."""
    import transformers

    architecture, kind, options, extras = GEMMA[name]
    sizes = {**SIZES, "head_dim": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, **options}
    if kind == "Gemma3Text" and "rope_parameters" not in options:
        local = {"rope_type": "default", "rope_theta": 1e4}
        sizes["rope_parameters"] = {"full_attention": local, "sliding_attention": local}
    config = getattr(transformers, f"{kind}Config")(**{k: v for k, v in sizes.items() if k != "rope_theta"})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "norm" in parameter_name else 0.15)
    written = {key: values.detach().numpy() for key, values in model.named_parameters()}

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_key_length(24)
        writer.add_value_length(24)
        for add in extras:
            add(writer)

    path = converter(tmp_path / "x.gguf", architecture, written, extra, layers=config.num_hidden_layers)
    lm = DiffusionLM.from_pretrained(path, backend="torch")
    assert lm.config.layout == "causal"
    assert lm.config.mask_token_id == 3
    assert lm.config.max_length == (24 if "sliding_window" in options else 64)
    ids = torch.randint(4, 265, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = model(ids).logits
    read = [token for token in range(265) if token != 3]
    torch.testing.assert_close(lm.logits(ids)[:, 1:, read], theirs[:, :-1, read], atol=1e-4, rtol=1e-4)
    lm.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("attention.sliding_window", -3, "sliding_window"),
        ("attention.sliding_window_pattern", [True], "layer_types"),
        ("attention.sliding_window_pattern", 0, "sliding_window_pattern"),
        ("attn_logit_softcapping", 50.0, "attn_logit_softcapping"),
    ],
)
def test_a_gemma_file_of_another_build_is_refused(
    key: str, value: Any, words: str, converter: Writer, tmp_path: Path
) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        if "window" not in key or "pattern" in key:
            writer.add_sliding_window(24)
        name = f"gemma3.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            (writer.add_float32 if isinstance(value, float) else writer.add_int32)(name, value)

    path = converter(tmp_path / "x.gguf", ARCH.GEMMA3, {"model.embed_tokens.weight": np.ones((265, 64), "f4")}, extra)
    assert words in refused(lambda: DiffusionLM.from_pretrained(path))


@pytest.mark.skipif(native.library() is None, reason="installed without a C compiler")
@pytest.mark.parametrize("name", ["Qwen3MoeForCausalLM", "RND1LM", "LLaDAMoEModelLM"])
@pytest.mark.parametrize(("kind", "bits"), [(Kind.Q4_0, 4), (Kind.Q5_0, 8), (Kind.Q8_0, 8)])
def test_stacked_experts_keep_their_codes_in_the_native_forward(
    name: str, kind: Kind, bits: int, converter: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    architecture, _, extras = CONVERTED[name]
    _, written = random_weights(name)
    path = converter(
        tmp_path / "x.gguf", architecture, written, lambda writer: [extra(writer) for extra in extras], kind=kind
    )
    lms = {backend: DiffusionLM.from_pretrained(path, backend=backend) for backend in ("torch", "native-f32", "native")}
    ids = torch.arange(20)
    expected = lms["torch"].logits(ids[None], layout="bidirectional")[0].numpy()
    for computes in ("native-f32", "native"):
        backend: Any = lms[computes].backend
        columns = Columns(ids.numpy(), ids.numpy(), np.full(20, TEXT), np.arange(20), np.arange(20))
        backend.open(Layout("bidirectional"), 1, 20, True)
        ours = np.array(backend.forward(Feed.of([columns], np.array([0]))).text)
        if lms[computes].config.shift:  # the head scores the next position
            ours = np.concatenate([ours[:1], ours[:-1]])
        off = np.abs(ours - expected)[np.isfinite(ours)]
        assert off.max() < 1e-3 if computes == "native-f32" else off.mean() < 0.05 * expected.std()
    shapes = {part: backend.network.weights[f"layer.1.expert_{part}.shape"].tolist() for part in ("gate_up", "down")}
    assert shapes == {"gate_up": [64, 64, bits, 0], "down": [64, 32, bits, 0]}
    stored = gguf.quants.quantize(written["model.layers.1.mlp.experts.3.down_proj.weight"], kind)
    codes = native_groups(kind.name, stored.reshape(64, -1), 32)
    packed = backend.network.weights["layer.1.expert_down.blocks"]
    np.testing.assert_array_equal(packed[6:8], blocks(codes))  # two tiles of 32 outputs each


def test_keys_that_contradict_the_architecture_are_refused(converter: Writer, tmp_path: Path) -> None:
    for extra, words in ((diffuses(True), "shift_logits"), (lambda w: w.add_causal_attention(True), "causal")):
        file = gguf_file.read(converter(tmp_path / "x.gguf", ARCH.LLADA, {}, extra))
        with pytest.raises(UnmaskError, match=words):
            gguf_architectures.refuse_unread(file.values, file.architecture)


def test_split_files(converter: Writer, weights: Weights, tmp_path: Path) -> None:
    whole = converter(tmp_path / "whole.gguf", ARCH.LLAMA, weights(5))
    converter(tmp_path / "x.gguf", ARCH.LLAMA, weights(5), parts=8)
    files = sorted(tmp_path.glob("x-*.gguf"))
    assert [file.name for file in files] == [f"x-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    ids = torch.arange(20)[None]
    expected = DiffusionLM.from_pretrained(whole).logits(ids)
    whole.unlink()
    for path in (tmp_path, *files):
        lm = DiffusionLM.from_pretrained(path)
        assert torch.equal(lm.logits(ids), expected)
        assert lm.loaded is not None
        assert sorted(lm.loaded.weight_files()) == files
    files[1].rename(tmp_path / "other.bin")
    assert f"{files[1].name} is not there" in refused(lambda: gguf_file.read(files[0]))
    files[1].write_bytes(files[2].read_bytes())
    assert "part 2 of 3" in refused(lambda: gguf_file.read(files[0]))
    files[0].rename(tmp_path / "alone.gguf")
    assert "00001-of-" in refused(lambda: gguf_file.read(tmp_path / "alone.gguf"))


def test_ends_of_turns_end_answers(converter: Writer, weights: Weights, tmp_path: Path) -> None:
    path = converter(tmp_path / "x.gguf", ARCH.LLAMA, weights(), lambda writer: writer.add_eot_token_id(0))
    assert gguf_file.read(path).config()["eos_token_id"] == [2, 0]


# --- the tokenizer ------------------------------------------------------------------------------------------


def test_the_small_tokenizer(small: Path) -> None:
    tokenizer = gguf_file.read(small).text.tokenizer()
    assert tokenizer.encode("and the 12<|im_end|>").tokens == ["and", "Ġthe", "Ġ", "1", "2", "<|im_end|>"]
    text = "the cat\t½ 你好 😀\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_user_defined_tokens_are_never_split(gguf_writer: Writer, tmp_path: Path) -> None:
    def types(writer: gguf.GGUFWriter) -> None:
        kinds = writer.kv_data[0]["tokenizer.ggml.token_type"].value
        kinds[-1] = 4  # "and"

    tokenizer = gguf_file.read(gguf_writer(tmp_path / "x.gguf", extra=types)).text.tokenizer()
    assert tokenizer.encode("sandy").tokens == ["s", "and", "y"]
    assert tokenizer.decode(tokenizer.encode("sandy").ids) == "sandy"


def recorded() -> tuple[list[str], list[list[int]]]:
    """Texts and llama.cpp's tokens: prose, code, numbers, scripts, emoji, chat tokens, spaces, control characters."""
    fixture = json.loads(TOKENS.read_text(encoding="utf-8"))
    return fixture["texts"], fixture["ids"]


def test_smollm2_tokens_are_those_of_llama_cpp(smollm2: Path) -> None:
    lm_tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    for tokenizer in (lm_tokenizer, gguf_file.read(gguf_file.find(smollm2) or smollm2).text.tokenizer()):
        for text, ids in zip(*recorded(), strict=True):
            assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
            if "\x04" not in text:  # two control characters are not in the vocabulary
                assert tokenizer.decode(ids, skip_special_tokens=False) == text


def llama_cpp_tokens(path: Path, texts: list[str]) -> list[list[int]]:
    """What llama.cpp makes of texts with a file's tokenizer."""
    xllamacpp = pytest.importorskip("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.port, parameters.warmup = 64, 0, False
    parameters.cpuparams.n_threads = parameters.n_parallel = 1
    parameters.hostnames = ["127.0.0.1"]
    server = xllamacpp.Server(parameters)
    made = []
    for text in texts:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(f"{server.listening_address}/tokenize", body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            made.append(json.loads(answer.read())["tokens"])
    return made


def test_the_recorded_tokens_are_still_those_of_llama_cpp(smollm2: Path) -> None:
    texts, ids = recorded()
    assert llama_cpp_tokens(gguf_file.find(smollm2) or smollm2, texts) == ids


@pytest.mark.parametrize("pre", [*gguf_text.SPLITTING, "gemma4"])
def test_text_is_cut_as_llama_cpp_cuts_it(pre: str, gguf_writer: Writer, tmp_path: Path) -> None:
    """With merges across digits, spaces, ends of lines and apostrophes, which a cut between the two forbids."""
    space, line = ("▁", "\n") if pre == "gemma4" else ("Ġ", "Ċ")
    merges = [("1", "2"), (line, line), (space, space), ("'", "s"), (space, line)]
    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<spare>"]
    if pre == "gemma4":
        letters = [*"'\n▁", *map(chr, range(33, 39)), *map(chr, range(40, 127)), "é", "你"]
        first += letters + [f"<0x{byte:02X}>" for byte in range(265 - 9 - len(letters))]
    else:
        first += sorted(ByteLevel.alphabet())
    words = [*first, *(left + right for left, right in merges)]

    def own(writer: gguf.GGUFWriter) -> None:
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
        writer.add_tokenizer_model("gemma4" if pre == "gemma4" else "gpt2")

    path = gguf_writer(tmp_path / "x.gguf", words=words, pre=pre, extra=own)
    texts = ["12 123", "a \n\n  b", "  \n \n\n\nx", "it's 's\n\n", "12's  \n\n\n 1 2  ", "<|im_end|>\n\n12 é 你"]
    ours = gguf_file.read(path).text.tokenizer()
    assert [ours.encode(text, add_special_tokens=False).ids for text in texts] == llama_cpp_tokens(path, texts)


# --- the mask -----------------------------------------------------------------------------------------------


def test_a_free_token() -> None:
    special = {0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>", 5: "<tool>", 7: "<spare>"}
    assert free_token(special, [1, 2, None], None, "x") == 7
    assert free_token(special, [1, 2, 7], "... <tool> ...", "x") == 0
    for name in ("<mask>", "[MASK]", "<|mask|>", "<|mdm_mask|>"):
        assert free_token({**special, 3: name}, [1, 2], None, "x") == 3
    for name in ("<unmasked>", "<masks>"):
        assert free_token({3: name, **special}, [1, 2], None, "x") == 7
    message = refused(lambda: free_token(special, [1, 2, 7, 0], "<tool>", "x"))
    assert "mask_token_id" in message
    assert "control tokens" in refused(lambda: free_token({}, [], None, "x"))


def test_no_free_token(gguf_writer: Writer, tmp_path: Path) -> None:
    path = gguf_writer(tmp_path / "x.gguf", control=["<|im_start|>", "<|im_end|>"])
    message = refused(lambda: DiffusionLM.from_pretrained(path))
    assert "mask_token_id" in message
    config = {**gguf_file.read(gguf_writer(tmp_path / "y.gguf")).config(), "mask_token_id": 0}
    (tmp_path / "y.gguf").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))  # the remedy
    assert DiffusionLM.from_pretrained(tmp_path).config.mask_token_id == 0


# --- files that cannot be read ------------------------------------------------------------------------------


def test_types_and_models_that_cannot_be_read_are_named(gguf_writer: Writer, weights: Weights, tmp_path: Path) -> None:
    path, written = tmp_path / "x.gguf", weights()

    def other(kind: Kind, shape: tuple[int, ...]) -> Callable[[gguf.GGUFWriter], None]:
        return lambda writer: writer.add_tensor("output.weight", np.zeros(shape, np.uint8), raw_dtype=kind)

    for kind, shape in ((Kind.Q2_K, (265, 84)), (Kind.IQ2_XS, (265, 74)), (Kind.I8, (265, 64))):
        gguf_writer(path, written, extra=other(kind, shape))
        message = refused(lambda: gguf_file.read(path))
        assert kind.name in message
        assert "output.weight" in message
        assert "Q4_1" in message
    for other_one in ("qwen35", "gemma4", "llada2"):
        gguf_writer(path, written, architecture=other_one)
        message = refused(lambda: gguf_file.read(path))
        assert f"'{other_one}'" in message
        assert "safetensors" in message
    gguf_writer(path, written, architecture="gemma2")
    assert "Gemma2ForCausalLM is known but not read" in refused(lambda: gguf_file.read(path))
    gguf_writer(path, written, extra=lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.ones(8, np.float32)))
    assert "attn_sinks" in refused(lambda: gguf_file.read(path))
    gguf_writer(path, written, pre="tekken")
    assert "tokenizer.json" in refused(gguf_file.read(path).text.tokenizer)
    gguf_writer(path, written, extra=lambda w: w.add_expert_count(8))
    assert "llama.expert_count" in refused(gguf_file.read(path).config)
    gguf_writer(path, written, extra=lambda w: w.add_string("llama.rope.scaling.type", "longrope"))
    assert "llama.rope.scaling.type" in refused(gguf_file.read(path).config)


def test_files_that_are_not_there_or_not_gguf(tmp_path: Path, small: Path) -> None:
    path = tmp_path / "x.gguf"
    assert "x.gguf" in refused(lambda: gguf_file.read(path))
    for data in (b"", b"GG", b"PK\x03\x04" + bytes(100), b"GGUF", b"GGUF" + struct.pack("<IQQ", 99, 0, 0)):
        path.write_bytes(data)
        assert "x.gguf" in refused(lambda: gguf_file.read(path))
    path.write_bytes(small.read_bytes())
    (tmp_path / "y.gguf").write_bytes(small.read_bytes())
    assert "2 GGUF files" in refused(lambda: Checkpoint.open(tmp_path).network())


@pytest.mark.parametrize("count", [2**31, 2**40, 2**63, 2**64 - 1])
def test_absurd_counts_end_at_once(count: int, small: Path, tmp_path: Path) -> None:
    """Counts of tensors, values, list entries, dimensions and lengths of text, at every place of the header."""
    data, path = small.read_bytes(), tmp_path / "x.gguf"
    places = [8, 16, 24, data.index(b"tokenizer.ggml.tokens") + 29, data.index(b"tokenizer.ggml.token_type") + 33]
    places += [data.index(b"output_norm.weight") - 8, data.index(b"output_norm.weight") + 18 + 4]
    for place in places:
        path.write_bytes(data[:place] + struct.pack("<Q", count) + data[place + 8 :])
        assert "damaged" in refused(lambda: gguf_file.read(path))


def read_all(path: Path) -> None:
    """Everything that can be asked of a file."""
    read = gguf_file.read(path)
    read.side_files()
    for _ in read.arrays():
        pass
    checkpoint = Checkpoint.open(path)
    for part in (checkpoint.rows() or {}).values():
        part.values(1, 3)
    checkpoint.network()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_one_clear_line_or_harmless(data: st.DataObject, small: Path, tmp_path: Path) -> None:
    sound, path = small.read_bytes(), tmp_path / "x.gguf"
    header = min(t.start for t in gguf_file.read(small).stored.values())
    damaged = bytearray(sound)
    extremes = st.sampled_from([0, 1, 2**16, 2**24 - 1, 2**31, 2**32, 2**63, 2**64 - 1])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, header))
        kind = data.draw(st.sampled_from(["byte", "number", "cut", "cut short", "insert"]))
        if kind == "byte":
            damaged[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif kind == "number":
            width = data.draw(st.sampled_from([4, 8]))
            damaged[place : place + width] = struct.pack("<Q", data.draw(extremes))[:width]
        elif kind == "insert":
            damaged[place:place] = data.draw(st.binary(min_size=1, max_size=12))
        else:
            del damaged[place if kind == "cut" else len(damaged) - place :]
    path.write_bytes(damaged)
    message = ""
    try:
        read_all(path)
    except UnmaskError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1
    assert not message or message.isprintable()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (lambda w: w.add_expert_count(2**31), "num_experts"),
        (lambda w: w.add_expert_used_count(9), "experts_per_token 9"),
        (lambda w: w.add_key_length(2**20), "1048576 features"),
        (lambda w: w.add_block_count(2**31 - 1), "num_layers"),
        (lambda w: w.add_vocab_size(2**31), ""),
        (lambda w: w.add_head_count_kv(3), ""),
        (lambda w: w.add_uint32("split.count", 2**32 - 1), "00001-of-00003"),
        (lambda w: w.add_string("split.count", "3"), "00001-of-00003"),
        (lambda w: w.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((5000, 1, 32), np.float32)), "ffn_up_exps"),
        (lambda w: w.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((8, 32), np.float32)), "ffn_up_exps"),
        (lambda w: w.add_tensor("output.weight", np.zeros(34, np.uint8), raw_dtype=Kind.Q8_0), "single row"),
    ],
)
def test_absurd_sizes_are_one_line(extra: Any, words: str, converter: Writer, tmp_path: Path) -> None:
    def write(writer: gguf.GGUFWriter) -> None:
        experts(writer)
        diffuses(False)(writer)
        with suppress(ValueError):  # the package warns of a key that is there already
            extra(writer)

    embedding = {"model.embed_tokens.weight": np.zeros((265, 64), np.float32)}
    path = converter(tmp_path / "x.gguf", ARCH.LLADA_MOE, embedding, write)
    tracemalloc.start()
    message = refused(lambda: read_all(path))
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    assert words in message
