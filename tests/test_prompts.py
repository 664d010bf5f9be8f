"""Prompts of every kind to ids: text, chat messages, ids; and what is no prompt, refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.prompts import encode, frame, is_single, render_chat, start_of
from unmask.training.tokenizer import train_tokenizer

CHATML = """\
{% for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = train_tokenizer("bpe", ["hello there, you help the user and the assistant. " * 5], 300)
    made.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    return made


def config(tokenizer: Tokenizer, **options: Any) -> ModelConfig:
    return ModelConfig(tokenizer.get_vocab_size(), 8, 1, 1, 8, **options)


def ids(prompt: Any, tokenizer: Tokenizer | None, template: str | None = CHATML, **options: Any) -> list[list[int]]:
    size = 300 if tokenizer is None else tokenizer.get_vocab_size()
    return encode(prompt, tokenizer, template, ModelConfig(size, 8, 1, 1, 8, **options), "toy")


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UnmaskError) as caught:
        ids(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def test_a_chat_is_written_as_its_template_says_up_to_the_answer() -> None:
    system = "<|im_start|>system\nYou help.<|im_end|>\n"
    user, assistant = "<|im_start|>user\nhello<|im_end|>\n", "<|im_start|>assistant\n"
    assert render_chat(HELLO, CHATML, "toy") == system + user + assistant
    told = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert render_chat(told, CHATML, "toy") == "<|im_start|>system\nBe brief.<|im_end|>\n" + user + assistant
    assert render_chat(HELLO, CHATML, "toy", add_generation_prompt=False) == system + user
    turns = [*HELLO, {"role": "assistant", "content": "hello there"}, *HELLO]
    answered = "<|im_start|>assistant\nhello there<|im_end|>\n"
    assert render_chat(turns, CHATML, "toy") == system + user + answered + user + assistant


def test_a_chat_is_one_row_of_ids_with_its_control_tokens(tokenizer: Tokenizer) -> None:
    (row,) = ids(HELLO, tokenizer, bos_token_id=0)
    start, end = (tokenizer.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
    assert [token for token in row if token in (start, end)] == [start, end, start, end, start]
    assert tokenizer.decode(row, skip_special_tokens=False) == render_chat(HELLO, CHATML, "toy")


def test_a_template_is_read_in_a_sandbox(tokenizer: Tokenizer) -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    assert "chat template" in refused(HELLO, tokenizer, escape)
    assert "chat template" in refused(HELLO, tokenizer, "{{ messages.append(1) }}")


def test_text_and_ids(tokenizer: Tokenizer) -> None:
    hello, there = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("hello", "there"))
    assert ids("hello", tokenizer) == [hello]
    assert ids(["hello", "there"], tokenizer) == [hello, there]
    assert ids(hello, None) == [hello]
    assert ids([hello, there], None) == [hello, there]
    assert ids(torch.tensor(hello), None) == [hello]
    assert ids(torch.tensor([hello, hello]), None) == [hello, hello]


def test_an_empty_prompt_is_the_start_of_a_text(tokenizer: Tokenizer) -> None:
    for prompt in ("", [], [[]], [""]):
        assert ids(prompt, tokenizer, bos_token_id=3) == [[3]]
        assert ids(prompt, tokenizer) == [[]]
    assert ids(["", "hello"], tokenizer, bos_token_id=3)[0] == [3]


def test_which_prompts_ask_for_one_text() -> None:
    assert all(is_single(p) for p in ("hello", [], [1, 2], HELLO, torch.tensor([1, 2])))
    assert not any(is_single(p) for p in (["hello"], [[1, 2]], torch.tensor([[1, 2]])))


BAD_MESSAGES: list[Any] = [
    [*HELLO, "hello"],
    [*HELLO, {"role": "user"}],
    [{"content": "hello"}],
    [{"role": "user", "content": 7}],
    [{"role": "user", "content": None}],
    [{"role": ["user"], "content": "hello"}],
    [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
]


@pytest.mark.parametrize("messages", BAD_MESSAGES)
def test_bad_messages_are_refused(tokenizer: Tokenizer, messages: Any) -> None:
    message = refused(messages, tokenizer)
    assert "'role'" in message
    assert "'content'" in message


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system role') }}",
        "{% for m in messages %}{{ m['content'] }",
        "{% for m in messages %}\n\n{% endif %}",
        "{{ messages[9]['content'] }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1 // 0 }}",
        "{% include 'other' %}",
    ],
)
def test_a_template_that_fails_is_one_line(tokenizer: Tokenizer, template: str) -> None:
    message = refused(HELLO, tokenizer, template)
    assert "'toy'" in message
    assert "chat template" in message


def test_what_a_model_lacks_is_named(tokenizer: Tokenizer) -> None:
    assert "no chat template" in refused(HELLO, tokenizer, None)
    assert "tokenizer.json" in refused("hello", None)
    assert "tokenizer.json" in refused(HELLO, None)


BAD_PROMPTS: list[Any] = [
    7, None, {"role": "user"}, ("a",), ["a", 1], [1, "a"], [1.5], [True], [[1, 2], 3], [[1], None], [[1], "a"], [HELLO, "a"],  # noqa: E501
    [HELLO, [1]],
    [5, 10**6], [-1], [[1], [10**6]], torch.tensor(3), torch.tensor([0.5]), torch.tensor([[[1]]]),
]  # fmt: skip


