"""Prompts of every kind to ids: text, chat messages, ids; and what is no prompt, refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.prompts import encode, is_single, render_chat
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
    7, None, {"role": "user"}, ("a",), ["a", 1], [1, "a"], [1.5], [True], [[1, 2], 3], [[1], None], [[1], "a"], [HELLO],
    [5, 10**6], [-1], [[1], [10**6]], torch.tensor(3), torch.tensor([0.5]), torch.tensor([[[1]]]),
]  # fmt: skip


@pytest.mark.parametrize("prompt", BAD_PROMPTS, ids=repr)
def test_what_is_no_prompt_is_refused(tokenizer: Tokenizer, prompt: Any) -> None:
    assert "prompt" in refused(prompt, tokenizer)
