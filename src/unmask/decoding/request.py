"""What is asked of the loop, and one request on its way through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from unmask.canvas import Array, Canvas, Commit, Kind
from unmask.decoding.convention import Convention
from unmask.decoding.feed import Columns, Logits, Sampling
from unmask.decoding.options import option
from unmask.decoding.planner import Odds
from unmask.decoding.processors import ProcessorParameters
from unmask.decoding.rules import RuleOptions
from unmask.decoding.sampling import CHOICE_DRAW, COLD, TOKEN_DRAW, Scores, uniforms
from unmask.layout import Layout, LayoutKind
from unmask.models.config import ModelConfig
from unmask.structured.grammar import Grammar

if TYPE_CHECKING:
    from unmask.decoding.methods import DecodingDefaults
    from unmask.decoding.methods.ancestral import SeededDraws

Alternatives = tuple[tuple[int, float], ...]  # tokens and log-probabilities: the written one, then the likeliest
Mode = Literal["ar", "diffusion", "verify"]
CacheKind = Literal["auto", "none", "exact", "prefix", "dual"]
MODES: dict[str, tuple[Mode, ...]] = {  # of models by their layout, the default first
    "bidirectional": ("diffusion",),
    "block_causal": ("diffusion",),
    "causal": ("ar", "verify"),
    "drafts": ("diffusion", "ar", "verify"),
    "canvas": ("diffusion",),
    "causal_blocks": ("diffusion", "ar", "verify"),
    "causal_window": ("diffusion", "ar", "verify"),
}


@dataclass(frozen=True, kw_only=True)
class RequestParameters(ProcessorParameters):
    """What several methods read: sampling, windows and caches."""

    temperature: float = option(0.0, ge=0, le=100)  # 0 takes the best token
    top_k: int = option(0, ge=0, off=0)
    top_p: float = option(1.0, gt=0, le=1, off=1.0)
    guidance: float = option(0.0, ge=0, le=100, off=0.0)  # classifier-free: u + (guidance + 1) (c - u)
    block_length: int | None = option(None, ge=1)  # None: the whole canvas at once
    max_denoising_steps: int | None = option(None, ge=1)  # per block; None: as many as the block has masks
    remask_budget: int = option(0, ge=0, off=0)  # committed tokens that may be masked again, each once
    # auto: exact where the layout allows it
    cache: CacheKind = option("auto", off="auto")  # noqa: RUF009
    cache_refresh: int = option(0, ge=0, off=0)  # prefix and dual: steps until all is read again; 0: once a block


@dataclass(frozen=True)
class Asked:
    """What decides how a model decodes: its config, the layout and mode it decodes in, and all options together."""

    name: str  # of the model
    config: ModelConfig
    layout: LayoutKind
    mode: Mode
    options: DecodingDefaults
    given: Mapping[str, Any] = field(default_factory=dict)  # of the options, those that the caller says


@dataclass(frozen=True)
class Setting:
    """What a scheme must know of the decoder that it runs in, besides its request."""

    config: ModelConfig
    layout: Layout
    cache: str  # none, exact, prefix or dual
    eos_ids: frozenset[int] = frozenset()
    odds: Odds = field(default_factory=Odds)  # of drafts, counted over all requests


@dataclass(frozen=True)
class MethodOptions:
    """A method of decoding and its own options; a subclass is one method. What it says of itself is all that the
    library, the server, the command line and the page know of it."""

    method: ClassVar[str]
    whole_canvases: ClassVar[bool] = False  # it writes blocks of full length, of which what was asked for is given
    by_rule: ClassVar[bool] = True  # in mode diffusion a commit rule decides what is kept

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        """Whether these options are decoded by this method; the first of METHODS that says so is taken."""
        raise NotImplementedError

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        """Why a model cannot be decoded so, in one line; None where it can."""
        raise NotImplementedError

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        """Names of the options that are result, without those of the rule."""
        raise NotImplementedError

    @classmethod
    def caches(cls, asked: Asked) -> tuple[CacheKind, ...]:
        """Caches that a request may ask for."""
        return ("auto", "none") if asked.layout == "bidirectional" else ("auto", "none", "exact")

    @classmethod
    def no_grammar(cls, asked: Asked) -> str | None:
        """Why what is written cannot be held to a grammar, in one line; None where it can."""
        return None if asked.config.mask_token_id is not None else cannot_be_held(asked, "whole canvases of noise")

    @classmethod
    def of(cls, asked: Asked) -> Self:
        """The method with the options that were asked for."""
        own = {f.name: getattr(asked.options, f.name) for f in fields(cls) if hasattr(asked.options, f.name)}
        return cls(**own)

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        """What decodes one request."""
        raise NotImplementedError


def cannot_be_held(asked: Asked, how: str) -> str:
    """The line that refuses a grammar; `how` the model writes."""
    return (
        f"model '{asked.name}' writes {how}, which cannot be held to a grammar; use a model and a rule that fill masks"
    )


def _plain_denoising() -> MethodOptions:
    from unmask.decoding.methods.denoise import Options

    return Options()


@dataclass(frozen=True)
class Request(RequestParameters):
    """One canvas to decode. `given` marks tokens to keep as they are (masks elsewhere are open; all tokens
    elsewhere, where noise is no mask)."""

    ids: list[int]
    given: list[bool]
    seed: int = 0
    rule: RuleOptions = field(default_factory=RuleOptions)
    method: MethodOptions = field(default_factory=_plain_denoising)
    stop: Callable[[list[int]], bool] | None = None  # asked with the finished tokens from the left
    wanted: int | None = None  # tokens asked for, where whole canvases or blocks hold more
    prefill_chunk: int = 0  # with an exact cache: most text tokens read before a window by one forward; 0: all
    ends: bool = True  # an end of text finishes it; not so where given text follows
    draws: SeededDraws | None = None  # of a sampler; None: the seed's
    logprobs: int | None = None  # how many alternatives to remember of every written token; None: not even its own
    scores_prompt: bool = False  # remembers them of the prompt's tokens too; of causal layouts with an exact cache
    grammar: Grammar | None = None  # that all that is written has to match

    @property
    def convention(self) -> Convention:
        return self.rule.convention

    @property
    def rows(self) -> int:
        """Rows of a backend's batch that it takes: a guided one has an unconditional row."""
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
    forced: int = 0  # tokens that were written beside a step's own, as nothing else could stand there
    cached: int = 0  # positions before this one have exact keys and values
    shared: int = 0  # of these, those of another request that begins alike
    final: int = 0  # written tokens before this position change no more; what no scheme says is final may change
    accepted: list[int] = field(default_factory=list)  # in mode verify: drafts kept at each step
    written: int | None = None  # where noise is no mask: positions before this one are final
    logprobs: dict[int, Alternatives] = field(default_factory=dict)  # of written positions, where asked for
    error: Exception | None = None  # why it cannot go on
    block_end: int = 0  # of the block being decoded
    revising: bool = False  # what is written in that block may still change
    prefill_end: int | None = None  # of a forward that only reads text

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

    @property
    def draw(self) -> int:
        """What draws are addressed by: the steps, and those that forced tokens would have taken."""
        return self.steps + self.forced

    @property
    def unscored(self) -> int:
        """Tokens of a prompt to be read whose next one is still to be scored."""
        return self.request.given.index(False) - 1 - self.cached if self.request.scores_prompt else 0

    def chunk_end(self, needed: int, block: int, offset: int) -> int | None:
        """Where to stop if the text that is not cached, up to `needed`, is too long for one forward, or has to be
        scored; None if neither.

        Blocks begin `offset` positions early: keys of half a block would not be those of the whole.
        """
        most = self.request.prefill_chunk
        if self.unscored > 0:
            return self.cached + min(self.unscored, most or self.unscored)
        if most < 1 or needed - self.cached <= most:
            return None
        end = (self.cached + offset) // block * block + max(most // block, 1) * block - offset
        return end if end < needed else None

    @property
    def edge(self) -> int:
        """Where noise begins; the length where none is left."""
        masked = self.masked
        first = int(masked.argmax())
        return first if masked[first] else self.length

    def ended(self, eos_ids: frozenset[int]) -> bool:
        """Whether all that is asked for is written, or all up to an end of text or a stop."""
        if self.revising or (self.request.convention.ending == "block" and self.masked[: self.block_end].any()):
            return False
        edge = self.edge
        if self.request.wanted is not None:
            end = self.request.given.index(False) + self.request.wanted
            if end < self.length and edge >= end:
                return True
        left = self.canvas.ids[0, :edge][~self.canvas.frozen[0, :edge]].tolist()  # written before the first noise
        if eos_ids and not eos_ids.isdisjoint(left):
            return True
        return self.request.stop is not None and self.request.stop(left)


