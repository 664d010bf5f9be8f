"""Logits processors: what is asked of a network's scores before anything is proposed from them.

Names and meanings are those of vLLM and the OpenAI API. Penalties count what the request has written, wherever on the
canvas it stands; `repetition_penalty` counts the prompt as well. Shapes: n scored columns, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.canvas import Array
from unmask.decoding.options import option
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.decoding.request import Row


@dataclass(frozen=True, kw_only=True)
class ProcessorParameters:
    """Options that change scores; each has a value that leaves them as they are."""

    presence_penalty: float = option(0.0, ge=-2, le=2, off=0.0)  # taken off tokens that are written
    frequency_penalty: float = option(0.0, ge=-2, le=2, off=0.0)  # taken off for each time that they are
    repetition_penalty: float = option(1.0, ge=0.01, le=100, off=1.0)  # divides scores above 0, multiplies those below
    min_p: float = option(0.0, ge=0, le=1, off=0.0)  # least chance, as a share of the best token's
    min_tokens: int = option(0, ge=0, off=0)  # no end of text stands before so many tokens
    logit_bias: dict[int, float] = field(default_factory=dict, metadata={"off": {}})  # added to scores, by token

    @property
    def processed(self) -> bool:
        """Whether scores are changed at all."""
        plain = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty, self.min_p) == (0, 0, 1, 0)
        return not plain or self.min_tokens > 0 or bool(self.logit_bias)


@dataclass(frozen=True)
class Adjustment:
    """What is done to the logits of n rows, in this order."""

    repeated: Array  # bool [n, V], tokens whose scores are divided by `penalty` above 0 and multiplied below
    penalty: float
    bias: Array  # float32 [n, V], added
    floor: float  # tokens whose score is this far below the best (at most 0) or further are left out

    def apply(self, logits: Array, row: int, tokens: Array | slice) -> None:
        """Changes one row's logits [len(tokens)] in place."""
        if self.penalty != 1.0:
            scaled = np.where(logits > 0, logits / self.penalty, logits * self.penalty)
            np.copyto(logits, scaled, where=self.repeated[row, tokens])
        logits += self.bias[row, tokens]
        if self.floor > -np.inf:
            logits[logits < logits.max() + self.floor] = -np.inf


def _token(written: Any) -> int:
    """A token id; as text it is written in digits alone, so that '1_0' is not token 10."""
    if isinstance(written, str) and not re.fullmatch(r"-?[0-9]{1,10}", written):
        raise ValueError
    return index(int(written) if isinstance(written, str) else written)


def read_bias(given: Any) -> dict[int, float]:
    """A logit bias with tokens as numbers, however they were written. Raises UnmaskError for what is none."""
    try:
        bias = {_token(token): float(value) for token, value in dict(given).items()}
        if len(bias) < len(given):
            raise ValueError
    except (TypeError, ValueError):
        raise UnmaskError(f"option logit_bias must give a number for each token id, got {given!r:.80}") from None
    for token, value in bias.items():
        if not -100 <= value <= 100:
            raise UnmaskError(f"option logit_bias is out of range: {value} of token {token}; it must be -100 to 100")
    return bias


def adjustment(
    row: Row, target: Array, fed: Sequence[int], temperature: float, size: int, ends: frozenset[int]
) -> Adjustment:
    """What a request asks of the scores of its columns.

    Args:
        target: int [n], the positions that are scored.
        fed: Drafts fed as if they were text: column i stands behind the first i of them.
        size: Of the vocabulary.
        ends: Tokens that end a text.
    """
    request = row.request
    canvas = row.canvas
    given = canvas.frozen[0]
    written = canvas.ids[0, ~given & ~row.masked]
    counts = np.repeat(np.bincount(written, minlength=size)[None], len(target), 0)
    for place, token in enumerate(fed):
        counts[place + 1 :, token] += 1
    bias = (-request.frequency_penalty * counts - request.presence_penalty * (counts > 0)).astype(np.float32)
    bias[:, list(request.logit_bias)] += np.array(list(request.logit_bias.values()), np.float32)
    if request.min_tokens > 0:
        early = target < request.given.index(False) + request.min_tokens
        bias[early.nonzero()[0][:, None], sorted(ends)] = -np.inf
    prompt = np.zeros(size, bool)
    prompt[canvas.ids[0, given]] = True
    floor = temperature * float(np.log(request.min_p)) if request.min_p > 0 and temperature > 0 else -np.inf
    return Adjustment((counts > 0) | prompt, request.repetition_penalty, bias, floor)
