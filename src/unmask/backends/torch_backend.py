"""Forwards of a torch network: the reference, and the path of every GPU.

Shapes: B requests, W columns, N scored rows, V vocabulary, S cache slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.attention import AttentionMask, WindowMasks, render
from unmask.backends.torch_cache import SlotCache
from unmask.canvas import Array
from unmask.decoding.feed import TEXT, Feed, Sampling
from unmask.decoding.sampling import Scores
from unmask.layout import EMPTY, GROUPED, PADDING, Coordinates, Layout
from unmask.models.diffusion_gemma import DiffusionGemma
from unmask.models.transformer import Transformer, log_scores


def keep_top(logits_NV: Tensor, top_k_N: Tensor, top_p_N: Tensor) -> Tensor:
    """Logits with everything outside top-k, then outside the nucleus, at -inf.

    top_k 0 and top_p 1 switch a filter off; the token that crosses p is kept (Dream, SDAR, LLaDA2).
    """
    order = logits_NV.sort(stable=True, dim=-1, descending=True)
    rank = torch.arange(logits_NV.shape[-1], device=logits_NV.device)
    k = torch.where(top_k_N > 0, top_k_N, logits_NV.shape[-1])
    kept = order.values.masked_fill(rank >= k[:, None], -torch.inf)
    p = kept.softmax(-1)
    outside = (p.cumsum(-1) - p >= top_p_N[:, None]) & (top_p_N[:, None] < 1.0) & (rank > 0)
    kept = kept.masked_fill(outside, -torch.inf)
    return torch.full_like(logits_NV, -torch.inf).scatter(-1, order.indices, kept)


def warmed(logits_NV: Tensor, temperature_N: Tensor, top_k_N: Tensor, top_p_N: Tensor) -> Tensor:
    """Float64 logits over temperature, filtered; rows of temperature 0 are left as they are."""
    logits, warm = logits_NV.double(), temperature_N > 0
    if bool(warm.any()):
        logits = logits / torch.where(warm, temperature_N, 1.0)[:, None]
        top_k, top_p = torch.where(warm, top_k_N, 0), torch.where(warm, top_p_N, 1.0)
        if bool(((top_k > 0) | (top_p < 1)).any()):
            logits = keep_top(logits, top_k, top_p)
    return logits


@dataclass(frozen=True)
class Drafter:
    """What scores slots once the tokens before them are known: final states of the scored rows [N, D] and of the
    feed's slots [M, D]."""

    model: Transformer
    states: Tensor
    slots: Tensor

    def told(self, slot: Tensor, before: Tensor, token: Tensor) -> tuple[Tensor, Drafter]:
        """Logits [n, V] of slots after tokens [n] that were chosen by the states `before` [n, D]."""
        model, states = self.model, self.slots[slot]
        if model.chain is not None:
            states = model.chain(states, before, model.embedding(token))
        vocabulary, size = model.draft_vocabulary, model.config.vocab_size
        if vocabulary is None:
            logits = model.head(states).float()
            logits[:, model.config.mask_token_id] = -torch.inf
        else:
            logits = states.new_full((len(states), size), -torch.inf, dtype=torch.float32)
            logits[:, vocabulary] = F.linear(states, model.head.weight[vocabulary]).float()
        return logits, Drafter(model, states, self.slots)


