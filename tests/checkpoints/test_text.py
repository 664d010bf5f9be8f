"""The text side of checkpoints, beside transformers: special tokens, templates, tokenizers; all of it comes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from unmask import DiffusionLM, UnmaskError
from unmask.checkpoints import gguf as gguf_file
from unmask.checkpoints.open import Checkpoint
from unmask.checkpoints.tokens import read_tokenizer

Writer = Callable[..., Path]
WORDS = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", *(chr(i) for i in range(32, 127)), "hello", "world"]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
BOS = (
    "{% for m in messages %}{% set c = m['content'] %}{% if loop.first %}{% set c = bos_token + c %}{% endif %}"
    "{{ c }}{% endfor %}"
)
TOOLS = "{% if tools %}{{ tools | length }} tools {% endif %}" + BOS
CHAT = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(WORDS[:5])
    return tokenizer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama folder with a tokenizer and no other text files, not to be written to."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("text") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "llama"))


def write(folder: Path, name: str, content: Any) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def theirs(folder: Path, **options: Any) -> str:
    """The chat as transformers writes it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text: str = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True, **options)
    return text


def ours(folder: Path, tools: Any = None) -> str:
    text: str = DiffusionLM.from_pretrained(folder).render_chat(CHAT, tools)
    return text


# --- special tokens in templates ----------------------------------------------------------------------------


@pytest.mark.parametrize("role", NAMED)
@pytest.mark.parametrize("shape", ["text", "added token", "special_tokens_map"])
def test_special_tokens_are_handed_to_templates(role: str, shape: str, folder: Path) -> None:
    template = BOS.replace("bos_token", role)
    value: Any = NAMED[role]
    if shape == "added token":
        value = {"__type": "AddedToken", "content": value, "special": True}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    if shape == "special_tokens_map":
        write(folder, "special_tokens_map.json", {role: value})
    else:
        config[role] = value
    write(folder, "tokenizer_config.json", config)
    assert ours(folder) == theirs(folder) == NAMED[role] + "hello"


@pytest.mark.parametrize(
    ("config", "roles"),
    [
        ({"bos_token": "<s>"}, {"bos_token": "</s>"}),
        ({"bos_token": None}, {"bos_token": "</s>"}),
        ({"eos_token": "</s>"}, {"bos_token": "<s>", "additional_special_tokens": ["<mask>"]}),
        ({"image_token": "<mask>", "extra_special_tokens": {"audio_token": "<unk>"}}, {}),
        ({"tokenizer_class": "LlamaTokenizerFast"}, {}),
        ({"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<pad>"}, {}),
    ],
)
def test_special_tokens_are_those_of_transformers(config: dict[str, Any], roles: dict[str, Any], folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    write(folder, "special_tokens_map.json", roles)
    assert Checkpoint.open(folder).special_tokens == AutoTokenizer.from_pretrained(folder).special_tokens_map


def test_special_tokens_of_a_gguf_are_those_of_its_ids(gguf_writer: Writer, tmp_path: Path) -> None:
    def template(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.chat_template"].value = "{{ bos_token }}{{ eos_token }}{{ unk_token }}"
        writer.add_unk_token_id(0)

    path = gguf_writer(tmp_path / "x.gguf", extra=template)
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    assert Checkpoint.open(path).special_tokens == {**tokens, "pad_token": "<|im_end|>"}
    assert DiffusionLM.from_pretrained(path).render_chat(CHAT) == "<|im_start|><|im_end|><|endoftext|>"


def test_special_tokens_without_any_file_are_those_of_the_config(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**raw, "bos_token_id": 0, "eos_token_id": 1})
    assert Checkpoint.open(folder).special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}


# --- templates ----------------------------------------------------------------------------------------------


def places(folder: Path) -> dict[str, Callable[[], None]]:
    """Ways to keep a default template and one for tools."""
    pair = [{"name": "default", "template": BOS}, {"name": "tool_use", "template": TOOLS}]
    own = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}
    return {
        "list": lambda: write(folder, "tokenizer_config.json", {**own, "chat_template": pair}),
        "jinja": lambda: write(folder, "chat_template.jinja", TOOLS),
        "folder": lambda: (
            write(folder, "chat_template.jinja", BOS),
            write(folder, "additional_chat_templates/tool_use.jinja", TOOLS),
        )[0],
        "newer beside older": lambda: (
            write(folder, "tokenizer_config.json", {**own, "chat_template": "older"}),
            write(folder, "chat_template.jinja", TOOLS),
        )[0],
    }


