"""One generation, timed: what `unmask race` shows and benches measure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from unmask.canvas import Frame
from unmask.lm import DiffusionLM
from unmask.output import Output


@dataclass(frozen=True)
class Lap:
    """One timed generation."""

    name: str
    output: Output
    seconds: float
    moments: list[tuple[float, Frame]]  # seconds since the start, frame

    @property
    def tokens_per_second(self) -> float:
        return len(self.output.token_ids) / self.seconds

    def to_dict(self) -> dict[str, Any]:
        out = self.output
        return {
            "name": self.name,
            "text": out.text,
            "tokens": len(out.token_ids),
            "steps": out.steps,
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(self.tokens_per_second, 2),
            "seed": out.seed,
        }


def timed(lm: DiffusionLM, prompt: Any, max_new_tokens: int, **options: Any) -> Lap:
    """Generates once, noting when each frame came."""
    moments: list[tuple[float, Frame]] = []
    began = time.perf_counter()
    output = lm.generate(
        prompt, max_new_tokens, streamer=lambda frame: moments.append((time.perf_counter() - began, frame)), **options
    )
    name = f"{lm.name}, {options['mode']}" if options.get("mode") else lm.name
    return Lap(name, output, time.perf_counter() - began, moments)


def warm_up(lm: DiffusionLM, prompt: Any, max_new_tokens: int, **options: Any) -> None:
    """One short run, so that first-call costs are not counted."""
    lm.generate(prompt, min(8, max_new_tokens), seed=0, **options)


def chat(lm: DiffusionLM, prompt: str) -> Any:
    """The prompt as this model is asked: a user turn where it has a chat template, else plain text."""
    return [{"role": "user", "content": prompt}] if lm.chat_template else prompt