@dataclass(frozen=True)
class StepResult:
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


def sampled(schemes: Sequence[Scheme], counts: Sequence[int], target: Array) -> Sampling:
    """How scored rows are sampled, `counts` of each request: its options, and draws by (seed, step, position);
    none where none is read."""
    requests = [scheme.row.request for scheme in schemes]
    native = [request.convention.confidence_dtype == "native" for request in requests]
    plain = [not request.convention.tempered for request in requests]
    # the scores of a prompt are the network's own
    temperatures = [0.0 if scheme.row.prefill_end is not None else scheme.temperature for scheme in schemes]
    temperature = np.repeat(np.array(temperatures, np.float64), counts)
    temperature[temperature < COLD] = 0.0
    unread = np.zeros(len(target))
    chooses = any(request.rule.draws for request in requests)
    if not any(native) and not temperature.any() and not chooses:
        return Sampling(unread, np.zeros(len(unread), np.int64), np.ones(len(unread)), unread, unread)

    def spread(values: Sequence[Any]) -> Array:
        return np.repeat(np.array(values), counts)

    own = np.split(target, np.cumsum(counts)[:-1])
    steps = np.concatenate([scheme.draw_steps(part) for scheme, part in zip(schemes, own, strict=True)])
    address = (spread([request.seed for request in requests]), steps, target)
    return Sampling(
        temperature,
        spread([request.top_k for request in requests]),
        spread([request.top_p for request in requests]).astype(np.float64),
        uniforms(*address, TOKEN_DRAW) if temperature.any() else unread,
        uniforms(*address, CHOICE_DRAW) if chooses else unread,
        spread(native) if any(native) else None,
        spread(plain) if any(plain) else None,
    )


