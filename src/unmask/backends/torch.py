"""Forwards of a torch network: the reference, and the path of every GPU.

Keys and values are kept one slot per position: text writes its slots in place, and writing them again (a block that is
denoised, a draft that was rejected) overwrites them. The feed says how many slots hold. Layers without attention keep a
state, as it was before what may be written again.
Shapes: B requests, W columns, N scored rows, V vocabulary, G key/value heads, S cache slots.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.attention import AttentionMask, WindowMasks, render
from unmask.backends import Progress, Source, anything
from unmask.canvas import Array
from unmask.decoding.feed import TEXT, Backend, Feed, Sampling
from unmask.decoding.processors import Adjustment
from unmask.decoding.sampling import Scores
from unmask.layout import EMPTY, GROUPED, PADDING, Coordinates, Layout
from unmask.models.config import ModelConfig
from unmask.models.diffusion_gemma import DiffusionGemma
from unmask.models.mamba2 import States
from unmask.models.transformer import Transformer, log_scores

IMPLEMENTS = {field.name: anything for field in fields(ModelConfig)}  # the network is what the config describes


def unavailable(device: str) -> str | None:
    """Never: a device that torch cannot use is refused when the weights are read."""
    return None


def create(source: Source, sibling: Backend | None, progress: Progress | None) -> TorchBackend:
    return TorchBackend(source.network())


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
    logits = logits_NV.double()
    warm = temperature_N > 0
    if bool(warm.any()):
        logits = logits / torch.where(warm, temperature_N, 1.0)[:, None]
        top_k = torch.where(warm, top_k_N, 0)
        top_p = torch.where(warm, top_p_N, 1.0)
        if bool(((top_k > 0) | (top_p < 1)).any()):
            logits = keep_top(logits, top_k, top_p)
    return logits


@dataclass(frozen=True)
class TorchLogits:
    """Logits [N, V] on the network's device; banned tokens are already at -inf."""

    logits: Tensor
    excluded: Tensor | None = None  # [N], of the mask where it has a share of the distribution but is never written
    dtype: torch.dtype = torch.float32  # the network's own
    model: Transformer | None = None
    states: Tensor | None = None  # final states of the scored rows [N, D], for the sequential draft head
    slots: Tensor | None = None  # and of the feed's slots [M, D]

    def _column(self, values: Array) -> Tensor:
        return torch.from_numpy(values).to(self.logits.device)

    def propose(self, sampling: Sampling) -> Scores:
        """See `decoding.sampling.propose`, in float64 but for rows that ask for the network's precision."""
        temperature = self._column(sampling.temperature)
        top_k = self._column(sampling.top_k)
        top_p = self._column(sampling.top_p)
        logits = warmed(self.logits, temperature, top_k, top_p)
        warm = temperature > 0
        best = logits.topk(min(2, logits.shape[-1]), -1)
        p = (logits - best.values[:, :1]).exp_()
        # of equal logits the first, as everywhere
        token = logits.argmax(-1)
        if bool(warm.any()):
            cumulative = p.cumsum(-1)
            draw = self._column(sampling.token_draw)[:, None] * cumulative[:, -1:]
            drawn = torch.searchsorted(cumulative, draw, right=True)
            token = torch.where(warm, drawn.squeeze(1).clamp(max=p.shape[-1] - 1), token)
        rest = self._rest(temperature, warm & ((top_k > 0) | (top_p < 1)))
        share = (rest - best.values[:, :1]).exp()
        total = p.sum(-1, keepdim=True) + share
        p = p / total
        share = share / total
        entropy = torch.special.entr(p).sum(-1) + torch.special.entr(share).squeeze(1)
        if sampling.plain is not None:
            plain = self._column(sampling.plain) & warm
            kept = self.logits[plain].double().masked_fill(logits[plain] == -torch.inf, -torch.inf)
            unheated = self._rest(torch.zeros_like(temperature), warm & ((top_k > 0) | (top_p < 1)))[plain]
            own = torch.cat([kept, unheated], 1).softmax(-1)
            entropy[plain] = torch.special.entr(own).sum(-1)
            p[plain] = own[:, :-1]
            share[plain] = own[:, -1:]
        if sampling.native is not None:
            native = self._column(sampling.native)
            own = torch.cat([logits, rest], 1)[native].to(self.dtype).softmax(-1)
            # Dream's entropy has this term, and LLaDA's and Dream's confidences this precision
            entropy[native] = -(own * (own + 1e-10).log()).sum(-1).double()
            p[native] = own[:, :-1].double()
            share[native] = own[:, -1:].double()
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
        return gap.double().exp().cpu().numpy()

    @torch.inference_mode()
    def after_token(self, slot: Array, before: TorchLogits, row: Array, token: Array) -> TorchLogits:
        """See `decoding.feed.Logits`."""
        model = self.model
        if model is None or self.slots is None or before.states is None:
            raise ValueError("the layout has no draft slots")
        states = self.slots[self._column(slot)]
        if model.chain is not None:
            states = model.chain(states, before.states[self._column(row)], model.embedding(self._column(token)))
        vocabulary = model.draft_vocabulary
        if vocabulary is None:
            logits = model.head(states).float()
            logits[:, model.config.mask_token_id] = -torch.inf
        else:
            logits = states.new_full((len(states), model.config.vocab_size), -torch.inf, dtype=torch.float32)
            logits[:, vocabulary] = F.linear(states, model.head.weight[vocabulary]).float()
        return TorchLogits(logits, None, self.dtype, model, states, self.slots)

    @torch.inference_mode()
    def adjust(self, index: Array, adjustment: Adjustment) -> None:
        """See `decoding.feed.Logits`. A mask that shares the softmax of such rows keeps its share of it."""
        rows = self._column(index)
        logits = self.logits[rows]
        scaled = torch.where(logits > 0, logits / adjustment.penalty, logits * adjustment.penalty)
        logits = torch.where(self._column(adjustment.repeated), scaled, logits) + self._column(adjustment.bias)
        low = logits < logits.amax(-1, keepdim=True) + adjustment.floor
        self.logits[rows] = logits.masked_fill(low, -torch.inf).to(self.logits.dtype)

    @torch.inference_mode()
    def restrict(self, index: Array, allowed: Array) -> Array:
        """See `decoding.feed.Logits`. A mask that shares the softmax of such rows shares it no more."""
        rows = self._column(index)
        only = self.logits[rows].masked_fill(~self._column(allowed), -torch.inf)
        possible = only.amax(-1) > -torch.inf
        self.logits[rows[possible]] = only[possible]
        if self.excluded is not None:
            self.excluded[rows[possible]] = -torch.inf
        return possible.cpu().numpy()

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

    @torch.inference_mode()
    def self_conditioning(self, index: Array, sampling: Sampling) -> Tensor:
        """See `feed.ConditioningLogits`: the mean embedding under each row's distribution, [len(index), D]."""
        if not isinstance(self.model, DiffusionGemma):
            raise ValueError("the network is not self-conditioned")
        return self.model.mean_embedding(self._probabilities(index, sampling))


