"""How answers look: OpenAI's objects, with what diffusion adds."""

from __future__ import annotations

import math
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from unmask.canvas import Frame
from unmask.decoding.request import Alternatives
from unmask.serving.api.planner import Plan
from unmask.serving.api.tool_calls import CallReader
from unmask.serving.api.writer import BROKEN, SHADE, Writer, Written
from unmask.structured.tool_calls import CallForm
from unmask.structured.vocabulary import byte_letters

LOWEST = -9999.0  # in place of minus infinity, which JSON does not have


@dataclass(frozen=True)
class AnswerFormat:
    """One kind of answer. `chat`: text in messages; otherwise in `text` fields."""

    whole: str  # object name of an answer
    chunk: str  # and of a part of a stream
    chat: bool
    prefix: str  # of its id
    gaps: bool = False  # choices tell what was written into each gap


CHAT = AnswerFormat("chat.completion", "chat.completion.chunk", chat=True, prefix="chatcmpl-")
TEXT = AnswerFormat("text_completion", "text_completion", chat=False, prefix="cmpl-")
INFILL = AnswerFormat("infill.completion", "infill.completion.chunk", chat=False, prefix="infill-", gaps=True)
EDIT = AnswerFormat("edit.completion", "edit.completion.chunk", chat=True, prefix="edit-")
APPLY = AnswerFormat("apply.completion", "apply.completion.chunk", chat=True, prefix="apply-")


