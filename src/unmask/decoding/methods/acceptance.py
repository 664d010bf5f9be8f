"""Checking drafts with the base's own distributions: pure functions.

Greedy: a draft holds while it is the base's best token. Sampled: speculative sampling (arXiv 2302.01318),
which leaves the base's distribution exactly as it is, whatever the drafts.
Shapes: n drafts of one request, V vocabulary; target rows are one more than drafts.
"""

from __future__ import annotations

import numpy as np

from unmask.canvas import Array
from unmask.decoding.sampling import draw


def accept_greedy(drafts: Array, best: Array) -> tuple[int, int]:
    """How many drafts hold, and the base's token after them. drafts [n], best [n + 1] tokens."""
    right = drafts == best[: len(drafts)]
    count = len(drafts) if right.all() else int(right.argmin())
    return count, int(best[count])


def accept_tolerant(drafts: Array, best: Array, odds: Array, threshold: float) -> tuple[int, int]:
    """As accept_greedy, but a draft holds while its probability is at least `threshold` times the best token's.

    odds [n]: probability of each draft over that of the base's best token there. The text is then the drafts',
    not the base's own; 1 is greedy (in kind typical acceptance, arXiv 2401.10774).
    """
    holds = odds >= threshold
    count = len(drafts) if holds.all() else int(holds.argmin())
    return count, int(best[count])


def accept_sampled(drafts: Array, q: Array, p: Array, accept_draws: Array, token_draws: Array) -> tuple[int, int]:
    """As accept_greedy, for drafts sampled from q [n, V] against the base's p [n + 1, V].

    accept_draws [n] and token_draws [n + 1] are uniforms in (0, 1). A draft x is kept with chance
    min(1, p(x) / q(x)); the first that is not is replaced by a draw from max(p - q, 0).
    """
    for i, token in enumerate(drafts):
        if accept_draws[i] * q[i, token] >= p[i, token]:
            rest = np.maximum(p[i] - q[i], 0.0)
            return i, draw(rest if rest.sum() > 0 else p[i], token_draws[i])
    return len(drafts), draw(p[len(drafts)], token_draws[len(drafts)])