class SlotCache:
    """Static keys and values of all layers, plus one spare slot that padding and drafts' slots write to."""

    def __init__(self, config: ModelConfig, rows: int, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        shapes = [(rows, heads, slots + 1, width) for heads, width in config.key_shapes]
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]
        self.spare = slots
        self.states = States(rows) if config.recurrent else None
        self._write = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self._visible = 0

    def begin(self, positions_BW: Tensor, kept_BW: Tensor, visible: int) -> None:
        """Prepares a forward over a window: which slots it writes and how many earlier slots it sees."""
        self._write = torch.where(kept_BW, positions_BW, self.spare)
        self._visible = visible

    def update(self, layer: int, k_BGWK: Tensor, v_BGWK: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the window's keys and values; returns those of slots 0 .. visible - 1, then the window's."""
        seen = []
        for store, new in ((self.keys[layer], k_BGWK), (self.values[layer], v_BGWK)):
            seen.append(torch.cat([store[:, :, : self._visible], new], 2))
            index = self._write[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
            store.scatter_(2, index, new)
        return seen[0], seen[1]

    def extend(self, rows: int, slots: int) -> None:
        """Adds room for more requests at the end, and slots up to a number."""
        more = max(0, slots - self.spare)
        # the spare slot stays the last one; nothing reads it
        grow = (0, 0, 0, more, 0, 0, 0, rows)
        self.keys = [F.pad(x, grow) for x in self.keys]
        self.values = [F.pad(x, grow) for x in self.values]
        self.spare += more
        if self.states is not None:
            self.states.extend(rows)

    def select(self, rows: Tensor) -> None:
        """Keeps the given requests only."""
        self.keys = [x[rows] for x in self.keys]
        self.values = [x[rows] for x in self.values]
        if self.states is not None:
            self.states.select(rows)


class TorchBackend:
    """Feeds a network, keeping exact keys and values of text in slots by position."""

    cache: SlotCache | None = None

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.config = model.config
        self.layout = Layout("causal")

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

    def share(self, source: int, target: int, count: int) -> bool:
        if self.cache is None or self.cache.states is not None:
            return False
        for store in (*self.cache.keys, *self.cache.values):
            store[target, :, :count] = store[source, :, :count]
        return True

    def pass_costs(self) -> None:
        """Not measured: they differ with every device."""

    @torch.inference_mode()
    def forward(self, feed: Feed) -> TorchLogits:
        def tensor(values: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

        position = tensor(feed.position)
        document = tensor(feed.document)
        anchor = tensor(feed.anchor)
        offset = tensor(feed.offset)[:, None]
        grouped = self.layout.kind in GROUPED
        q = Coordinates.drafts(position, anchor, document) if grouped else Coordinates.of(position + offset, document)
        gate = (anchor != TEXT) if grouped and bool((feed.anchor != TEXT).any()) else None
        if self.cache is None:
            plain = self.layout.kind == "bidirectional" and bool((feed.document != PADDING).all())
            mask: AttentionMask = None if plain or not self.config.attends else self._render(q)
        else:
            visible = int(max(feed.cached.max(), feed.cached_after.max()))
            self.cache.begin(position, (document != PADDING) & (anchor == TEXT), visible)
            cached = (tensor(feed.cached), tensor(feed.cached_after))
            mask = self._cached_mask(q, offset, *cached, visible) if self.config.attends else None
            if self.cache.states is not None:
                self.cache.states.begin(feed.cached, feed.ids.shape[1], feed.settled)
        columns = (tensor(feed.ids), position, mask, self.cache)
        row = tensor(feed.row)
        column = tensor(feed.column)
        if isinstance(self.model, DiffusionGemma):
            hidden = self.model.hidden(*columns, gate_BT=gate, condition_BTD=self._signal(feed, anchor != TEXT))
        else:
            hidden = self.model.hidden(*columns, tensor(feed.time), gate)
        states = hidden[row, column]
        logits = self.model.head(states).float()
        guided = feed.guidance > 0
        if bool(guided.any()):
            which = tensor(guided)
            without = self.model.head(hidden[row[which] + 1, column[which]]).float()
            scale = tensor(feed.guidance[guided].astype(np.float32))[:, None]
            logits[which] = without + (scale + 1) * (logits[which] - without)
        logits, excluded = self._without_banned(logits, feed)
        drafts = (states, hidden[tensor(feed.slot_row), tensor(feed.slot_column)]) if grouped else (None, None)
        return TorchLogits(logits, excluded, self.model.embedding.weight.dtype, self.model, *drafts)

    def _signal(self, feed: Feed, gate_BW: Tensor) -> Tensor | None:
        """What the requests' canvases are conditioned on, [B, W, D]; 0 for those at their first step."""
        if all(known is None for known in feed.self_conditioning):
            return None
        weight = self.model.embedding.weight
        out = torch.zeros(*gate_BW.shape, self.config.hidden_size, device=weight.device, dtype=weight.dtype)
        for b, known in enumerate(feed.self_conditioning):
            if known is not None:
                out[b, gate_BW[b]] = known
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
            mask = layout.dense(q, k)
            return None if bool(mask.all()) else mask

        windows = self.config.windows
        if windows:
            return WindowMasks({window: dense(replace(self.layout, window=window)) for window in windows})
        return dense(self.layout)

    def _without_banned(self, logits: Tensor, feed: Feed) -> tuple[Tensor, Tensor | None]:
        """Logits [N, V] or log scores without what is never written: the mask, and of drafts all but their vocabulary;
        then the mask's own [N], where it has a share of the distribution."""
        vocabulary = self.model.draft_vocabulary
        if vocabulary is not None and bool(feed.of_draft.any()):
            others = torch.ones(logits.shape[1], dtype=torch.bool, device=self.device)
            others[vocabulary] = False
            of_draft = torch.from_numpy(feed.of_draft).to(self.device)
            logits = logits.masked_fill(of_draft[:, None] & others, -torch.inf)
        if self.config.output == "log_score":
            there = torch.from_numpy(feed.ids[feed.row, feed.column]).to(self.device)
            time = torch.from_numpy(feed.time[feed.row]).to(self.device)
            return log_scores(logits[:, None], there[:, None], time, self.config.score_scaled)[:, 0], None
        mask = self.config.mask_token_id
        if mask is None:
            return logits, None
        excluded = logits[:, mask].clone() if self.config.mask_in_softmax else None
        logits[:, mask] = -torch.inf
        return logits, excluded
