"""How good generated text is: its score on the quality set (`unmask eval`), its likelihood, perplexity and entropy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from unmask.errors import UnmaskError
from unmask.evaluation import tasks
from unmask.evaluation.speed import chat
from unmask.lm import DiffusionLM
from unmask.objectives.likelihood import exact_causal
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


@torch.inference_mode()
def answer_nats(lm: DiffusionLM, given: list[int], ids: list[int]) -> float:
    """Negative log-likelihood in nats of ids after `given`, by one causal forward of the torch network."""
    if not ids:
        return 0.0
    row = torch.tensor([given + ids])
    log_p = lm.logits(row, layout="causal")[0, len(given) :].log_softmax(-1)
    return float(-log_p.gather(1, row[0, len(given) :, None]).sum())


@torch.inference_mode()
def judge_perplexity(judge: DiffusionLM, prompts: list[list[int]], texts: list[list[int]]) -> float:
    """Perplexity per token of generated ids under an AR judge, each given its prompt (not scored).

    Low perplexity alone means little: repetition has it too, so print entropy beside it.
    """
    if judge.config.layout != "causal":
        raise UnmaskError(f"model '{judge.name}' cannot judge: exact likelihood needs an autoregressive model")
    nats = 0.0
    count = 0
    for prompt, text in zip(prompts, texts, strict=True):
        whole = prompt + text
        both = exact_causal(judge.model, torch.tensor([whole]))
        given = exact_causal(judge.model, torch.tensor([prompt])) if len(prompt) > 1 else torch.zeros(1)
        nats = nats + float(both - given)
        count = count + len(text) - (0 if prompt else 1)
    return math.exp(nats / max(1, count))


def unigram_entropy(texts: list[list[int]]) -> float:
    """Mean over texts of the entropy of each text's own token frequencies, in nats."""
    values = []
    for text in texts:
        counts = Counter(text)
        values.append(-sum(c / len(text) * math.log(c / len(text)) for c in counts.values()) if text else 0.0)
    return sum(values) / max(1, len(values))
