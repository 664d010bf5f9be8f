"""What is asked of the loop, and one request on its way through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from unmask.canvas import Array, Canvas, Commit
from unmask.decoding.feed import Columns, Logits, Sampling
from unmask.decoding.methods.ancestral import Draws, SamplerOptions
from unmask.decoding.methods.renoise_rule import RenoiseOptions
from unmask.decoding.rules import RuleOptions
from unmask.decoding.sampling import Scores
from unmask.layout import Layout
from unmask.structured.grammar import Grammar

Alternatives = tuple[tuple[int, float], ...]  # tokens and log-probabilities: the written one, then the likeliest
Mode = Literal["ar", "diffusion", "verify"]
CacheKind = Literal["auto", "none", "exact", "prefix", "dual"]


@dataclass(frozen=True, kw_only=True)
class RequestParameters:
    """How a canvas is decoded, the rule aside."""

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    guidance: float = 0.0  # classifier-free: logits are u + (guidance + 1) (c - u), u those of given tokens masked
    block_length: int | None = None  # None: the whole canvas at once
    sub_block_length: int | None = None  # block-causal: parts of a block that are written one after another
    blocks_from_prompt: bool = False  # block-causal: blocks count from the first mask, not from position 0
    whole_blocks: bool = False  # block-causal: the last block is as long as the others, and cut afterwards
    max_denoising_steps: int | None = None  # per block; None: as many as the block has masks
    remask_budget: int = 0  # committed tokens that may be masked again, each once
    cache: CacheKind = "auto"  # auto: exact where the layout allows it
    cache_refresh: int = 0  # prefix and dual: all is read again every so many steps; 0: once a block
    ending: Literal["text", "block"] = "text"  # at an end of text: stop once all before it is written, or the block is
    # prefix and dual: what a block's first step writes; one: its first token alone (Fast-dLLM's Dream)
    first_step: Literal["rule", "one"] = "rule"


@dataclass(frozen=True)
class Request(RequestParameters):
    """One canvas to decode. `given` marks tokens to keep as they are (masks elsewhere are open; all tokens
    elsewhere, where noise is no mask).

    With `renoise` blocks are canvases of noise that are denoised one after another.
    """

    ids: list[int]
    given: list[bool]
    seed: int = 0
    rule: RuleOptions = field(default_factory=RuleOptions)
    stop: Callable[[list[int]], bool] | None = None  # asked with the finished tokens from the left
    mode: Mode = "diffusion"
    renoise: RenoiseOptions | None = None
    wanted: int | None = None  # tokens asked for, where whole canvases or blocks hold more
    prefill_chunk: int = 0  # with an exact cache: most text tokens read before a window by one forward; 0: all
    ends: bool = True  # an end of text finishes it; not so where given text follows
    sampler: SamplerOptions | None = None  # in place of a rule
    draws: Draws | None = None  # of the sampler; None: the seed's
    logprobs: int | None = None  # how many alternatives to remember of every written token; None: not even its own
    grammar: Grammar | None = None  # that all that is written has to match

    @property
    def rows(self) -> int:
        """Rows of a backend's batch that it takes: a guided one has a twin."""
        return 2 if self.guidance > 0 else 1


@dataclass(frozen=True)
class Prepared:
    """Requests that were checked, and what a decoder must know to take them."""

    requests: list[Request]
    layout: Layout
    eos_ids: frozenset[int] = frozenset()
    use_cache: bool = True
    stops: list[str] = field(default_factory=list)  # the texts behind the requests' `stop`


@dataclass
class Row:
    """A request being decoded: its canvas [1, L] and how far it is."""

    number: int  # names the request in frames, in the order of admission
    request: Request
    canvas: Canvas
    forwards: int = 0
    prefills: int = 0  # forwards among these that only read text
    cached: int = 0  # positions before this one have exact keys and values
    final: int = 0  # written tokens before this position change no more; what no scheme says is final may change
    accepted: list[int] = field(default_factory=list)  # in mode verify: drafts kept at each step
    written: int | None = None  # where noise is no mask: positions before this one are final
    logprobs: dict[int, Alternatives] = field(default_factory=dict)  # of written positions, where asked for
    error: Exception | None = None  # why it cannot go on
    block_end: int = 0  # of the block being decoded
    revising: bool = False  # what is written in that block may still change

    @property
    def masked(self) -> Array:
        """Open positions that are still noise, [L]."""
        if self.written is None:
            return self.canvas.masked[0]
        return (np.arange(self.length) >= self.written) & ~self.canvas.frozen[0]

    @property
    def length(self) -> int:
        return self.canvas.ids.shape[1]

    @property
    def steps(self) -> int:
        """Forwards that scored something: the same however the prompt was read."""
        return self.forwards - self.prefills

    def prefill_end(self, low: int, needed: int, block: int = 1, offset: int = 0) -> int | None:
        """Where to stop if the text from `low` to `needed` is too long for one forward; None if it is not.

        Blocks begin `offset` positions early: keys of half a block would not be those of the whole.
        """
        most = self.request.prefill_chunk
        if most < 1 or needed - low <= most:
            return None
        end = (low + offset) // block * block + max(most // block, 1) * block - offset
        return end if end < needed else None

    @property
    def edge(self) -> int:
        """Where noise begins; the length where none is left."""
        masked = self.masked
        first = int(masked.argmax())
        return first if masked[first] else self.length

    def finished_part(self) -> Array:
        """Written tokens left of the first noise, [n]."""
        edge = self.edge
        return self.canvas.ids[0, :edge][~self.canvas.frozen[0, :edge]]

    def ended(self, eos_ids: frozenset[int]) -> bool:
        """Whether all that is asked for is written, or all up to an end of text or a stop."""
        if self.revising or (self.request.ending == "block" and self.masked[: self.block_end].any()):
            return False
        if self.request.wanted is not None:
            end = self.request.given.index(False) + self.request.wanted
            if end < self.length and self.edge >= end:
                return True
        left = self.finished_part().tolist()
        if eos_ids and not eos_ids.isdisjoint(left):
            return True
        return self.request.stop is not None and self.request.stop(left)


@dataclass(frozen=True)
class Read:
    """What a forward says of one request: of its n scored columns, in the order it fed them."""

    target: Array  # [n], position that each is the score of
    scores: Scores  # [n]
    sampling: Sampling  # [n]
    logits: Logits  # of all requests
    offset: int  # of this request's rows among them
    first_slot: int  # of this request's slots among the feed's
    possible: Array | None = None  # bool [n], columns with a token that the grammar allows; None: no grammar

    def probabilities(self, index: Array) -> Array:
        """Float64 distributions [len(index), V] that columns are sampled from."""
        return self.logits.probabilities(self.offset + index, self.sampling.rows(index))

    def odds(self, index: Array, tokens: Array) -> Array:
        """Probability of a token at each column over that of its best one, [len(index)]."""
        return self.logits.odds(self.offset + index, tokens)


class Scheme(Protocol):
    """How one request is decoded: its windows and what becomes of the scores; made anew for every request.

    `proposes`: reads the proposed tokens of a forward, and not its distributions alone.
    """

    proposes: bool

    @property
    def temperature(self) -> float:
        """That the next forward's proposals are sampled at."""
        ...

    def settle(self) -> bool:
        """Moves the window on to where work is left; false if none is."""
        ...

    def columns(self) -> Columns:
        """What to feed to the next forward and which positions to score."""
        ...

    def take(self, read: Read) -> list[Commit]:
        """Changes [1, L] to the request's canvas, from what a forward said."""
        ...