class Scheme:
    """How one request is decoded: its windows and what becomes of the scores; made anew for every request."""

    proposes = True  # reads the proposed tokens of a forward, and not its distributions alone
    start: int  # of the window
    offset = 0  # how many positions early the layout counts blocks
    drafts: Sequence[int] = ()  # guesses fed as if they were text: scored column i stands behind the first i

    def __init__(self, row: Row, setting: Setting) -> None:
        self.row = row
        self.cache = setting.cache
        self.exact = setting.cache == "exact"

    @property
    def temperature(self) -> float:
        """That the next forward's proposals are sampled at."""
        return self.row.request.temperature

    def draw_steps(self, target: Array) -> Array:
        """The steps that draws for scored positions [n] are addressed by, [n]."""
        return np.full(len(target), self.row.draw)

    @property
    def text_end(self) -> int:
        """Text before this position leaves exact keys and values, and may be read ahead of the window; 0: none."""
        return self.start if self.exact else 0

    def settle(self) -> bool:
        """Moves the window on to where work is left; false if none is."""
        raise NotImplementedError

    def columns(self) -> Columns:
        """What to feed to the next forward and which positions to score."""
        raise NotImplementedError

    def take(self, result: StepResult) -> list[Commit]:
        """Changes [1, L] to the request's canvas, from what a forward said."""
        raise NotImplementedError

    def commit(
        self, at: Any, tokens: Any, confidence: Any, chosen: Any = True, kind: Kind = "unmask", end: int = 0
    ) -> Commit:
        """A commit [1, L] of what happens at some positions: a slice, an array or one of them."""
        where, what, sure = (np.zeros((1, self.row.length), dtype) for dtype in (bool, np.int64, np.float64))
        where[0, at] = chosen
        what[0, at] = tokens
        sure[0, at] = confidence
        return Commit(where, what, sure, kind, end)
