"""A generation under way and what it gives: the objects behind generate, stream and fill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from unmask.canvas import Array, Frame
from unmask.decoding.loop import Decoder
from unmask.decoding.methods.ancestral import Removal, SamplerName
from unmask.decoding.methods.renoise_rule import RenoiseOptions
from unmask.decoding.request import Request, RequestParameters
from unmask.decoding.rules import RuleName, RuleOptions, RuleParameters
from unmask.decoding.stops import cut
from unmask.errors import UnmaskError
from unmask.models.config import build

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor


@dataclass(frozen=True)
class DecodingDefaults(RuleParameters, RequestParameters):
    """How a model decodes where the caller does not say (generation_config.json of its folder)."""

    rule: RuleName = "threshold"
    sampler: Literal["none", SamplerName] = "none"  # draws what a step writes; none: a rule decides
    noise_removal: Removal = "greedy"
    psi_kappa: float = 1.0
    nucleus_p: float = 1.0
    t_min: float = 0.4  # these four: of models that denoise random tokens
    t_max: float = 0.8
    confidence_threshold: float = 0.005
    stability_threshold: int = 1
    eos_token_ids: tuple[int, ...] = ()  # ends of text besides the config's
    layout: Literal["auto", "bidirectional", "block_causal"] = "auto"  # auto: the one that the model's config names

    def override(self, options: dict[str, Any]) -> DecodingDefaults:
        """These with the options that are not None; one unknown or out of range raises UnmaskError."""
        for name in options:
            if name not in self.__dataclass_fields__:
                known = ", ".join(self.__dataclass_fields__)
                raise UnmaskError(f"option '{name}' is unknown; known options: {known}")
        values = {**vars(self), **{k: v for k, v in options.items() if v is not None}}
        if options.get("rule") is not None and options.get("sampler") is None:
            values["sampler"] = "none"  # who asks for a rule gets it
        elif values["sampler"] == "first_hitting" and options.get("max_denoising_steps") and not options.get("sampler"):
            values["sampler"] = "ddpm_cache"  # and who asks for fewer steps than tokens, one that has them
        chosen: DecodingDefaults = build(DecodingDefaults, values, "option")
        limits = {
            "threshold": 0 <= chosen.threshold <= 1,
            "factor": 0 <= chosen.factor < 1e6,
            "entropy_bound": 0 <= chosen.entropy_bound < 1e6,
            "schedule_eps": 0 < chosen.schedule_eps < 1,
            "choice_temperature": 0 <= chosen.choice_temperature <= 100,
            "max_denoising_steps": chosen.max_denoising_steps is None or chosen.max_denoising_steps >= 1,
            "block_length": chosen.block_length is None or chosen.block_length >= 1,
            "sub_block_length": chosen.sub_block_length is None or chosen.sub_block_length >= 1,
            "num_to_transfer": chosen.num_to_transfer >= 1,
            "editing_threshold": 0 <= chosen.editing_threshold <= 1,
            "draft_threshold": 0 <= chosen.draft_threshold <= 1,
            "draft_columns": chosen.draft_columns >= 0,
            "max_post_steps": chosen.max_post_steps >= 0,
            "temperature": 0 <= chosen.temperature <= 100,
            "top_p": 0 < chosen.top_p <= 1,
            "top_k": chosen.top_k >= 0,
            "guidance": 0 <= chosen.guidance <= 100,
            "remask_budget": chosen.remask_budget >= 0,
            "cache_refresh": chosen.cache_refresh >= 0,
            "t_max": 0 < chosen.t_max <= 100,
            "t_min": 0 <= chosen.t_min <= chosen.t_max,
            "confidence_threshold": 0 <= chosen.confidence_threshold < 1e6,
            "stability_threshold": chosen.stability_threshold >= 0,
            "psi_kappa": 0 <= chosen.psi_kappa <= 1,
            "nucleus_p": 0 < chosen.nucleus_p <= 1,
        }
        for name, fine in limits.items():
            if not fine:
                raise UnmaskError(f"option {name} is out of range: {getattr(chosen, name)}")
        return chosen

    def request(self, **others: Any) -> Request:
        """A request with these options; `others` are fields that they do not say, or replace."""
        rule = RuleOptions(self.rule, **{f.name: getattr(self, f.name) for f in fields(RuleParameters)})
        own = {f.name: getattr(self, f.name) for f in fields(RequestParameters)}
        return Request(**{**own, "rule": rule, **others})


def renoising(chosen: DecodingDefaults, temperature: float | None) -> RenoiseOptions:
    """Options of a model that denoises random tokens; `temperature` is what the caller asked for, if anything."""
    warm = temperature is not None and temperature > 0
    t_min, t_max = (chosen.temperature, chosen.temperature) if warm else (chosen.t_min, chosen.t_max)
    stop = (chosen.entropy_bound, chosen.confidence_threshold, chosen.stability_threshold)
    return RenoiseOptions(chosen.max_denoising_steps or RenoiseOptions.max_steps, t_min, t_max, *stop, temperature == 0)


@dataclass(frozen=True)
class Output:
    """What a request gave."""

    text: str  # generated part up to end of text or a stop string
    token_ids: list[int]  # generated part up to end of text
    written: Array  # whole canvas after the last step, prompt included, int64 [L]
    first: Array  # the canvas before the first step
    steps: int  # forward passes (NFE)
    frames: list[Frame]
    seed: int
    accepted: tuple[int, ...] = ()  # in mode verify: drafts that held, at each step

    @property
    def canvas(self) -> Tensor:
        """The whole canvas, prompt included, LongTensor [L]."""
        import torch

        return torch.from_numpy(self.written)

    @property
    def first_canvas(self) -> Tensor:
        """The canvas before the first step, LongTensor [L]."""
        import torch

        return torch.from_numpy(self.first)

    @property
    def tokens_per_step(self) -> float:
        return len(self.token_ids) / max(1, self.steps)


@dataclass(frozen=True)
class Filled(Output):
    """A filled template: `text` is all of it, `gaps` what was written into each gap."""

    gaps: tuple[str, ...] = ()


def up_to_end(written: list[int], eos_ids: frozenset[int], mask_id: int) -> list[int]:
    """What counts of written tokens: nothing from an end of text on; masks are left only behind one, or where a
    stop string cut in."""
    ends = (i for i, token in enumerate(written) if token in eos_ids or token == mask_id)
    return written[: next(ends, len(written))]


class Run:
    """Requests being decoded. Iterate `frames`, then ask for `outputs`."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer | None, stops: list[str]) -> None:
        self.decoder, self.tokenizer, self.stops = decoder, tokenizer, stops
        self.first = decoder.canvas
        self.seen: list[list[Frame]] = [[] for _ in decoder.requests]

    @property
    def first_canvas(self) -> list[int]:
        """Ids of the first request before any step."""
        return self.first.ids[0].tolist()

    def frames(self) -> Iterator[Frame]:
        """Decodes, giving each frame as it is made."""
        for step in self.decoder.run():
            for frame in step:
                self.seen[frame.row].append(frame)
                yield frame

    def text_so_far(self) -> str:
        """What the first request has written from the left without a gap."""
        assert self.tokenizer is not None
        return self.tokenizer.decode(self._written(0))

    def _written(self, number: int) -> list[int]:
        """What a request has written from the left, up to end of text and to what was asked for."""
        row = self.decoder.rows[number]
        written = row.canvas.ids[0, row.request.given.index(False) : row.edge].tolist()
        ends = [i for i, token in enumerate(written) if token in self.decoder.eos_ids]
        return written[: min([*ends, row.request.wanted or len(written)])]

    def outputs(self) -> list[Output]:
        """Decodes what is not decoded yet and returns every request's result."""
        for _ in self.frames():
            pass
        return [self._output(row) for row in range(len(self.decoder.requests))]

    def _output(self, row: int) -> Output:
        request, canvas = self.decoder.requests[row], self.decoder.rows[row].canvas.ids[0]
        ids = self._written(row)  # noise is left only where an end of text or a stop string cut in
        text = "" if self.tokenizer is None else cut(self.tokenizer.decode(ids), self.stops)
        first, steps = self.first.ids[row, : len(canvas)], self.decoder.steps[row]
        accepted = tuple(self.decoder.accepted[row])
        return Output(text, ids, canvas.copy(), first.copy(), steps, self.seen[row], request.seed, accepted)
