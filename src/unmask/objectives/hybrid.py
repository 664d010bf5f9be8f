"""One network that writes token by token and denoises a block behind its text, learned in one pass.

Shapes: B rows, L tokens of a row, G blocks of a row, K tokens of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unmask.attention import render
from unmask.layout import PADDING, Coordinates, Layout
from unmask.models.transformer import Transformer
from unmask.noise import clip_times
from unmask.objectives.draws import Draws
from unmask.objectives.masked import check_clip
from unmask.objectives.objective import Noised, Objective, Rows, scored_loss


@dataclass(frozen=True, kw_only=True)
class Behind(Noised):
    """Blocks [B, G * K] before their clean rows [B, L]: inputs, targets and weights are of both, in this order."""

    position: Tensor  # of each token of a block in its document [B, G * K]
    anchor: Tensor  # of the last token of the text that a block sees, in the document [B, G * K]
    document: Tensor  # [B, G * K]


@dataclass(frozen=True)
class Hybrid(Objective):
    """Next-token prediction of the text, and masked diffusion of blocks behind it (Nemotron-Labs-Diffusion, arXiv
    2607.05722): the network writes in modes ar and diffusion, and in mode verify it drafts a block in one forward and
    checks it in the next.

    A row's text is read causally. `blocks` blocks of `block_length` tokens hang on places in it, the start of each
    answer first and then any: a block sees the text up to its place, and all of itself. Each is masked at a time drawn
    from `clip`, a share `full` of them wholly. The loss is the mean over masked tokens, plus `ar` times that over the
    text's. Behind a document's end a block has masks, of which nothing is learned; with eos `learn` the document's last
    token again and again.
    """

    shift: bool = True
    block_length: int = 32
    blocks: int = 3
    clip: tuple[float, float] = (0.1, 1.0)
    full: float = 0.5
    ar: float = 1.0

    def __post_init__(self) -> None:
        check_clip(self.clip)
        if not self.shift or self.block_length < 2 or self.blocks < 1:
            raise ValueError("shift must be true, block_length at least 2 and blocks at least 1")
        if not 0 <= self.full <= 1 or not 0 <= self.ar < 1e6 or self.normaliser != "tokens":
            raise ValueError("full must be in [0, 1], ar at least 0 and normaliser left as it is")

    def network(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        return {"shift": True, "in_place": True, "layout": "causal_blocks", "block_length": self.block_length}

    def held_out(self) -> Hybrid:
        """Blocks that are wholly masked."""
        return replace(self, full=1.0)

    def corrupt(self, rows: Rows, draws: Draws, mask_id: int | None, vocab_size: int = 0) -> Behind:
        if mask_id is None:
            raise ValueError("a hybrid needs a model with a mask_token_id")
        place, used = self._places(rows, draws)  # of the first token of each block in its row [B, G]
        device = rows.ids.device
        index = place[..., None] + torch.arange(self.block_length, device=device)  # [B, G, K]
        first = place[..., None].expand_as(index)
        inside = index < rows.ids.shape[1]
        index = index.clamp(max=rows.ids.shape[1] - 1)

        def at(of_row: Tensor, where: Tensor) -> Tensor:
            return of_row.gather(1, where.flatten(1)).view_as(where)

        document = at(rows.document, first)
        inside &= at(rows.document, index) == document
        begins = at(rows.position, first)
        of_document = rows.document[:, None] == document[..., :1]  # [B, G, L]
        last = (of_document * torch.arange(rows.ids.shape[1], device=device)).argmax(-1)
        tokens = torch.where(inside, at(rows.ids, index), rows.ids.gather(1, last)[..., None])
        blocks = place.shape[1]
        t = clip_times(draws.strata(blocks), *self.clip).to(device)
        t = torch.where(draws.uniforms(blocks, purpose=5).to(device) < self.full, 1.0, t)
        masked = draws.uniforms(tokens[0].numel(), purpose=6).to(device).view(tokens.shape) < t[..., None]
        if self.eos == "ignore":
            masked |= ~inside
        learned = masked & used[..., None] & (inside | (self.eos == "learn"))
        following = rows.supervised & (rows.position > 0)
        share = self.ar * float(learned.sum()) / max(1.0, float(following.sum()))
        return Behind(
            inputs=torch.cat([torch.where(masked, mask_id, tokens).flatten(1), rows.ids], 1),
            targets=torch.cat([tokens.flatten(1), rows.ids], 1),
            weights=torch.cat([learned.flatten(1).float(), following * share], 1),
            rows=rows,
            normaliser=float(learned.sum()),
            position=(begins + torch.arange(self.block_length, device=device)).flatten(1),
            anchor=(begins - 1).flatten(1),
            document=torch.where(used[..., None], document, PADDING).flatten(1),
        )

    def _places(self, rows: Rows, draws: Draws) -> tuple[Tensor, Tensor]:
        """Where blocks begin [B, G], and which of them are blocks: a row with few learned tokens has fewer."""
        able = rows.supervised & (rows.position > 0)
        opens = able.clone()
        opens[:, 1:] &= ~rows.supervised[:, :-1] | (rows.document[:, 1:] != rows.document[:, :-1])
        drawn = draws.uniforms(rows.ids.shape[1]).to(rows.ids.device)
        best = torch.where(able, drawn + opens.float(), -1.0).topk(min(self.blocks, able.shape[1]), -1)
        return best.indices, best.values >= 0

    def states(self, model: Transformer, noised: Behind) -> Tensor:
        """Hidden states [B, G * K + L, D], each at the token that it scores."""
        rows = noised.rows
        text = Coordinates.drafts(rows.position, torch.full_like(rows.position, -1), rows.document)
        position = noised.position.clamp(max=model.config.max_length - 1)  # behind a text that is as long as can be
        own = Coordinates.drafts(position, noised.anchor, noised.document)
        every = Coordinates(*(torch.cat(pair, 1) for pair in zip(own, text, strict=True)))
        hidden = model.hidden(noised.inputs, every.position, render(Layout("causal_blocks"), every))
        blocks = noised.position.shape[1]
        return torch.cat([hidden[:, :blocks], model.unshift(hidden[:, blocks:], rows.position)], 1)

    def loss(self, model: Transformer, noised: Any) -> Tensor:
        return scored_loss(model, self.states(model, noised), noised, model.config.mask_token_id)

    @torch.no_grad()
    def report(self, model: Transformer, noised: Any) -> dict[str, float]:
        """Of blocks that are wholly masked: how many tokens are right in a row (`accepted`), as a sum over `count`."""
        blocks = noised.position.shape[1]
        own = self.states(model, noised)[:, :blocks]
        best = model.head(own).argmax(-1)
        shape = (len(best), -1, self.block_length)
        learned = (noised.weights[:, :blocks] > 0).view(shape)
        right = (best == noised.targets[:, :blocks]).view(shape) & learned
        whole = (noised.inputs[:, :blocks] == model.config.mask_token_id).view(shape).all(-1) & learned.any(-1)
        return {"accepted": float(right.long().cumprod(-1)[whole].sum()), "count": float(whole.sum())}