@pytest.mark.parametrize("place", ["list", "jinja", "folder", "newer beside older"])
def test_templates_are_found_where_hub_folders_keep_them(place: str, folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED})
    places(folder)[place]()
    assert ours(folder) == theirs(folder) == "<s>hello"
    assert ours(folder, [TOOL]) == theirs(folder, tools=[TOOL]) == "1 tools <s>hello"


@pytest.mark.parametrize(
    "value",
    [BOS, [{"name": "default", "template": BOS}], {"default": BOS, "tool_use": TOOLS}],
    ids=["text", "list", "mapping"],
)
def test_a_template_in_a_file_of_its_own(value: Any, folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED})
    write(folder, "chat_template.json", {"chat_template": value})
    assert ours(folder) == "<s>hello"


def test_a_gguf_may_hold_several_templates(gguf_writer: Writer, tmp_path: Path) -> None:
    def template(writer: gguf.GGUFWriter) -> None:
        writer.add_string("tokenizer.chat_template.tool_use", "tools")

    path = gguf_writer(tmp_path / "x.gguf", extra=template)
    assert DiffusionLM.from_pretrained(path).render_chat(CHAT, [TOOL]) == "tools"
    assert DiffusionLM.from_pretrained(path).render_chat(CHAT) == "<|im_start|>user\nhello<|im_end|>\n"


# --- the tokenizer ------------------------------------------------------------------------------------------


def test_truncation_and_padding_saved_in_a_tokenizer_are_ignored(folder: Path) -> None:
    write(folder, "config.json", {**json.loads((folder / "config.json").read_text()), "bos_token_id": 0})
    expected = DiffusionLM.from_pretrained(folder).likelihood(["hello" * 8])[0].nats
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=32, pad_id=2, pad_token="<pad>")
    tokenizer.save(str(folder / "tokenizer.json"))
    lm = DiffusionLM.from_pretrained(folder)
    assert len(lm.encode("hello" * 8)[0]) == 40
    assert len(lm.encode("hi")[0]) == 2
    assert lm.likelihood(["hello" * 8])[0].nats == expected
    assert len(read_tokenizer(folder / "tokenizer.json").encode("hello" * 8).ids) == 40  # training's way


def test_a_start_that_the_post_processor_puts_is_put_once(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED})
    write(folder, "chat_template.jinja", BOS)
    lm = DiffusionLM.from_pretrained(folder)
    assert lm.encode("hi") == [AutoTokenizer.from_pretrained(folder)("hi")["input_ids"]]
    assert lm.encode(CHAT)[0].count(0) == 1


def test_a_gguf_that_adds_a_start_has_one(gguf_writer: Writer, tmp_path: Path) -> None:
    path = gguf_writer(tmp_path / "x.gguf", extra=lambda writer: writer.add_add_bos_token(True))
    assert DiffusionLM.from_pretrained(path).encode("the")[0][0] == 1
    assert DiffusionLM.from_pretrained(gguf_writer(tmp_path / "y.gguf")).encode("the")[0][0] != 1


