"""Filters and confidences against recorded ones: what numpy and what torch make of the same logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from conformance.checks.ancestral import race
from conformance.checks.checks import unequal
from conformance.checks.rules import Case, Tensors
from unmask.backends import torch as torch_backend
from unmask.backends.torch import TorchLogits
from unmask.decoding import sampling
from unmask.decoding.feed import Sampling
from unmask.decoding.methods.ancestral import nucleus


def survivors(reference: str, case: Case, tensors: Tensors, mask_id: int) -> str:
    """Ids that top-k, then top-p leave."""
    logits = tensors["logits"].flatten(0, -2).double()
    k = np.full(len(logits), case.get("top_k", 0))
    p = np.full(len(logits), case.get("top_p", 1.0), np.float64)
    in_torch = torch_backend.keep_top(logits, torch.from_numpy(k), torch.from_numpy(p)).numpy()
    for kept in (sampling.keep_top(logits.numpy(), k, p), in_torch):
        left = [np.isfinite(row).nonzero()[0].tolist() for row in kept]
        if wrong := unequal(left, case[reference]):
            return wrong
        if (kept[np.isfinite(kept)] != logits.numpy()[np.isfinite(kept)]).any():
            return "logits that are kept were changed"
    return ""


def nucleus_survivors(case: Case, tensors: Tensors, mask_id: int) -> str:
    """Ids that bd3lms's nucleus leaves, which drops the token that crosses p."""
    p = tensors["logits"].flatten(0, -2).double().softmax(-1).numpy()
    left = [row.nonzero()[0].tolist() for row in nucleus(p, case["top_p"])]
    return unequal(left, case["bd3lms"])


def gumbel(case: Case, tensors: Tensors, mask_id: int) -> str:
    """LLaDA's draw, exp(logits) / (-log u)^T: the race of exponentials with weights exp(logits / T), both greatest
    at one token."""
    logits, u = (tensors[name].flatten(0, -2).double() for name in ("logits", "uniform64"))
    weights = (logits / case["temperature"]).softmax(-1).numpy()
    return unequal(race(weights, u.numpy()).tolist(), [token for row in case["argmax"] for token in row])


def dream_confidence(case: Case, tensors: Tensors, mask_id: int) -> str:
    """Dream's three confidences; its `entropy` is the entropy's negative."""
    logits, name = tensors["logits"].flatten(0, -2), case["alg"]
    n = len(logits)
    options = Sampling(np.zeros(n), np.zeros(n, np.int64), np.ones(n), np.zeros(n), np.zeros(n))
    expected, network = tensors[f"dream_conf_{name}"].flatten().numpy(), TorchLogits(logits)
    native = replace(options, native=np.ones(n, bool))
    in_numpy = sampling.propose(logits.numpy(), *options.columns(), None)
    for scores in (in_numpy, network.propose(options), network.propose(native)):
        ours = {"maskgit_plus": scores.confidence, "topk_margin": scores.margin, "entropy": -scores.entropy}[name]
        if not np.allclose(ours, expected, rtol=1e-5, atol=1e-6):
            return f"confidence differs by {float(np.abs(ours - expected).max()):.1e}"
        if wrong := unequal(scores.token.tolist(), case["x0"]):
            return wrong
    return ""
