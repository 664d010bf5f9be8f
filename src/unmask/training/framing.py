"""How a document becomes token ids: where it starts and ends, and which of its tokens are learned."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from unmask.errors import UnmaskError
from unmask.prompts import frame, render_chat, start_of
from unmask.training.documents import Document

Ids = np.ndarray[Any, np.dtype[np.int32]]
Learned = np.ndarray[Any, np.dtype[np.bool_]]
HIDDEN = "."  # in `given`: a token that is to be learned
CONTROL = re.compile(r"<[|\uff5c][^<>|\uff5c\s{}]+[|\uff5c]>")  # a control token's name in a template
CHUNK = 2**20  # characters that are tokenised at once
LONGEST = 2**22  # characters of a text that is tokenised as one; longer ones are cut at a line


@dataclass(frozen=True)
class Framing:
    """One document as ids, exactly as generation will feed it.

    Text is put between ends of text. A prompt begins as the tokenizer begins texts (with a start token or without) and
    its response ends with the end of text. A conversation is written by the chat template; what comes after the
    template's own opening of an answer is learned. mask: an id that no document may hold.
    """

    tokenizer: Tokenizer
    eos: int
    mask: int | None = None
    template: str | Mapping[str, str] | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # that a template may name
    model: str = "the recipe"
    answer_by_answer: bool = False  # a conversation is one document for each answer, learned alone

    @cached_property
    def _unknown(self) -> list[str]:
        """Control tokens that the template names and the tokenizer does not have."""
        templates = self.template.values() if isinstance(self.template, Mapping) else [self.template or ""]
        named = {*self.special_tokens.values(), *(name for each in templates for name in CONTROL.findall(each))}
        return sorted(name for name in named if name and self.tokenizer.token_to_id(name) is None)

    def describe(self) -> str:
        """What decides the ids, for a key."""
        return repr((self.tokenizer.to_str(), self.eos, self.template, self.special_tokens, self.answer_by_answer))

    def pieces(self, documents: Iterable[Document]) -> Iterator[tuple[Ids, Learned]]:
        """Ids of every document and which of them are learned."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        start = start_of(self.tokenizer)
        for group in _chunks(documents):
            prompts = self._encode([d.prompt for d in group])
            texts = self._encode([d.text for d in group])
            for document, prompt, text in zip(group, prompts, texts, strict=True):
                for ids, learned in self._framed(document, start, prompt, text):
                    if self.mask is not None and (ids == self.mask).any():
                        name = self.tokenizer.id_to_token(self.mask)
                        raise UnmaskError(
                            f"the corpus holds the text '{name}', which is the mask token"
                            f"{document.source and f' ({document.source})'}; take it out"
                        )
                    yield ids, learned

    def _framed(
        self, document: Document, start: list[int], prompt: list[int], text: list[int]
    ) -> Iterator[tuple[Ids, Learned]]:
        if document.messages:
            yield from self._conversation(document)
        elif document.given:
            if len(text) != len(document.given):
                raise UnmaskError(f"{document.source}: {len(text)} tokens on a canvas of {len(document.given)}")
            yield np.asarray(text, np.int32), np.array([mark == HIDDEN for mark in document.given])
        else:
            begins = start if document.prompt else start or [self.eos]
            ids = np.asarray(frame(begins, prompt, text, self.eos), np.int32)
            learned = np.ones(len(ids), bool)
            learned[: len(begins) + len(prompt) if document.prompt else 0] = False
            yield ids, learned

    def _encode(self, texts: list[str]) -> list[list[int]]:
        pieces = [list(_cut(text)) for text in texts]
        flat = self.tokenizer.encode_batch_fast([p for each in pieces for p in each], add_special_tokens=False)
        ids = iter(flat)
        return [[i for piece in itertools.islice(ids, len(each)) for i in piece.ids] for each in pieces]

    def _conversation(self, document: Document) -> Iterator[tuple[Ids, Learned]]:
        """The rendered conversation; what a prefix that asks for an answer does not hold yet is learned."""
        messages = list(document.messages)
        tools = list(document.tools) or None
        parts: list[tuple[str, bool]] = []  # what is given and what is learned, in turns
        done = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            opened = self._render(messages[:number], tools, True, document.source)
            answered = self._render(messages[: number + 1], tools, False, document.source)
            if not opened.startswith(done) or not answered.startswith(opened):
                raise UnmaskError(
                    f"{document.source}: the chat template hides where turn {number + 1} begins or ends, so it "
                    "cannot be learned; take a template that writes turns one after another"
                )
            if answered == opened and (message.get("content") or message.get("tool_calls")):
                raise UnmaskError(
                    f"{document.source}: the chat template leaves turn {number + 1} out, so it cannot be learned; "
                    "take a template that writes answers, or rows of prompt and response"
                )
            for name in self._unknown:
                if name in answered:
                    raise UnmaskError(
                        f"{document.source}: the chat template writes {name}, which the tokenizer of {self.model} does "
                        "not have as a token; they are of different models, take the template that belongs to it"
                    )
            parts += [(opened[len(done) :], False), (answered[len(opened) :], True)]
            done = answered
        ids: list[int] = []
        learned: list[bool] = []
        for (_, learn), piece in zip(parts, self._encode([text for text, _ in parts]), strict=True):
            ids += piece
            learned += [learn] * len(piece)
            if learn and self.answer_by_answer:
                yield self._ended(ids, [False] * (len(ids) - len(piece)) + [True] * len(piece))
        if not self.answer_by_answer:
            yield self._ended(ids, learned)

    def _ended(self, ids: list[int], learned: list[bool]) -> tuple[Ids, Learned]:
        """A last answer without a control token at its end gets the end of text; what follows one is dropped."""
        control = {i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        first = len(learned) - learned[::-1].index(False) if False in learned else 0  # of the last answer
        last = max((i for i, token in enumerate(ids) if token in control and i >= first), default=None)
        if last is not None and not self.tokenizer.decode(ids[last + 1 :]).strip():
            return np.asarray(ids[: last + 1], np.int32), np.asarray(learned[: last + 1], bool)
        return np.asarray([*ids, self.eos], np.int32), np.asarray([*learned, True], bool)

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, opened: bool, source: str
    ) -> str:
        if self.template is None:
            raise UnmaskError(f"{source}: 'messages' need a chat template, and {self.model} has none")
        try:
            return render_chat(
                messages, self.template, self.model, tools, self.special_tokens, add_generation_prompt=opened
            )
        except UnmaskError as error:
            raise UnmaskError(f"{source}: {error}") from None


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about CHUNK characters."""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text) + len(document.prompt)
        if size >= CHUNK:
            yield group
            group = []
            size = 0
    if group:
        yield group


def _cut(text: str) -> Iterator[str]:
    """A very long text in pieces that end with a line, for tokenising takes a hundred times its size."""
    while len(text) > LONGEST:
        end = text.rfind("\n", 0, LONGEST) + 1 or LONGEST
        yield text[:end]
        text = text[end:]
    yield text
