"""Canvases of random tokens (DiffusionGemma) against recorded runs, fed the random tokens of the recording."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from conformance.checks.outcome import Trace
from unmask.canvas import Array
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import renoise
from unmask.decoding.methods.renoise import Renoising
from unmask.decoding.request import Request, Row, Scheme, Setting
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.lm import DiffusionLM

RECORD = {
    "name", "sampler", "decoder_forward_passes", "decoder_canvas_before_each_forward", "final_ids",
    "tokens_per_forward", "notes",
}  # fmt: skip
READ = {
    "prompt_ids", "start_canvas", "max_new_tokens", "max_denoising_steps", "t_min", "t_max", "stability_threshold",
    "confidence_threshold", "entropy_bound", "canvas_length", "pad_token_id", "eos_token_id", "randint_draws_in_order",
}  # fmt: skip


class Replayed(Renoising):
    """Takes its random tokens from a recording: `draws` [B][C] in the order of the calls, one to begin each
    canvas and one after every step. `begins` are the recorded forwards at which canvases begin."""

    draws: list[list[list[int]]]
    begins: list[int]
    text: int  # tokens of the prompt
    seen: dict[tuple[int, int], list[list[int]]]  # canvases read, by row and number of the canvas

    @property
    def canvas_number(self) -> int:
        return (self.start - self.text) // self.length

    def columns(self) -> Any:
        own = self.seen.setdefault((self.row.number, self.canvas_number), [])
        own.append(self.row.canvas.ids[0, self.start : self.end].tolist())
        return super().columns()

    def random(self, position_C: Array) -> Array:
        number, step = self.canvas_number, self.options.max_steps - self.steps_left - 1
        return np.array(self.draws[self.begins[number] + number + 1 + step][self.row.number])


class Replaying(Decoder):
    """A decoder whose rows are replayed."""

    def __init__(self, lm: DiffusionLM, case: dict[str, Any], requests: list[Request], begins: list[int]) -> None:
        self.case, self.begins = case, begins
        self.seen: dict[tuple[int, int], list[list[int]]] = {}
        super().__init__(lm.backend, Layout("canvas"), requests, frozenset([case["eos_token_id"]]))

    def _scheme(self, row: Row) -> Scheme:
        config = replace(self.backend.config, pad_token_id=self.case["pad_token_id"])
        setting = Setting(config, self.layout, "exact", self.eos_ids)
        out = Replayed(row, setting, cast(renoise.Options, row.request.method))
        out.draws, out.begins, out.seen = self.case["randint_draws_in_order"], self.begins, self.seen
        out.text = sum(row.request.given)
        return out


def decode(lm: DiffusionLM, case: dict[str, Any], noise: dict[str, Array]) -> tuple[Trace, Trace, str]:
    """One case; where the recording samples, it took the best token, and so does this.

    The reference goes on with rows that are done until the whole batch is; what it reads of them then is not
    compared. Raises UnmaskError for fields that are not known here.
    """
    if unknown := sorted(case.keys() - RECORD - READ):
        raise UnmaskError(f"case '{case.get('name')}': field '{unknown[0]}' is not understood")
    if missing := sorted(READ - case.keys()):
        raise UnmaskError(f"case '{case.get('name')}': '{missing[0]}' is missing")
    length, theirs = case["canvas_length"], case["decoder_canvas_before_each_forward"]
    canvases, begins = -(-case["max_new_tokens"] // length), _begins(case)
    own = {name: case[name] for name in ("t_min", "t_max", "entropy_bound", "confidence_threshold")}
    steps, stable = case["max_denoising_steps"], case["stability_threshold"]
    options = renoise.Options(**own, max_steps=steps, stability_threshold=stable, greedy=True)
    requests = []
    for row, prompt in enumerate(case["prompt_ids"]):
        first = [case["randint_draws_in_order"][begin + n][row] for n, begin in enumerate(begins)]
        first = [case["start_canvas"][row], *first[1:], *[[0] * length] * (canvases - len(begins))]
        ids = [*prompt, *(token for canvas in first for token in canvas)]
        given = [i < len(prompt) for i in range(len(ids))]
        requests.append(Request(ids, given, block_length=length, method=options))
    decoder = Replaying(lm, case, requests, begins)
    for _ in decoder.run():
        pass
    ours, recorded = [], []
    for number, begin in enumerate(begins):
        own = [decoder.seen.get((row, number), []) for row in range(len(requests))]
        for step in range(max(map(len, own))):
            going = [row for row, canvas in enumerate(own) if step < len(canvas)]
            ours.append([own[row][step] for row in going])
            recorded.append([theirs[begin + step][row] for row in going] if begin + step < len(theirs) else [])
    rows = zip(decoder.rows.values(), case["final_ids"], strict=True)
    final = [_as_long(row.canvas.ids[0].tolist(), theirs, case) for row, theirs in rows]
    counted = _own_forwards(case, canvases)
    if counted is not None and decoder.steps != counted:
        raise UnmaskError(f"case '{case['name']}': rows take {decoder.steps} forwards instead of {counted}")
    passes = case["decoder_forward_passes"]
    return Trace(ours, final, len(ours)), Trace(recorded, case["final_ids"], passes), ""


def _begins(case: dict[str, Any]) -> list[int]:
    """The forward that every recorded canvas begins with: it reads what was drawn to begin it."""
    draws, theirs = case["randint_draws_in_order"], case["decoder_canvas_before_each_forward"]
    out = [0]
    for forward in range(1, len(theirs)):
        if forward + len(out) < len(draws) and theirs[forward] == draws[forward + len(out)]:
            out.append(forward)
    return out


def _own_forwards(case: dict[str, Any], canvases: int) -> list[int] | None:
    """Forwards until each row was done, as the reference counts them; None where an end of text cuts the count."""
    shares, eos = case.get("tokens_per_forward"), case["eos_token_id"]
    new = [ids[len(prompt) :] for ids, prompt in zip(case["final_ids"], case["prompt_ids"], strict=True)]
    if shares is None or any(eos in ids for ids in new):
        return None
    return [round(case["canvas_length"] * canvases / share) for share in shares]


def _as_long(ids: list[int], recorded: list[int], case: dict[str, Any]) -> list[int]:
    """Our row as long as theirs: they stop at an end of text, we fill whole canvases with padding behind it."""
    rest = ids[len(recorded) :]
    return ids[: len(recorded)] if all(token == case["pad_token_id"] for token in rest) else ids
