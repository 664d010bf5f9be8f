"""Forward passes against recorded logits: every tensor of a family's forward.safetensors is checked or named.

Tensors are found by what their names mean, never by a list of families: bare `logits` are a plain forward,
`blockN.*` a block-causal one, `train*` one over [x_t ; x_0], `left_pad.*` and `right_pad.*` a padded batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from conformance.checks import forward_blocks, forward_canvas, forward_steps
from conformance.checks.checks import (
    Check,
    Recorded,
    agree,
    difference,
    not_checked,
    one_line,
    perform,
    unshifted_difference,
)
from conformance.checks.outcome import Kind, Outcome
from unmask.lm import DiffusionLM

CAUSAL = r"anneal_ratio0(?:\.0)?_causal"


def outcomes(family: str, lm: DiffusionLM, tensors: dict[str, Tensor]) -> list[Outcome]:
    """Checks all there is to check; what nothing here reads is said to be not checked."""
    recorded, found = Recorded(tensors), []
    for group in GROUPS:
        try:
            found += [perform(family, check) for check in group(lm, recorded)]
        except (
            LookupError,
            ValueError,
            RuntimeError,
            TypeError,
        ) as error:  # tensors that belong together are not there
            found.append(Outcome(family, "forward", group.__name__, False, one_line(error)))
    reason = "no check reads this tensor"
    return found + [not_checked(family, kind_of(name), name, reason) for name in sorted(recorded.unread)]


def kind_of(name: str) -> Kind:
    """Which column of the table a tensor belongs to."""
    if re.match(r"train|packed", name):
        return "training pass"
    if re.match(r"(left|right)_pad", name):
        return "padded"
    return "block-causal" if re.match(r"block|kv|cached|sample_mode", name) else "forward"


def plain(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """Bare `logits`: nothing is masked, unless the network itself is causal; told the noise if `sigma` is there."""
    if "logits" not in recorded or "input_ids" not in recorded:
        return
    ids = recorded["input_ids"]
    ours = partial(lm.logits, ids, layout=unmasked(lm))
    if lm.config.time_condition_size and "sigma" in recorded:
        ours = partial(lm.model, ids, time_B=recorded["sigma"])
    yield from agree(lm, "forward", "", recorded, ours)


def unmasked(lm: DiffusionLM) -> str:
    """The layout of a forward that is given no mask."""
    return "causal" if lm.config.layout in ("causal", "drafts") else "bidirectional"


def conditioned(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """Networks that are told the noise level; soft inputs; SUBS, which never predicts the mask."""
    for name in recorded.groups("sigma0|sigma_conditioned", "logits"):
        time = recorded["sigma"] if name == "sigma_conditioned" else None
        ours = partial(lm.model, recorded["input_ids"], time_B=time)
        yield from agree(lm, "forward", name, recorded, ours)
    if "soft_input.logits" in recorded and "soft_input_logits" in recorded:
        weights, time = recorded["soft_input_logits"], recorded.get("sigma")
        yield from agree(lm, "forward", "soft_input", recorded, partial(_soft_input, lm, weights, time))
    if "subs_log_probs" in recorded:
        ids, log_p = recorded["input_ids"], recorded["subs_log_probs"]
        yield Check("forward", "subs_log_probs", partial(_subs_difference, lm, ids, log_p))


def _soft_input(lm: DiffusionLM, logits_BLV: Tensor, time_B: Tensor | None) -> Tensor:
    """Logits for a canvas of distributions: the embeddings are their means."""

    def mean(module: torch.nn.Module, ids: object, out: Tensor) -> Tensor:
        return logits_BLV.softmax(-1) @ lm.model.embedding.weight

    hook = lm.model.embedding.register_forward_hook(mean)
    try:
        return lm.model(logits_BLV.argmax(-1), time_B=time_B)
    finally:
        hook.remove()


def _subs_difference(lm: DiffusionLM, ids: Tensor, log_p: Tensor) -> float:
    """Masked rows of MDLM's parametrisation; its rows of clean tokens only repeat them."""
    mask_id = lm.config.mask_token_id
    logits = lm.model(ids)
    logits[..., mask_id] = -torch.inf
    rows, others = ids == mask_id, torch.arange(logits.shape[-1]) != mask_id  # their zero is exp(-1e6)
    return difference(logits.log_softmax(-1)[rows][:, others], log_p[rows][:, others])


def scored(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """Networks that give log scores at a noise level (SEDD)."""
    if "log_score" in recorded and "sigma" in recorded:
        ids, sigma, theirs = recorded["input_ids"], recorded["sigma"], recorded["log_score"]
        yield Check("forward", "log_score", lambda: difference(lm.model(ids, time_B=sigma), theirs))


def padded(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """Batches of texts of different length; logits of padding mean nothing and are not compared."""
    for name in [] if "canvas_ids" in recorded else recorded.groups("(left|right)_pad", "logits"):
        ids, valid = recorded[f"{name}.input_ids"], recorded[f"{name}.attention_mask"].bool()
        raw = recorded[f"{name}.logits"]
        recorded.get(f"{name}.position_ids")  # ours count the tokens from the left, whatever stands before them

        def compute(ids: Tensor = ids, valid: Tensor = valid, raw: Tensor = raw) -> float:
            return unshifted_difference(lm, lm.logits(ids, layout=unmasked(lm), attention_mask=valid), raw, valid)

        yield Check("padded", f"{name}.logits", compute)


def annealed(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """DiffuGPT before its attention is annealed: an autoregressive network still."""
    for name in recorded.groups(CAUSAL, "logits"):
        ids = recorded["input_ids"]
        yield from agree(lm, "forward", name, recorded, partial(lm.logits, ids, layout="causal"))


GROUPS = (
    plain, conditioned, scored, padded, annealed,
    *forward_blocks.GROUPS, *forward_canvas.GROUPS, *forward_steps.GROUPS,
)  # fmt: skip
