"""Logits of the compiled forward as numpy arrays, of text and of drafts.

Shapes: N rows of text, M rows of drafts, V vocabulary, V' tokens that a draft can propose, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from unmask.backends.native.network import Address, needed_library
from unmask.canvas import Array
from unmask.decoding.feed import Sampling
from unmask.decoding.processors import Adjustment
from unmask.decoding.sampling import Scores, propose, untempered, warmed
from unmask.models.config import ModelConfig


class Network(Protocol):
    """What logits ask of the backend that made them."""

    config: ModelConfig
    vocabulary: Array | None  # the tokens that drafts can be
    threads: int

    def draft_head(self, state: Array, before: Array, token: Array) -> tuple[Array, Array]:
        """States [n, D] and logits [n, V'] of slots whose own states are `state` [n, D], after `token` [n], which was
        chosen by the states `before` [n, D]."""
        ...


def summarise(logits_NV: Array, threads: int) -> tuple[Array, Array, Array, Array]:
    """Of each row: the best token, its probability, the entropy in nats, and how far the second best token's
    probability is below, [N] each."""
    rows, size = logits_NV.shape
    token = np.empty(rows, np.int64)
    values = np.empty((3, rows))
    at = [Address(a.ctypes.data) for a in (token, *values)]
    needed_library().unmask_summarise(Address(logits_NV.ctypes.data), rows, size, threads, *at)
    return token, values[0], values[1], values[2]


def with_share(scores: Scores, logits_NV: Array, excluded_N: Array) -> Scores:
    """Scores of distributions that also have a token which is never proposed, by its logit."""
    index = np.arange(len(logits_NV))
    own = logits_NV[index, scores.token].astype(np.float64)
    extra = np.exp(excluded_N - own) * scores.confidence  # beside the others' 1
    top = np.exp(logits_NV.max(-1) - own) * scores.confidence
    total = 1 + extra
    share = extra / total
    entropy = (scores.entropy + np.log(total)) / total - share * np.log(np.maximum(share, 1e-300))
    margin = (top - np.maximum(top - scores.margin, extra)) / total
    return Scores(scores.token, scores.confidence / total, entropy, margin, scores.draw)


@dataclass
class NativeLogits:
    """Logits in the order of the feed's scored rows, which `of_draft` [N + M] marks as rows of text or of drafts.

    states: final states of the rows of text, or of drafts where there are no others. slots: those of the feed's slots.
    excluded [N]: the mask's, where it has a share of the distribution of text but is never written.
    """

    network: Network
    text: Array
    drafts: Array
    of_draft: Array
    states: Array
    slots: Array
    excluded: Array | None = None

    def after_token(self, slot: Array, before: NativeLogits, row: Array, token: Array) -> NativeLogits:
        """See `decoding.feed.Logits`."""
        place = row - before.of_draft.cumsum()[row] if len(before.text) else row
        states, logits = self.network.draft_head(self.slots[slot], before.states[place], token)
        return NativeLogits(self.network, self.text[:0], logits, np.ones(len(states), bool), states, self.slots)

    def best(self, logits: Array, sampling: Sampling) -> Scores:
        """Proposed tokens of rows of one kind."""
        if (sampling.temperature > 0).any():
            return propose(logits, *sampling.columns(), None)
        token, confidence, entropy, margin = summarise(logits, self.network.threads)
        return Scores(token, confidence, entropy, margin, sampling.choice_draw)

    def propose(self, sampling: Sampling) -> Scores:
        """See `decoding.sampling.propose`."""
        if not self.of_draft.any():
            return self._of_text(sampling)
        if self.of_draft.all():
            return self._named(self.best(self.drafts, sampling))
        text = (~self.of_draft).nonzero()[0]
        drafts = self.of_draft.nonzero()[0]
        halves = (
            self._of_text(sampling.rows(text)),
            self._named(self.best(self.drafts, sampling.rows(drafts))),
        )
        order = np.argsort(np.concatenate([text, drafts]), kind="stable")
        columns = zip(*(vars(scores).values() for scores in halves), strict=True)
        token, confidence, entropy, margin, draw = (np.concatenate(pair)[order] for pair in columns)
        return Scores(token=token, confidence=confidence, entropy=entropy, margin=margin, draw=draw)

    def _of_text(self, sampling: Sampling) -> Scores:
        scores = untempered(self.best(self.text, sampling), self.text, sampling)
        if self.excluded is None:
            return scores
        warm = sampling.temperature > 0
        filtered = warm & ((sampling.top_k > 0) | (sampling.top_p < 1))
        heat = np.where(warm if sampling.plain is None else warm & ~sampling.plain, sampling.temperature, 1.0)
        return with_share(scores, self.text / heat[:, None], np.where(filtered, -np.inf, self.excluded / heat))

    def _named(self, scores: Scores) -> Scores:
        """Scores of drafts, by the tokens of the whole vocabulary."""
        token = scores.token if self.network.vocabulary is None else self.network.vocabulary[scores.token]
        return Scores(token, scores.confidence, scores.entropy, scores.margin, scores.draw)

    def _row(self, row: int) -> tuple[Array, Array | slice]:
        """The logits of a scored row, and which tokens they are of."""
        drafts_before = int(self.of_draft[:row].sum())
        if self.of_draft[row]:
            vocabulary = self.network.vocabulary
            return self.drafts[drafts_before], slice(None) if vocabulary is None else vocabulary
        return self.text[row - drafts_before], slice(None)

    def probabilities(self, index: Array, sampling: Sampling) -> Array:
        """Float64 distributions [len(index), V] that rows are sampled from."""
        out = np.zeros((len(index), self.network.config.vocab_size))
        for n, row in enumerate(index.tolist()):
            logits, tokens = self._row(row)
            one = sampling.rows(np.array([n]))
            warm = warmed(logits[None], one.temperature, one.top_k, one.top_p)[0]
            p = np.exp(warm - warm.max())
            out[n, tokens] = p / p.sum()
        return out

    def odds(self, index: Array, tokens: Array) -> Array:
        """See `decoding.feed.Logits`; of rows of text, the only ones that check."""
        rows = self.text[index - self.of_draft.cumsum()[index]]
        return np.exp(rows[np.arange(len(index)), tokens].astype(np.float64) - rows.max(-1))

    def adjust(self, index: Array, adjustment: Adjustment) -> None:
        """See `decoding.feed.Logits`; of drafts only their own vocabulary counts."""
        for n, row in enumerate(index.tolist()):
            logits, tokens = self._row(row)
            adjustment.apply(logits, n, tokens)

    def restrict(self, index: Array, allowed: Array) -> Array:
        """See `decoding.feed.Logits`; of drafts only their own vocabulary counts. The mask has no share any more."""
        possible = np.ones(len(index), bool)
        for n, row in enumerate(index.tolist()):
            logits, tokens = self._row(row)
            own = allowed[n, tokens]
            possible[n] = own.any()
            if possible[n]:
                np.putmask(logits, ~own, -np.inf)
                if self.excluded is not None and not self.of_draft[row]:
                    self.excluded[row - int(self.of_draft[:row].sum())] = -np.inf
        return possible
