"""What the drivers of block decoders share: requests decoded for a trace, and recorded forwards as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from conformance.checks.outcome import Trace
from unmask.decoding.loop import Decoder
from unmask.decoding.request import Request
from unmask.decoding.rules import RuleOptions
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.lm import DiffusionLM

NAIVE = "ours is compared with the same rule that reads everything again at every step."


@dataclass(frozen=True)
class Asked:
    """Requests as a case describes them, and how their canvases end."""

    lm: DiffusionLM
    mask_id: int
    block: int
    requests: list[Request]
    eos: frozenset[int]
    cut: Callable[[list[int], Request, int], list[int]]  # (canvas, request, end of its last block) -> final ids

    def run(self, use_cache: bool = True) -> list[Trace]:
        """Decodes; a trace [1] of each request: its canvases without those of passes that changed nothing."""
        from unmask.backends.torch import TorchBackend

        backend = TorchBackend(self.lm.model)
        backend.config = replace(backend.config, mask_token_id=self.mask_id)
        layout = Layout("block_causal", self.block)
        traces = []
        for request in self.requests:
            decoder = Decoder(backend, layout, [request], self.eos, use_cache)
            seen = []
            while decoder.busy:
                seen.append([decoder.canvas.ids[0].tolist()])
                decoder.step()
            final = self.cut(decoder.canvas.ids[0].tolist(), request, decoder.rows[0].block_end)
            traces.append(Trace(seen, [final], decoder.steps[0]))
        return traces


def joined(traces: list[Trace]) -> Trace:
    """Requests decoded one by one, as one trace."""
    canvases = [canvas for trace in traces for canvas in trace.canvases or []]
    return Trace(canvases, [row for trace in traces for row in trace.final], sum(t.forwards for t in traces))


def request_of(prompt: list[int], length: int, mask_id: int, rule: RuleOptions, **options: Any) -> Request:
    new = length - len(prompt)
    return Request(prompt + [mask_id] * new, [True] * len(prompt) + [False] * new, rule=rule, **options)


def one_prompt(case: dict[str, Any]) -> list[int]:
    if len(case["prompt_ids"]) != 1:
        raise UnmaskError(f"case '{case.get('name')}' has {len(case['prompt_ids'])} prompts; this decoder takes one")
    prompt: list[int] = case["prompt_ids"][0]
    return prompt


def greedy_only(case: dict[str, Any], plain: tuple[float, ...] = (0.0,)) -> None:
    if case.get("temperature", 0.0) not in plain:
        raise UnmaskError(f"case '{case.get('name')}' samples at temperature {case['temperature']}: not recorded")


def laid(canvas: list[int], start: int, ids: list[int]) -> list[int]:
    return canvas[:start] + ids + canvas[start + len(ids) :]


def whole(canvas: list[int], request: Request, end: int) -> list[int]:
    return canvas


def until(eos_id: int | None, first: int, ids: list[int]) -> list[int]:
    """Ids up to the first end of text at or after a position, that included."""
    ends = [i for i, token in enumerate(ids) if i >= first and token == eos_id]
    return ids[: ends[0] + 1] if ends else ids


def stored_apart(first: list[int], case: dict[str, Any], stores: list[bool]) -> Trace:
    """The trace of forwards {start, input_ids} on a whole canvas, without those that only store."""
    canvas, canvases = first, []
    for forward, store in zip(case["forwards"], stores, strict=True):
        canvas = laid(canvas, forward["start"], forward["input_ids"])
        if not store:
            canvases.append([canvas])
    return Trace(canvases, case["final_ids"], len(canvases))


def spliced(states: list[list[int]], naive: Trace) -> Trace:
    """Canvases before forwards as far as a recorded run is right, then those of a run of ours."""
    own = naive.canvases or []  # what a last step leaves is read by no forward
    return replace(naive, canvases=[[state] for state in states[: len(own)]] + own[len(states) :])
