"""How good generated text is: its score on the quality set, its perplexity under a judge, and how varied it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from unmask.errors import UnmaskError
from unmask.evaluation import tasks
from unmask.evaluation.figures import Figure, mean, ratio
from unmask.evaluation.speed import chat
from unmask.lm import DiffusionLM
from unmask.output import Output


def quality(
    lm: DiffusionLM,
    items: list[tasks.Item],
    options: dict[str, Any],
    progress: Callable[[str], None],
    likelihood: bool = True,
) -> dict[str, Any]:
    """Scores of `tasks.evaluate`, and of the answers: `tokens_per_step`, with `likelihood` `bits_per_token` under the
    model's own text (an AR base judges its diffusion), and unigram `entropy` in nats; `items`: right, tokens and steps
    of each."""
    written: dict[str, tuple[list[int], Output]] = {}

    def answer(batch: list[tasks.Item]) -> list[str]:
        rows = [lm.encode(chat(lm, item.prompt))[0] for item in batch]
        most = max(1, min(batch[0].max_new_tokens, lm.room(max(map(len, rows)))))
        outs = lm.generate(rows, most, **options)
        written.update((item.id, (row, out)) for item, row, out in zip(batch, rows, outs, strict=True))
        return [out.text for out in outs]

    result = tasks.evaluate(answer, items, progress)
    outs = [out for _, out in written.values()]
    sizes = [len(out.token_ids) for out in outs]
    figures = {
        **ratio(sizes, [out.steps for out in outs]).named("tokens_per_step"),
        **entropies([out.token_ids for out in outs]).named("entropy"),
    }
    if likelihood:
        progress("likelihood of the answers")
        given = [row for row, _ in written.values()]
        scores = lm.likelihood(ids=[out.token_ids for out in outs], given=given, samples=16)
        bits = ratio([one.nats for one in scores], sizes).map(lambda nats: nats / math.log(2))
        figures |= bits.named("bits_per_token")
    each = [(result["passed"][name], len(out.token_ids), out.steps) for name, (_, out) in written.items()]
    return {**result, **figures, "items": each}


def choices(lm: DiffusionLM, items: list[tasks.Choice], progress: Callable[[str], None]) -> dict[str, Any]:
    """Scores of the items that are answered by likelihood; the same in every mode of one model."""
    pairs = [(item.context, f" {option}") for item in items for option in item.options]
    given, texts = [context for context, _ in pairs], [text for _, text in pairs]
    scores = lm.likelihood(texts, given=given, progress=lambda done: progress(f"{done:.0%}"))
    costs = dict(zip(pairs, (one.nats for one in scores), strict=True))
    return tasks.evaluate_choices(lambda *pair: costs[pair], items)


def judged(judge: DiffusionLM, texts: list[str], given: list[Any]) -> Figure:
    """Perplexity per token of generated texts under an AR judge, each behind its prompt (not scored; None: none), in
    the judge's own tokens.

    Low perplexity alone means little: repetition has it too, so print entropy beside it.
    """
    check_judge(judge)
    scores = judge.likelihood(texts, given=given)
    return ratio([one.nats for one in scores], [one.tokens for one in scores]).map(
        lambda nats: math.exp(min(nats, 700))
    )


def check_judge(judge: DiffusionLM) -> None:
    """Raises UnmaskError for a model whose likelihoods are not exact."""
    if judge.config.layout not in ("causal", "drafts"):
        raise UnmaskError(f"model '{judge.name}' cannot judge: exact likelihood needs an autoregressive model")


def entropies(texts: list[list[int]]) -> Figure:
    """Entropy of each text's own token frequencies, in nats; the mean over texts."""
    values = []
    for text in texts:
        counts = Counter(text)
        values.append(-sum(c / len(text) * math.log(c / len(text)) for c in counts.values()) if text else 0.0)
    return mean(values)


def distinct(texts: list[list[int]], n: int) -> Figure:
    """Share of a text's runs of n tokens that are distinct, in percent; the mean over texts that have any."""
    runs = [[tuple(text[i : i + n]) for i in range(len(text) - n + 1)] for text in texts]
    figure = mean([100 * len(set(own)) / len(own) for own in runs if own])
    return figure._replace(high=min(100.0, figure.high))


def generative(judge: DiffusionLM, outs: list[Output], given: list[Any], documents: list[str]) -> dict[str, float]:
    """Measures of generated texts: perplexity under the judge, entropy, distinct n-grams, tokens a step, and MAUVE
    against documents where there are any and its library (mauve-text) is installed."""
    texts = [out.text for out in outs]
    ids = [out.token_ids for out in outs]
    figures = {
        **judged(judge, texts, given).named("perplexity"),
        **entropies(ids).named("entropy"),
        **{name: value for n in (1, 2, 3) for name, value in distinct(ids, n).named(f"distinct_{n}").items()},
        **ratio(list(map(len, ids)), [out.steps for out in outs]).named("tokens_per_step"),
    }
    if documents and find_spec("mauve") is not None:
        figures["mauve"] = mauve(judge, texts, documents)
    return figures


def mauve(judge: DiffusionLM, texts: list[str], documents: list[str]) -> float:
    """MAUVE (arXiv 2102.01454) of texts against documents, by the judge's state behind each text's last token."""
    import torch
    from mauve import compute_mauve

    from unmask.attention import plain_mask
    from unmask.layout import Layout

    device = judge.model.embedding.weight.device
    layout = Layout("causal")

    @torch.inference_mode()
    def features(rows: list[str]) -> Any:
        ids = [lm_ids[-judge.config.max_length :] for lm_ids in (judge.encode(row)[0] for row in rows)]
        masks = [plain_mask(layout, len(row), device, judge.config.windows) for row in ids]
        pairs = zip(ids, masks, strict=True)
        states = [judge.model.hidden(torch.tensor([row]), None, mask)[0, -1] for row, mask in pairs]
        return torch.stack(states).float().numpy()

    return float(compute_mauve(p_features=features(documents), q_features=features(texts), verbose=False).mauve)
