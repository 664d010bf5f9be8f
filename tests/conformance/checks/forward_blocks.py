"""Block-causal forwards, the training pass over [x_t ; x_0], cached blocks and routers against recorded ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.checks.checks import Check, Recorded, agree, difference, unequal
from conformance.checks.outcome import Kind
from unmask.attention import doubled
from unmask.backends.torch import TorchBackend
from unmask.decoding.feed import TEXT, Columns, Feed
from unmask.layout import Coordinates, Layout
from unmask.lm import DiffusionLM
from unmask.models.layers import Router

NAMED = r"block(\d+)|block_causal|sample_mode(?:_prefix(\d+))?"
TRAINING = r"train(?:_block(\d+))?"


def block_length(lm: DiffusionLM, recorded: Recorded, prefix: str) -> int:
    """Of a group: as its name says, else as the first row of its mask sees, else the model's own."""
    named = re.search(r"block(\d+)", prefix)
    if named:
        return int(named.group(1))
    mask = recorded.get(f"{prefix}.attention_mask")
    return lm.config.block_length if mask is None else int(mask.flatten(0, -2)[0].sum())


def mask_check(kind: Kind, prefix: str, recorded: Recorded, layout: Layout, q: Coordinates) -> Iterator[Check]:
    """Our predicate against the reference's mask, where it is recorded."""
    theirs = recorded.get(f"{prefix}.attention_mask")
    if theirs is None or theirs.shape[-1] != theirs.shape[-2]:
        return

    def compute() -> str:
        ours = layout.dense(q, q)[:, 0]
        wrong = (ours != theirs.bool().reshape(-1, *theirs.shape[-2:])).nonzero()
        return f"query {int(wrong[0, 1])}, key {int(wrong[0, 2])} and {len(wrong) - 1} more" if len(wrong) else ""

    yield Check(kind, f"{prefix}.attention_mask", compute)


