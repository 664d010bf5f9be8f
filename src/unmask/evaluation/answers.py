"""`unmask eval` on the quality set: the score of a way of decoding, and how its answers read to the base."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from unmask.evaluation import tasks
from unmask.evaluation.judge import unigram_entropy
from unmask.evaluation.speed import chat
from unmask.lm import DiffusionLM
from unmask.prompts import encode_text


def quality(
    lm: DiffusionLM,
    items: list[tasks.Item],
    options: dict[str, Any],
    progress: Callable[[str], None],
    likelihood: bool = True,
) -> dict[str, Any]:
    """Scores of `tasks.evaluate`, and of the answers: `tokens_per_step`, with `likelihood` `bits_per_token` under the
    model's own text network (causal, so an AR base judges its diffusion), and unigram `entropy` in nats."""
    written: list[tuple[list[int], list[int]]] = []
    steps = 0

    def answer(batch: list[tasks.Item]) -> list[str]:
        nonlocal steps
        rows = [lm.encode(chat(lm, item.prompt))[0] for item in batch]
        outs = lm.generate(rows, batch[0].max_new_tokens, **options)
        written.extend((row, out.token_ids) for row, out in zip(rows, outs, strict=True))
        steps += sum(out.steps for out in outs)
        return [out.text for out in outs]

    result = tasks.evaluate(answer, items, progress)
    tokens = sum(len(ids) for _, ids in written)
    about = {"tokens_per_step": tokens / max(1, steps), "entropy": unigram_entropy([ids for _, ids in written])}
    if likelihood:
        nats = sum(answer_nats(lm, given, ids) for given, ids in written)
        about["bits_per_token"] = nats / max(1, tokens) / math.log(2)
    return {**result, **about}


def choices(lm: DiffusionLM, items: list[tasks.Choice], progress: Callable[[str], None]) -> dict[str, Any]:
    """Scores of the items that are answered by likelihood; the same in every mode of one model."""

    def nll(context: str, continuation: str) -> float:
        given = lm.encode(context)[0]
        return answer_nats(lm, given, encode_text(continuation, lm.tokenizer, lm.config, lm.name))

    return tasks.evaluate_choices(nll, items, progress)


def answer_nats(lm: DiffusionLM, given: list[int], ids: list[int]) -> float:
    """Negative log-likelihood in nats of ids after `given`, by one causal forward of the torch network."""
    if not ids:
        return 0.0
    import torch

    with torch.inference_mode():
        row = torch.tensor([given + ids])
        log_p = lm.logits(row, layout="causal")[0, len(given) :].log_softmax(-1)
        return float(-log_p.gather(1, row[0, len(given) :, None]).sum())