def test_an_added_token_beyond_the_embedding_is_one_line(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(["<tool>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "chat_template.jinja", "<tool>{{ messages[0]['content'] }}")
    lm = DiffusionLM.from_pretrained(folder)
    with pytest.raises(UnmaskError, match="'<tool>'") as caught:
        lm.generate(CHAT, 2)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("place", ["tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("name", ["<|im_end|>", "hello"], ids=["new", "of the vocabulary"])
def test_tokens_that_only_files_beside_the_tokenizer_add(place: str, name: str, folder: Path, tmp_path: Path) -> None:
    """A text that holds one has its id, as in transformers; it ends an answer, and comes back when saved."""
    id = make_tokenizer().token_to_id(name) or len(WORDS)
    raw = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[key] = torch.cat([weights[key], weights[key][:1]])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write(folder, "config.json", {**raw, "vocab_size": len(WORDS) + 1})
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED, "eos_token": name}
    if place == "tokenizer_config.json":
        config["added_tokens_decoder"] = {str(id): {"content": name, "special": True, "normalized": False}}
    else:
        write(folder, place, {name: id})
    write(folder, "tokenizer_config.json", config)
    write(folder, "chat_template.jinja", "{{ messages[0].content }}{{ eos_token }}a")
    lm = DiffusionLM.from_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert lm.encode(f"ab{name} c") == [theirs(f"ab{name} c")["input_ids"]]
    assert lm.encode([{"role": "user", "content": "b"}])[0][1] == id == lm.config.eos_token_id
    assert lm.tokenizer is not None
    assert lm.tokenizer.decode([id, 40]) == theirs.decode([id, 40], skip_special_tokens=True) == WORDS[40]
    lm.save_pretrained(tmp_path / "again")
    assert described(DiffusionLM.from_pretrained(tmp_path / "again")) == described(lm)


def test_an_added_token_whose_id_is_no_number_of_a_vocabulary_is_left_out(folder: Path) -> None:
    odd = {"9" * 5000: {"content": "<|odd|>"}, "-1": {"content": "<|less|>"}}
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": odd, **NAMED})
    tokenizer = DiffusionLM.from_pretrained(folder).tokenizer
    assert tokenizer is not None
    assert tokenizer.token_to_id("<|odd|>") is tokenizer.token_to_id("<|less|>") is None


def test_a_named_token_that_no_id_says_is_added_is_special(folder: Path) -> None:
    write(folder, "special_tokens_map.json", {"additional_special_tokens": [], "eos_token": "world"})
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED})
    lm = DiffusionLM.from_pretrained(folder)
    assert lm.encode("aworld") == [AutoTokenizer.from_pretrained(folder)("aworld")["input_ids"]]
    assert lm.encode("aworld")[0][-1] == WORDS.index("world")


def test_an_added_token_with_an_id_that_it_cannot_have_is_refused(folder: Path) -> None:
    write(folder, "added_tokens.json", {"<|im_end|>": len(WORDS) + 3})
    with pytest.raises(UnmaskError, match=r"'<\|im_end\|>' has id 105 .* where it would be 102"):
        _ = DiffusionLM.from_pretrained(folder).tokenizer


# --- absent ids, ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["pad_token_id", "bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [-1, [-1]])
def test_ids_below_zero_are_none(role: str, value: Any, folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    write(
        folder, "config.json", {**raw, role: value[0] if role != "eos_token_id" and isinstance(value, list) else value}
    )
    assert getattr(Checkpoint.open(folder).config, role) is None


def test_a_list_of_ends_is_read_without_those_below_zero(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**raw, "eos_token_id": [-1, 1, 3]})
    found = Checkpoint.open(folder)
    assert (found.config.eos_token_id, found.defaults.eos_token_ids) == (1, (3,))


@pytest.mark.parametrize("end", ["eot", "eom"])
def test_the_ends_of_turns_of_a_gguf_end_an_answer(end: str, gguf_writer: Writer, tmp_path: Path) -> None:
    def ends(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32(f"tokenizer.ggml.{end}_token_id", 0)

    found = Checkpoint.open(gguf_writer(tmp_path / "x.gguf", extra=ends))
    assert (found.config.eos_token_id, found.defaults.eos_token_ids) == (2, (0,))


def test_an_end_of_turns_is_found_by_its_name(gguf_writer: Writer, tmp_path: Path) -> None:
    def ends(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.eos_token_id"].value = 0

    found = Checkpoint.open(gguf_writer(tmp_path / "x.gguf", extra=ends))
    assert (found.config.eos_token_id, found.defaults.eos_token_ids) == (0, (2,))


@pytest.mark.parametrize("id", [2**32 - 1, 5000])
def test_ids_of_a_gguf_outside_its_vocabulary_are_none(id: int, gguf_writer: Writer, tmp_path: Path) -> None:
    def pad(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.padding_token_id"].value = id

    assert Checkpoint.open(gguf_writer(tmp_path / "x.gguf", extra=pad)).config.pad_token_id is None


# --- saving -------------------------------------------------------------------------------------------------


def described(lm: DiffusionLM) -> dict[str, Any]:
    """All that a text meets in a model."""
    found = lm.loaded
    assert found is not None
    ids = {role: getattr(lm.config, f"{role}_token_id") for role in ("mask", "eos", "bos", "pad")}
    return {
        **ids,
        "templates": found.templates,
        "special": found.special_tokens,
        "defaults": lm.defaults,
        "tokenizer": lm.tokenizer.to_str() if lm.tokenizer is not None else None,
        "logits": lm.logits([[5, 6, 7]]).tolist(),
    }


@pytest.mark.parametrize("place", ["list", "jinja", "folder", "newer beside older"])
def test_what_was_loaded_comes_back(place: str, folder: Path, tmp_path: Path) -> None:
    write(folder, "special_tokens_map.json", {"mask_token": "<mask>"})
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED})
    write(folder, "generation_config.json", {"eos_token_id": [1, 3]})
    places(folder)[place]()
    lm = DiffusionLM.from_pretrained(folder)
    assert (lm.config.eos_token_id, lm.config.mask_token_id) == (1, 4)
    lm.save_pretrained(tmp_path / "again")
    assert described(DiffusionLM.from_pretrained(tmp_path / "again")) == described(lm)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == json.loads((folder / name).read_text())
    lm.save_pretrained(folder)  # onto itself
    assert described(DiffusionLM.from_pretrained(folder)) == described(lm)


@pytest.mark.parametrize("full", [False, True], ids=["saved", "disk full"])
def test_a_model_saved_over_another_is_it_alone_or_the_other_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """Nothing of two models is mixed: templates, shards, what names a base, and what decodes."""
    place = tmp_path / "place"
    shutil.copytree(folder, place)
    write(place, "tokenizer_config.json", {"chat_template": "{{ messages }}", **NAMED})
    write(place, "generation_config.json", {"eos_token_id": [1, 3]})
    write(place, "added_tokens.json", {})
    (place / "notes.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    other = DiffusionLM.from_pretrained(Path(__file__).parents[1] / "conformance" / "mdlm")
    if full:

        def fail(tensors: Any, path: str, metadata: Any = None) -> None:
            raise OSError(28, "No space left on device", path)

        monkeypatch.setattr(safetensors.torch, "save_file", fail)
        with pytest.raises(UnmaskError, match="No space left"):
            other.save_pretrained(place)
        assert {path.name: path.read_bytes() for path in place.iterdir()} == before
        return
    for name, content in {"adapter.json": "{}", "model-00001-of-00002.safetensors": "old"}.items():
        (place / name).write_text(content)
    other.save_pretrained(place)
    other.save_pretrained(tmp_path / "alone")
    names = {path.name for path in place.iterdir()}
    assert names == {"notes.md", *(path.name for path in (tmp_path / "alone").iterdir())}
    assert described(DiffusionLM.from_pretrained(place)) == described(other)


def test_a_saved_gguf_is_the_model_that_it_was(gguf_writer: Writer, tmp_path: Path) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_string("tokenizer.chat_template.tool_use", "tools")
        writer.add_uint32("tokenizer.ggml.eot_token_id", 0)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(True)

    lm = DiffusionLM.from_pretrained(gguf_writer(tmp_path / "x.gguf", extra=more))
    lm.save_pretrained(tmp_path / "again")
    again = DiffusionLM.from_pretrained(tmp_path / "again")
    assert described(again) == described(lm)
    assert theirs(tmp_path / "again") == again.render_chat(CHAT)


def test_a_family_known_by_its_folders_name_is_known_under_another(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "diffullama")
    raw = json.loads((plain / "config.json").read_text())
    write(tmp_path / "diffullama", "config.json", {**raw, "mask_token_id": 4})
    lm = DiffusionLM.from_pretrained(tmp_path / "diffullama")
    lm.save_pretrained(tmp_path / "other")
    again = DiffusionLM.from_pretrained(tmp_path / "other")
    assert again.config == lm.config
    assert again.loaded is not None
    assert again.loaded.family is lm.loaded.family  # type: ignore[union-attr]


# --- tied heads ---------------------------------------------------------------------------------------------


def tie(folder: Path, head: torch.Tensor | None, embedding: bool = True) -> None:
    """Makes the folder one of a tied network that stores a head."""
    raw = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**raw, "tie_word_embeddings": True})
    tensors = load_file(folder / "model.safetensors")
    if head is None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    else:
        tensors["lm_head.weight"] = head
    if not embedding:
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("case", ["equal", "different", "only the head"])
def test_a_tied_network_that_stores_its_head(
    case: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import LlamaForCausalLM

    head = torch.randn(len(WORDS), 32, generator=torch.Generator().manual_seed(1)) if case == "different" else None
    tie(folder, head, case != "only the head")
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        expected = model(ids).logits
    lm = DiffusionLM.from_pretrained(folder)
    torch.testing.assert_close(lm.logits(ids)[:, 1:], expected[:, :-1], atol=1e-4, rtol=1e-4)
    assert ("not tied" in caplog.text) == (case == "different")
    assert lm.config.tie_embeddings == (case != "different")
    lm.save_pretrained(tmp_path / "again")
    assert torch.equal(DiffusionLM.from_pretrained(tmp_path / "again").logits(ids), lm.logits(ids))


def test_a_tied_head_of_another_shape_is_refused(folder: Path) -> None:
    tie(folder, torch.zeros(3, 32))
    with pytest.raises(UnmaskError, match=r"lm_head\.weight"):
        DiffusionLM.from_pretrained(folder, backend="torch")  # others read weights at first use


# --- GGUF positions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({"scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scaling.type": "linear", "scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scaling.type": "none", "scaling.factor": 4.0}, {"rope_type": "default"}),
        ({"scaling.factor": 2.0, "scale_linear": 4.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 16},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        ),
    ],
)
def test_scaling_of_a_ggufs_positions(
    keys: dict[str, Any], rope: dict[str, Any], gguf_writer: Writer, weights: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    def scaled(writer: gguf.GGUFWriter) -> None:
        for key, value in keys.items():
            add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
            add(f"llama.rope.{key}", value)

    path = gguf_writer(tmp_path / "x.gguf", weights(1), extra=scaled)
    raw = gguf_file.read(path).config()
    config = LlamaConfig(**{**raw, "rope_parameters": {"rope_theta": 10000.0, **rope}})
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights(1).items()}, strict=False)
    model.tie_weights()
    ids = torch.arange(20, 60)[None]
    with torch.inference_mode():
        expected = model(ids).logits
    lm = DiffusionLM.from_pretrained(path)
    torch.testing.assert_close(lm.logits(ids)[:, 1:], expected[:, :-1], atol=1e-4, rtol=1e-4)
    lm.save_pretrained(tmp_path / "again")
    saved = LlamaForCausalLM.from_pretrained(tmp_path / "again").eval()
    with torch.inference_mode():
        torch.testing.assert_close(saved(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_factors_of_a_ggufs_frequencies(gguf_writer: Writer, weights: Callable[..., Any], tmp_path: Path) -> None:
    """rope_freqs.weight divides each pair's frequency (llama.cpp); positions times two, so, is a factor of a half."""
    import numpy as np

    factors = np.array([1.0, 2.0, 4.0, 4.0, 8.0, 8.0, 8.0, 8.0], np.float32)

    def scaled(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors)

    lm = DiffusionLM.from_pretrained(gguf_writer(tmp_path / "x.gguf", weights(1), extra=scaled))
    assert lm.config.rope_factors == tuple(factors.tolist())
    lm.save_pretrained(tmp_path / "again")
    ids = torch.arange(20, 60)[None]
    assert torch.equal(DiffusionLM.from_pretrained(tmp_path / "again").logits(ids), lm.logits(ids))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"rope.scaling.type": "longrope"}, "longrope"),
        ({"rope.scaling.attn_factor": 2.0}, "other factors"),
        ({"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
        ({"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ({"attention.scale": 0.5}, "attention.scale"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"attention.causal": False}, "attention.causal"),
        ({"attention.sliding_window": 64}, "sliding_window"),
        ({"attention.value_length": 8}, "different widths"),
        ({"rope.scale_linear": float("inf")}, "scale_linear"),
        ({"rope.scaling.factor": -2.0}, "stretches"),
    ],
)
def test_keys_of_a_gguf_that_are_not_read_are_refused(
    keys: dict[str, Any], named: str, gguf_writer: Writer, tmp_path: Path
) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        for key, value in keys.items():
            kinds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, bool: writer.add_bool}
            kinds[type(value)](f"llama.{key}", value)

    with pytest.raises(UnmaskError, match=named) as caught:
        Checkpoint.open(gguf_writer(tmp_path / "x.gguf", extra=more))
    assert len(str(caught.value).splitlines()) == 1


def test_the_only_template_is_the_plain_one_whatever_its_name(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {**NAMED, "chat_template": [{"name": "chat", "template": BOS}]})
    assert ours(folder) == "<s>hello"


def test_an_adapter_beside_the_weights_is_said_not_to_be_applied(folder: Path) -> None:
    write(folder, "adapter_config.json", {"peft_type": "LORA"})
    write(folder, "adapter_model.safetensors", "")
    assert "not applied" in Checkpoint.open(folder).notes[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("embedding_multiplier", 12.0), ("final_logit_softcapping", 30.0), ("rotary_pct", 0.5), ("use_logn_attn", True)],
)
def test_keys_of_other_networks_are_refused_by_name(key: str, value: Any, folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**raw, key: value})
    with pytest.raises(UnmaskError, match=key):
        Checkpoint.open(folder)