@dataclass
class Answer:
    """What all parts of one answer share."""

    format: AnswerFormat
    plan: Plan
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = self.format.prefix + uuid.uuid4().hex

    def head(self, kind: str) -> dict[str, Any]:
        base = {"id": self.id, "object": kind, "created": self.created, "model": self.plan.name}
        return {**base, "system_fingerprint": None, "seed": self.plan.seed}

    def whole(self, outcomes: list[Written], writers: list[Writer]) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for index, (written, writer) in enumerate(zip(outcomes, writers, strict=True)):
            text = self.text(written)
            if self.plan.echo:
                text = self.plan.echo[index] + text
            reason = {"finish_reason": written.finish_reason, "stop_reason": written.stop}
            choice: dict[str, Any] = {"index": index, **reason}
            if self.format.chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
                if self.plan.calls is not None:
                    choice |= self._called(text, written, self.plan.calls)
            else:
                choice["text"] = text
            choice["logprobs"] = self.logprobs(writer, range_of(written, writer, whole=bool(self.plan.echo)), 0)
            if self.format.gaps:
                choice["gaps"] = self.filled(written)[1]
            choices.append(choice)
        return {**self.head(self.format.whole), "choices": choices, "usage": self.usage(outcomes)}

    def text(self, written: Written) -> str:
        """The text of an answer."""
        if self.format.gaps:
            return self.filled(written)[0]
        return written.text if self.plan.wrap is None else self.plan.wrap(written.text)

    def _called(self, text: str, written: Written, form: CallForm) -> dict[str, Any]:
        """What the calls in a text make of a choice."""
        reader = CallReader(form)
        reader.push(text)
        reader.finish()
        message: dict[str, Any] = {"role": "assistant", "content": reader.content or None, "refusal": None}
        if not reader.calls:
            return {"message": {**message, "content": reader.content}}
        return {"message": {**message, "tool_calls": reader.calls}, "finish_reason": reader.reason(written)}

    def part(self, index: int, text: str | None, **more: Any) -> dict[str, Any]:
        """A chunk with text of one choice. `more` goes into the choice."""
        choice: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": None}
        if self.format.chat:
            choice["delta"] = {} if text is None else {"content": text}
        else:
            choice["text"] = text or ""
        return {**self.head(self.format.chunk), "choices": [{**choice, **more}]}

    def usage(self, outcomes: list[Written]) -> dict[str, Any]:
        """Tokens to the end of text; steps are forwards that scored something, of all choices together."""
        plan = self.plan
        # of a template only what went into its gaps was written
        tokens = sum(len(w.ids) if plan.filling is None else sum(plan.lengths) for w in outcomes)
        steps = sum(w.done.steps for w in outcomes)
        accepted = [n for w in outcomes for n in w.done.accepted]
        return {
            "prompt_tokens": plan.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": plan.prompt_tokens + tokens,
            "steps": steps,
            "prefill_steps": sum(w.done.prefills for w in outcomes),
            "tokens_per_step": round(tokens / steps, 4) if steps else 0.0,
            "drafts_kept_per_step": round(sum(accepted) / len(accepted), 4) if accepted else None,
        }

    def filled(self, written: Written) -> tuple[str, list[str]]:
        """A template's text, and what was written into each of its gaps."""
        assert self.plan.filling is not None
        return self.plan.filling.template.text(written.done.ids, self.plan.lengths, self.plan.tokenizer)

    def frame(self, frame: Frame, start: int) -> dict[str, Any]:
        """What a step did, its positions counted from `start`."""
        return {
            "step": frame.step,
            "positions": [p - start for p in frame.positions],
            "tokens": list(frame.tokens),
            "texts": [self._shown(token) for token in frame.tokens],
            "confidences": [round(c, 6) for c in frame.confidences],
            "kinds": list(frame.kinds),
            **({"end": frame.end - start} if frame.end else {}),  # where inserts and deletes stop to move tokens
        }

    def canvas(self, writer: Writer) -> dict[str, Any]:
        """The region before the first step: the text of each position, None where it is noise."""
        region = writer.region
        ids = writer.canvas[region.start : region.end]
        return {"texts": [None if token == region.mask_id else self._shown(token) for token in ids]}

    def _shown(self, token: int) -> str:
        if token == self.plan.lm.config.mask_token_id:
            return SHADE
        return self.plan.tokenizer.decode([token], skip_special_tokens=False)

    def logprobs(self, writer: Writer, positions: range, offset: int) -> dict[str, Any] | None:
        """Log-probabilities of written positions, None where they were not asked for. Each is that of the step
        that wrote the token, a prompt's that of the tokens before. `offset`: characters of the answer before them."""
        if self.plan.logprobs is None:
            return None
        if 0 in positions and self.plan.echo:
            writer.logprobs[0] = ((writer.canvas[0], math.nan),)  # nothing is before it
        told = [writer.logprobs[p] for p in positions if p in writer.logprobs]
        if self.format.chat:
            return {"content": [self._alternatives(entry) for entry in told], "refusal": None}
        out: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in told:
            text, *_ = texts = [self._shown(token) for token, _ in entry]
            values = [None if math.isnan(p) else max(p, LOWEST) for _, p in entry]
            out["tokens"].append(text)
            out["token_logprobs"].append(values[0])
            # the likeliest of those that read alike
            best = dict(reversed(list(zip(texts[1:], values[1:], strict=True))))
            out["top_logprobs"].append(None if values[0] is None else dict(reversed(best.items())))
            out["text_offset"].append(offset)
            offset += len(text)
        return out

    def _alternatives(self, entry: Alternatives) -> dict[str, Any]:
        """A token and what might have stood in its place, as chats have them."""
        told = []
        for token, value in entry:
            text = self._shown(token)
            shown = {"token": text, "bytes": list(token_bytes(self.plan.tokenizer, token, text))}
            told.append({**shown, "logprob": max(value, LOWEST)})
        return {**told[0], "top_logprobs": told[1:]}


BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
OF_LETTER = {letter: byte for byte, letter in byte_letters().items()}


def token_bytes(tokenizer: Tokenizer, token: int, text: str) -> bytes:
    """The bytes that a token writes, of half a character too. text: what it reads alone."""
    name = tokenizer.id_to_token(token) or ""
    byte = BYTE_TOKEN.fullmatch(name)
    if byte is not None:
        return bytes.fromhex(byte[1])
    if BROKEN in text and all(letter in OF_LETTER for letter in name):
        return bytes(OF_LETTER[letter] for letter in name)
    return name.replace("▁", " ").encode() if name.startswith("▁") else text.encode()


def range_of(written: Written, writer: Writer, whole: bool = False) -> range:
    """Positions of the tokens that an answer counts; `whole`: and of its prompt."""
    return range(0 if whole else writer.region.start, writer.region.start + len(written.ids))