def block_causal(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """`blockN.*`, `block_causal.*`, and BD3-LM's `sample_mode`, of which `_prefixN` is cut to N tokens."""
    for prefix in recorded.groups(NAMED, "logits"):
        source = re.sub(r"_prefix\d+$", "", prefix)
        ids = recorded[f"{source}.input_ids"] if f"{source}.input_ids" in recorded else recorded["input_ids"]
        ids = ids[:, : recorded[f"{prefix}.logits"].shape[1]]
        length = block_length(lm, recorded, prefix)
        ours = partial(lm.logits, ids, layout="block_causal", block_length=length)
        yield from agree(lm, "block-causal", prefix, recorded, ours)
        coordinates = Coordinates.of(torch.arange(ids.shape[1]))
        yield from mask_check("block-causal", prefix, recorded, Layout("block_causal", length), coordinates)


def training(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """One forward over [x_t ; x_0]; references keep the logits of both halves or of the first."""
    for prefix in recorded.groups(TRAINING, "logits"):
        if f"{prefix}.input_ids" in recorded:
            ids, x_0 = recorded[f"{prefix}.input_ids"], recorded.get(f"{prefix}.x_0")
            if x_0 is not None:  # the same for every copy that is masked anew
                clean, copies = ids[:, ids.shape[1] // 2 :], x_0.repeat(len(ids) // len(x_0), 1)
                yield Check("training pass", f"{prefix}.x_0", partial(unequal, clean.tolist(), copies.tolist()))
        else:
            ids = torch.cat([recorded[f"{prefix}.x_t"], recorded[f"{prefix}.x_0"]], 1)
        recorded.get(f"{prefix}.position_ids")
        layout = Layout("block_diffusion", block_length(lm, recorded, prefix))
        q = doubled(Coordinates.of(torch.arange(ids.shape[1] // 2)))
        ours = partial(_over_pairs, lm, ids, layout, q)
        yield from _first_rows(lm, recorded, f"{prefix}.logits", ours)
        told = f"{prefix}_sigma_conditioned.logits"
        if told in recorded and f"{prefix}.sigma" in recorded:
            yield from _first_rows(lm, recorded, told, partial(ours, recorded[f"{prefix}.sigma"]))
        yield from mask_check("training pass", prefix, recorded, layout, q)
        yield from _loss(lm, recorded, prefix, ids, ours)


def _over_pairs(
    lm: DiffusionLM, ids_BT: Tensor, layout: Layout, q: Coordinates, time_B: Tensor | None = None
) -> Tensor:
    """Logits [B, 2L, V] as the head gives them: a shifted head's row i scores position i + 1."""
    position = q.position if q.position.dim() == 2 else q.position[None]
    return lm.model.head(lm.model.hidden(ids_BT, position, layout.dense(q, q), time_B=time_B))


def _first_rows(lm: DiffusionLM, recorded: Recorded, name: str, ours: partial[Tensor]) -> Iterator[Check]:
    theirs = recorded[name]
    yield Check("training pass", name, lambda: difference(ours()[:, : theirs.shape[1]], theirs))


def _loss(lm: DiffusionLM, recorded: Recorded, prefix: str, ids: Tensor, ours: partial[Tensor]) -> Iterator[Check]:
    """The recorded loss, next-token labels under a shifted head, kept where the input is masked."""
    labels, kept, loss = (recorded.get(f"{prefix}.{leaf}") for leaf in ("labels", "loss_labels", "loss"))
    if kept is None or loss is None:
        return
    length, shift = kept.shape[1], int(lm.config.shift)
    if labels is not None:
        changed = ids[:, :length] != ids[:, length:]
        expected = labels.repeat(len(ids) // len(labels), 1).masked_fill(~changed, -100)
        yield Check("training pass", f"{prefix}.loss_labels", lambda: unequal(expected.tolist(), kept.tolist()))

    def compute() -> float:
        scores = ours()[:, : length - shift].flatten(0, 1)
        return difference(F.cross_entropy(scores, kept[:, shift:].flatten()).view(loss.shape), loss)

    yield Check("training pass", f"{prefix}.loss", compute)


def packed(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """Several documents in a row, each as x_t, then x_0: a new run begins where positions start again."""
    for prefix in recorded.groups("packed", "logits"):
        ids, position = recorded[f"{prefix}.input_ids"], recorded[f"{prefix}.position_ids"]
        starts = torch.ones_like(position, dtype=torch.long)
        starts[:, 1:] = (position[:, 1:] != position[:, :-1] + 1).long()
        run = starts.cumsum(1) - 1
        q = Coordinates(position, run // 2, run % 2)
        layout = Layout("block_diffusion", block_length(lm, recorded, prefix))
        yield from _first_rows(lm, recorded, f"{prefix}.logits", partial(_over_pairs, lm, ids, layout, q))
        yield from mask_check("training pass", prefix, recorded, layout, q)


def cached(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """A block after exact keys and values of the clean text before it: through the engine's own cache."""
    if "cached.block_logits" in recorded:
        before, block = recorded["cached.prefix_ids"], recorded["cached.block_ids"]
        theirs = recorded["cached.block_logits"]
        length = lm.config.block_length
        yield Check(
            "block-causal", "cached.block_logits", partial(_cached_difference, lm, before, block, theirs, length)
        )
    for name in recorded.groups("kv.x_t_block_given_x0_prefix", "logits"):
        theirs, length = recorded[f"{name}.logits"], lm.config.block_length
        x_t, x_0 = recorded["train.x_t"], recorded["train.x_0"]

        def compute(x_t: Tensor = x_t, x_0: Tensor = x_0, theirs: Tensor = theirs, length: int = length) -> float:
            blocks = [slice(s, s + length) for s in range(0, x_t.shape[1], length)]
            return max(_cached_difference(lm, x_0[:, : b.start], x_t[:, b], theirs[:, b], length) for b in blocks)

        yield Check("block-causal", f"{name}.logits", compute)


def _cached_difference(lm: DiffusionLM, before: Tensor, block: Tensor, theirs: Tensor, length: int) -> float:
    """Rows of the block, as the head gives them. The engine never proposes the mask, so that is left out."""
    start, end = before.shape[1], before.shape[1] + block.shape[1]
    backend = TorchBackend(lm.model)
    backend.open(Layout("block_causal", length), len(block), end, True)

    def feed(ids: Tensor, low: int, high: int) -> Tensor:
        place = np.arange(low, high)
        text = np.full(high - low, TEXT)
        columns = [Columns(row.numpy(), place, text, place - low, place) for row in ids]
        return backend.forward(Feed.of(columns, np.full(len(ids), low))).logits.view(len(ids), high - low, -1)

    if start:
        feed(before, 0, start)
    mask_id = lm.config.mask_token_id
    others = [i for i in range(theirs.shape[-1]) if i != mask_id]
    return difference(feed(block, start, end)[..., others], theirs[..., others])


def routers(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """Experts chosen in a layer, in any order, and their weights, during the block-causal forward."""
    forwards = recorded.groups(r"block\d+|block_causal", "logits")
    for prefix in recorded.groups(r".+\.router\d+", "topk_idx"):
        layer = int(prefix.rpartition("router")[2])
        index, weight = recorded[f"{prefix}.topk_idx"], recorded[f"{prefix}.topk_weight"]
        own = prefix.partition(".")[0]
        group = own if own in forwards else forwards[0] if forwards else ""
        length = block_length(lm, recorded, group)
        ids = recorded.get(f"{group}.input_ids")
        ids = recorded["input_ids"] if ids is None else ids

        def compute(
            layer: int = layer, index: Tensor = index, weight: Tensor = weight, ids: Tensor = ids, length: int = length
        ) -> float | str:
            ours, our_weight = _chosen(lm, layer, ids, length)
            (ours, order), (theirs, their_order) = ours.sort(-1), index.sort(-1)
            if not torch.equal(ours, theirs):
                return f"experts {ours[(ours != theirs).any(-1)][0].tolist()} of a token are others"
            return difference(our_weight.gather(1, order), weight.gather(1, their_order))

        yield Check("block-causal", prefix, compute, 1e-5)


def _chosen(lm: DiffusionLM, layer: int, ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Experts [N, k] that a layer's router takes, and their weights."""
    found: list[tuple[Tensor, Tensor]] = []
    router = next(m for m in lm.model.blocks[layer].modules() if isinstance(m, Router))
    hook = router.register_forward_hook(lambda _m, _i, out: found.append(out))
    try:
        lm.logits(ids, layout="block_causal", block_length=length)
    finally:
        hook.remove()
    return found[0]


GROUPS = (block_causal, training, packed, cached, routers)