class TorchLogits:
    """Logits [N, V] on the network's device; banned tokens are already at -inf.

    excluded [N]: logits of the mask where it has a share of the distribution though it is never written.
    dtype: the network's own. soften: the mean embedding under distributions, of networks that are told it.
    drafter: of networks that draft.
    """

    def __init__(
        self,
        logits_NV: Tensor,
        excluded_N: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        soften: Callable[[Tensor], Tensor] | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.logits, self.excluded, self.dtype, self.soften = logits_NV, excluded_N, dtype, soften
        self.drafter = drafter

    def _column(self, values: Array) -> Tensor:
        return torch.from_numpy(values).to(self.logits.device)

    def propose(self, sampling: Sampling) -> Scores:
        """See `decoding.sampling.propose`, in float64 but for rows that ask for the network's precision."""
        temperature, draw = self._column(sampling.temperature), self._column(sampling.token_draw)
        top_k, top_p = self._column(sampling.top_k), self._column(sampling.top_p)
        logits, warm = warmed(self.logits, temperature, top_k, top_p), temperature > 0
        best = logits.topk(min(2, logits.shape[-1]), -1)
        p = (logits - best.values[:, :1]).exp_()
        # of equal logits the first, as everywhere
        token = logits.argmax(-1)
        if bool(warm.any()):
            cumulative = p.cumsum(-1)
            drawn = torch.searchsorted(cumulative, draw[:, None] * cumulative[:, -1:], right=True)
            token = torch.where(warm, drawn.squeeze(1).clamp(max=p.shape[-1] - 1), token)
        rest = self._rest(temperature, warm & ((top_k > 0) | (top_p < 1)))
        share = (rest - best.values[:, :1]).exp()
        total = p.sum(-1, keepdim=True) + share
        p, share = p / total, share / total
        entropy = torch.special.entr(p).sum(-1) + torch.special.entr(share).squeeze(1)
        if sampling.native is not None:
            native = self._column(sampling.native)
            own = torch.cat([logits, rest], 1)[native].to(self.dtype).softmax(-1)
            # Dream's entropy has this term, and LLaDA's and Dream's confidences this precision
            entropy[native] = -(own * (own + 1e-10).log()).sum(-1).double()
            p[native], share[native] = own[:, :-1].double(), own[:, -1:].double()
        top = p.gather(1, best.indices)
        confidence = p.gather(1, token[:, None]).squeeze(1)
        second = torch.maximum(top[:, 1:], share) if top.shape[1] > 1 else share
        margin = top[:, 0] - second[:, 0]
        host = [x.cpu().numpy() for x in (token, confidence, entropy, margin)]
        return Scores(host[0], host[1], host[2], host[3], sampling.choice_draw)

    def _rest(self, temperature_N: Tensor, filtered_N: Tensor) -> Tensor:
        """Logits [N, 1] of what has a share of the distribution but is never proposed; -inf where nothing."""
        if self.excluded is None:
            return self.logits.new_full((len(self.logits), 1), -torch.inf, dtype=torch.float64)
        rest = self.excluded.double() / torch.where(temperature_N > 0, temperature_N, 1.0)
        return rest.masked_fill(filtered_N, -torch.inf)[:, None]

    def probabilities(self, index: Array, sampling: Sampling) -> Array:
        """Float64 distributions [len(index), V] that rows are sampled from."""
        return self._probabilities(index, sampling).cpu().numpy()

    def odds(self, index: Array, tokens: Array) -> Array:
        """See `decoding.feed.Logits`."""
        rows = self.logits[self._column(index)]
        gap = rows.gather(1, self._column(tokens)[:, None]).squeeze(1) - rows.amax(-1)
        odds: Array = gap.double().exp().cpu().numpy()
        return odds

    @torch.inference_mode()
    def told(self, slot: Array, before: TorchLogits, row: Array, token: Array) -> TorchLogits:
        """See `decoding.feed.Logits`."""
        assert self.drafter is not None
        assert before.drafter is not None
        known = before.drafter.states[self._column(row)]
        logits, drafter = self.drafter.told(self._column(slot), known, self._column(token))
        return TorchLogits(logits, None, self.dtype, drafter=drafter)

    @torch.inference_mode()
    def restrict(self, index: Array, allowed: Array) -> Array:
        """See `decoding.feed.Logits`. A mask that shares the softmax of such rows shares it no more."""
        rows = self._column(index)
        only = self.logits[rows].masked_fill(~self._column(allowed), -torch.inf)
        possible = only.amax(-1) > -torch.inf
        self.logits[rows[possible]] = only[possible]
        if self.excluded is not None:
            self.excluded[rows[possible]] = -torch.inf
        host: Array = possible.cpu().numpy()
        return host

    def _probabilities(self, index: Array, sampling: Sampling) -> Tensor:
        options = (self._column(x) for x in (sampling.temperature, sampling.top_k, sampling.top_p))
        return warmed(self.logits[self._column(index)], *options).softmax(-1)

    def best(self, index: Array, sampling: Sampling) -> tuple[Array, Array]:
        """See `feed.ConditioningLogits`; the filters are not read."""
        rows = self.logits[self._column(index)]
        temperature = self._column(np.where(sampling.temperature > 0, sampling.temperature, 1.0).astype(np.float32))
        rows = rows / temperature[:, None]
        token = rows.argmax(-1)
        p = (rows.gather(1, token[:, None])[:, 0] - rows.logsumexp(-1)).exp().double()
        return token.cpu().numpy(), p.cpu().numpy()

    def signal(self, index: Array, sampling: Sampling) -> Tensor:
        """See `feed.ConditioningLogits`: the mean embedding under each row's distribution, [len(index), D]."""
        assert self.soften is not None
        with torch.inference_mode():
            return self.soften(self._probabilities(index, sampling))


class TorchBackend:
    """Feeds a network, keeping exact keys and values of text in slots by position."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        self.layout, self.cache = Layout("causal"), cast(SlotCache | None, None)

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    def open(self, layout: Layout, rows: int, slots: int, use_cache: bool) -> None:
        self.layout = layout
        dtype = self.model.embedding.weight.dtype
        self.cache = SlotCache(self.config, rows, slots, self.device, dtype) if use_cache else None

    def admit(self, rows: int, slots: int) -> None:
        if self.cache is not None:
            self.cache.extend(rows, slots)

    def keep(self, rows: Array) -> None:
        if self.cache is not None:
            self.cache.select(torch.from_numpy(rows).to(self.device))

    @torch.inference_mode()
    def forward(self, feed: Feed) -> TorchLogits:
        def tensor(values: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

        position, document = tensor(feed.position), tensor(feed.document)
        grouped = self.layout.kind in GROUPED
        anchor = tensor(feed.anchor)
        offset = tensor(feed.offset)[:, None]
        q = Coordinates.drafts(position, anchor, document) if grouped else Coordinates.of(position + offset, document)
        gate = (anchor != TEXT) if grouped and bool((feed.anchor != TEXT).any()) else None
        if self.cache is None:
            plain = self.layout.kind == "bidirectional" and bool((feed.document != PADDING).all())
            mask: AttentionMask = None if plain else self._render(q)
        else:
            visible = int(max(feed.cached.max(), feed.beyond.max()))
            self.cache.begin(position, (document != PADDING) & (anchor == TEXT), visible)
            mask = self._cached_mask(q, offset, tensor(feed.cached), tensor(feed.beyond), visible)
        columns = (tensor(feed.ids), position, mask, self.cache)
        row, column = tensor(feed.row), tensor(feed.column)
        if isinstance(self.model, DiffusionGemma):
            hidden = self.model.hidden(*columns, gate_BT=gate, signal_BTD=self._signal(feed, anchor != TEXT))
            return self._scored(self.model.head(hidden[row, column]).float(), feed, self.model.signal)
        hidden = self.model.hidden(*columns, tensor(feed.time), gate)
        states = hidden[row, column]
        logits, guided = self.model.head(states).float(), feed.guidance > 0
        if bool(guided.any()):
            which = tensor(guided)
            without = self.model.head(hidden[row[which] + 1, column[which]]).float()
            scale = tensor(feed.guidance[guided].astype(np.float32))[:, None]
            logits[which] = without + (scale + 1) * (logits[which] - without)
        slots = hidden[tensor(feed.slot_row), tensor(feed.slot_column)]
        return self._scored(logits, feed, drafter=Drafter(self.model, states, slots) if grouped else None)

    def _signal(self, feed: Feed, gate_BW: Tensor) -> Tensor | None:
        """What the requests' canvases are conditioned on, [B, W, D]; 0 for those at their first step."""
        if all(signal is None for signal in feed.signals):
            return None
        weight = self.model.embedding.weight
        out = torch.zeros(*gate_BW.shape, self.config.hidden_size, device=weight.device, dtype=weight.dtype)
        for b, signal in enumerate(feed.signals):
            if signal is not None:
                out[b, gate_BW[b]] = signal
        return out

    def _render(self, q: Coordinates) -> AttentionMask:
        windows = self.config.windows
        return WindowMasks.of(self.layout, windows, q) if windows else render(self.layout, q)

    def _cached_mask(
        self, q: Coordinates, offset_B1: Tensor, cached_B: Tensor, beyond_B2: Tensor, visible: int
    ) -> AttentionMask:
        """Mask [B, 1, W, S + W], of each window; None where every query sees every key (one request, one block)."""
        slots = torch.arange(visible, device=self.device).expand(len(cached_B), -1)
        seen = slots < cached_B[:, None]
        if bool((beyond_B2 > 0).any()):
            seen = seen | ((slots >= beyond_B2[:, :1]) & (slots < beyond_B2[:, 1:]))
        document = torch.where(seen, 0, EMPTY)
        text = Coordinates.drafts(slots, torch.full_like(slots, TEXT), document)
        earlier = text if self.layout.kind in GROUPED else Coordinates.of(slots + offset_B1, document)
        k = Coordinates(*(torch.cat([a, b], 1) for a, b in zip(earlier, q, strict=True)))

        def dense(layout: Layout) -> Tensor | None:
            mask: Tensor = layout.dense(q, k)
            return None if bool(mask.all()) else mask

        windows = self.config.windows
        if windows:
            return WindowMasks({window: dense(replace(self.layout, window=window)) for window in windows})
        return dense(self.layout)

    def _scored(
        self,
        logits_NV: Tensor,
        feed: Feed,
        soften: Callable[[Tensor], Tensor] | None = None,
        drafter: Drafter | None = None,
    ) -> TorchLogits:
        """Logits or log scores without what is never written: the mask, and of drafts all but their vocabulary."""
        logits, excluded, mask = logits_NV, None, self.config.mask_token_id
        vocabulary, of_draft = self.model.draft_vocabulary, torch.from_numpy(feed.of_draft)
        if vocabulary is not None and bool(of_draft.any()):
            others = torch.ones(logits.shape[1], dtype=torch.bool, device=self.device)
            others[vocabulary] = False
            logits = logits.masked_fill(of_draft.to(self.device)[:, None] & others, -torch.inf)
        dtype = self.model.embedding.weight.dtype
        if self.config.output == "log_score":
            there = torch.from_numpy(feed.ids[feed.row, feed.column]).to(self.device)
            time = torch.from_numpy(feed.time[feed.row]).to(self.device)
            scores = log_scores(logits[:, None], there[:, None], time, self.config.score_scaled)[:, 0]
            return TorchLogits(scores, None, dtype, soften, drafter)
        if mask is not None:
            excluded = logits[:, mask].clone() if self.config.mask_in_softmax else None
            logits[:, mask] = -torch.inf
        return TorchLogits(logits, excluded, dtype, soften, drafter)