@pytest.mark.parametrize("prompt", BAD_PROMPTS, ids=repr)
def test_what_is_no_prompt_is_refused(tokenizer: Tokenizer, prompt: Any) -> None:
    assert "prompt" in refused(prompt, tokenizer)


def test_a_list_of_conversations_is_a_batch(tokenizer: Tokenizer) -> None:
    other = [{"role": "user", "content": "help"}]
    assert ids([HELLO, other], tokenizer) == [*ids(HELLO, tokenizer), *ids(other, tokenizer)]
    assert not is_single([HELLO])
    assert is_single(HELLO)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda row: list(np.array(row)), np.uint16])
def test_ids_of_any_array_are_ids(kind: Any) -> None:
    for rows in ([[5, 6, 7]], [[1, 2], [3, 4]]):
        whole = kind(rows[0]) if len(rows) == 1 else kind(rows)
        assert ids(whole, None) == rows
        assert all(type(token) is int for row in ids(whole, None) for token in row)
    assert ids([kind([5, 6]), kind([7])], None) == [[5, 6], [7]]


def test_templates_are_given_the_special_tokens() -> None:
    """As in LLaDA-8B-Instruct's: the template writes the start itself."""
    template = (
        "{% for m in messages %}{% set c = m['content'] %}{% if loop.first %}{% set c = bos_token + c %}{% endif %}"
        "{{ c }}{% endfor %}{{ eos_token }}"
    )
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    assert render_chat(HELLO, template, "toy", special_tokens=named) == "<s>hello</s>"
    with pytest.raises(UnmaskError, match="'bos_token' is undefined"):
        render_chat(HELLO, template, "toy")


def test_templates_get_what_transformers_gives_them() -> None:
    """Recorded from transformers' apply_chat_template."""
    for template, written in (
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}", ""),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hello!"),
        ("{{ {'a': 'é', 'b': [1]} | tojson }}", '{"a": "é", "b": [1]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ {'é': 1} | tojson(true, 1) }}", '{\n "\\u00e9": 1\n}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ documents is none }} {{ enable_thinking }}", "True False"),
    ):
        assert render_chat(HELLO, template, "toy", enable_thinking=False) == written
    with pytest.raises(UnmaskError, match=r"refuses these messages \(no system role\)"):
        render_chat(HELLO, "{{ raise_exception('no system role') }}", "toy")


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": None}}}
ODD_MESSAGES: list[dict[str, Any]] = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "assistant", "content": "so", "tool_calls": None, "refusal": None, "reasoning_content": None},
    *(
        {"role": "assistant", "content": "so", name: "because"}
        for name in ("reasoning_content", "reasoning", "thinking")
    ),
    {"role": "assistant", "content": "so", "reasoning": "because", "thinking": "since"},
]


@pytest.mark.parametrize("message", ODD_MESSAGES, ids=repr)
def test_templates_get_messages_as_transformers_hands_them_over(message: dict[str, Any]) -> None:
    """What is null is not there, and reasoning has the names that templates know it by."""
    from transformers import PreTrainedTokenizerFast

    template = (
        "{% for m in messages %}{{ m.content }}{{ m['content'] ~ m.tool_calls | length }}{{ m | tojson }}"
        "{{ 'refusal' in m }}{{ m.thinking }}{{ m.reasoning_content is defined }}{% endfor %}"
    )
    theirs = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer("bpe", ["hello " * 5], 280))
    chat = [*HELLO, message]
    written = theirs.apply_chat_template(chat, chat_template=template, tokenize=False)
    assert render_chat(chat, template, "toy") == written
    assert "None" not in written


def test_a_template_of_several_is_taken_by_its_name() -> None:
    named = {"default": "plain", "tool_use": "tools: {{ tools | length }}"}
    assert render_chat(HELLO, named, "toy") == "plain"
    assert render_chat(HELLO, named, "toy", [{"type": "function"}]) == "tools: 1"
    assert render_chat(HELLO, {"default": "plain"}, "toy", [{"type": "function"}]) == "plain"
    with pytest.raises(UnmaskError, match="no chat template"):
        render_chat(HELLO, {"rag": "x"}, "toy")


def test_a_text_gets_the_start_that_its_tokenizer_adds_and_a_chat_no_second_one() -> None:
    made = train_tokenizer("bpe", ["hello there " * 5], 300)
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    start, end = (made.token_to_id(token) for token in ("<s>", "</s>"))
    plain = made.encode("hello", add_special_tokens=False).ids
    assert ids("hello", made) == [plain]
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    assert start_of(made) == [start]
    assert ids(["hello", "hello"], made) == [frame([start], plain)] * 2
    assert ids(HELLO, made, "<s>{{ messages[0].content }}") == [[start, *plain]]
    assert frame([start], plain, [7], end) == [start, *plain, 7, end]


def test_a_token_that_the_network_lacks_is_one_line() -> None:
    made = train_tokenizer("bpe", ["hello there " * 5], 300)
    made.add_special_tokens([AddedToken("<|im_start|>", special=True)])
    with pytest.raises(UnmaskError, match=r"holds the token '<\|im_start\|>', which the vocabulary of model 'toy'"):
        encode(HELLO, made, CHATML, ModelConfig(made.get_vocab_size() - 1, 8, 1, 1, 8), "toy")
