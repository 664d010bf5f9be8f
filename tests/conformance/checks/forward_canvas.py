"""A canvas behind its text (DiffusionGemma) against recorded numbers: `canvas_ids` behind `input_ids`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from conformance.checks.checks import Check, Recorded, difference, unshifted_difference
from unmask.attention import WindowMasks
from unmask.backends.torch import SlotCache
from unmask.decoding.feed import TEXT
from unmask.layout import Coordinates, Layout
from unmask.lm import DiffusionLM
from unmask.models.diffusion_gemma import DiffusionGemma


def at_once(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """Text and canvas in one forward, on their own and padded; text alone, scored by the column before."""
    if "canvas_ids" not in recorded:
        return
    text, canvas = recorded["input_ids"], recorded["canvas_ids"]
    if "encoder_ar_logits" in recorded:
        theirs = recorded["encoder_ar_logits"]
        compute = partial(_text_difference, lm, text, theirs)
        yield Check("forward", "encoder_ar_logits", compute)
    valid = torch.ones_like(text)
    if "logits_no_self_conditioning" in recorded:
        theirs = recorded["logits_no_self_conditioning"]
        compute = partial(_canvas_difference, lm, text, valid, canvas, theirs)
        yield Check("forward", "logits_no_self_conditioning", compute)
    for name in recorded.groups("(left|right)_pad", "logits"):
        ids, valid, theirs = (recorded[f"{name}.{leaf}"] for leaf in ("input_ids", "attention_mask", "logits"))
        recorded.get(f"{name}.position_ids")
        yield Check("padded", f"{name}.logits", partial(_canvas_difference, lm, ids, valid, canvas, theirs))


def _text_difference(lm: DiffusionLM, text: Tensor, theirs: Tensor) -> float:
    return unshifted_difference(lm, lm.logits(text, layout="causal"), theirs)


def _canvas_difference(lm: DiffusionLM, text: Tensor, valid: Tensor, canvas: Tensor, theirs: Tensor) -> float:
    ids, mask = torch.cat([text, canvas], 1), torch.cat([valid, torch.ones_like(canvas)], 1)
    ours = lm.logits(ids, block_length=canvas.shape[1], attention_mask=mask)
    return difference(ours[:, -canvas.shape[1] :], theirs)


def kept(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """Text read once: its states, keys and values; then canvases against them, conditioned on a step before."""
    if "canvas_ids" not in recorded:
        return
    text, canvas = recorded["input_ids"], recorded["canvas_ids"]
    if "encoder_last_hidden_state" in recorded:
        theirs = recorded["encoder_last_hidden_state"]
        compute = partial(_difference, partial(_hidden, lm, text), theirs)
        yield Check("forward", "encoder_last_hidden_state", compute)
    for part in ("keys", "values"):
        for name in recorded.groups(r"kv\.\d+", part):
            layer, theirs = int(name.rpartition(".")[2]), recorded[f"{name}.{part}"]
            yield Check("block-causal", f"{name}.{part}", partial(_kept_difference, lm, text, layer, part, theirs))
    if "self_conditioning_logits" in recorded:
        before = recorded["self_conditioning_logits"]
        for name, rows in (("logits_self_conditioned", len(text)), ("logits_self_conditioned_row0_only", 1)):
            if name in recorded:
                ours = partial(_conditioned, lm, text, canvas, before, rows)
                yield Check("forward", name, partial(_difference, ours, recorded[name]))
    if "second_canvas.logits" in recorded:
        ids = recorded["second_canvas.canvas_ids"]
        ours = partial(_behind, lm, torch.cat([text, canvas], 1), ids)
        yield Check("forward", "second_canvas.logits", partial(_difference, ours, recorded["second_canvas.logits"]))


def _difference(ours: partial[Tensor], theirs: Tensor) -> float:
    return difference(ours(), theirs)


class _Reader:
    """A network with a cache: columns of text are kept, those of a canvas are not."""

    def __init__(self, lm: DiffusionLM, rows: int, slots: int) -> None:
        assert isinstance(lm.model, DiffusionGemma)
        self.model, self.windows = lm.model, lm.config.windows
        self.cache = SlotCache(lm.config, rows, slots, torch.device("cpu"), torch.float32)

    def read(self, ids: Tensor, start: int, canvas: bool, signal: Tensor | None = None) -> Tensor:
        """Final states of columns behind `start` cached ones."""
        position = torch.arange(start, start + ids.shape[1]).expand(len(ids), -1)
        slots = torch.arange(start).expand(len(ids), -1)
        q = Coordinates.drafts(position, torch.full_like(position, start - 1 if canvas else TEXT))
        earlier = Coordinates.drafts(slots, torch.full_like(slots, TEXT))
        k = Coordinates(*(torch.cat([a, b], 1) for a, b in zip(earlier, q, strict=True)))
        gate = torch.full_like(position, canvas, dtype=torch.bool)
        self.cache.begin(position, ~gate, start)
        mask = WindowMasks.of(Layout("canvas"), self.windows, q, k)
        own = gate if canvas else None
        return self.model.hidden(ids, position, mask, self.cache, gate_BT=own, condition_BTD=signal)


def _hidden(lm: DiffusionLM, text: Tensor) -> Tensor:
    return _Reader(lm, *text.shape).read(text, 0, False)


def _kept_difference(lm: DiffusionLM, text: Tensor, layer: int, part: str, theirs: Tensor) -> float:
    """The reference keeps what a sliding layer can still see."""
    reader, count = _Reader(lm, *text.shape), theirs.shape[2]
    reader.read(text, 0, False)
    own = (reader.cache.keys if part == "keys" else reader.cache.values)[layer]
    return difference(own[:, :, text.shape[1] - count : text.shape[1]], theirs)


def _behind(lm: DiffusionLM, text: Tensor, canvas: Tensor, signal: Tensor | None = None) -> Tensor:
    reader = _Reader(lm, *text.shape)
    reader.read(text, 0, False)
    return lm.model.head(reader.read(canvas, text.shape[1], True, signal))


def _conditioned(lm: DiffusionLM, text: Tensor, canvas: Tensor, before: Tensor, rows: int) -> Tensor:
    """Canvas logits where the first `rows` rows are told what the step before thought."""
    assert isinstance(lm.model, DiffusionGemma)
    signal = lm.model.mean_embedding(before.softmax(-1))
    signal[rows:] = 0
    return _behind(lm, text, canvas, signal)


GROUPS = (at_once, kept)
