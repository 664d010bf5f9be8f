"""What /metrics tells: the engine's figures and the server's own, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from unmask.serving.engine import Engine
from unmask.serving.figures import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters of the HTTP side."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.paths = set(paths)  # others are counted together: anybody can make addresses up
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds, self.first_text = Histogram(*SECONDS), Histogram(*SECONDS)
        self.prompt_tokens: Counter[str] = Counter()
        self.useful_tokens: Counter[str] = Counter()  # to an end of text, as usage tells
        self.retried = 0  # requests that were asked again because a replica died

    def answered(self, path: str, status: int, seconds: float) -> None:
        known = path if path in self.paths else "other"
        self.requests[known, status] += 1
        if path.startswith("/v1/") and known != "other":
            self.seconds.add(seconds)

    def used(self, model: str, usage: Mapping[str, int]) -> None:
        self.prompt_tokens[model] += usage["prompt_tokens"]
        self.useful_tokens[model] += usage["completion_tokens"]

    def render(self, engine: Engine | None) -> str:
        """Everything, one sample a line; without an engine, what is known in front of replicas."""
        out = list[str]()

        def simple(name: str, kind: str, text: str, values: Mapping[Labels, float]) -> None:
            out.extend([f"# HELP {name} {text}", f"# TYPE {name} {kind}"])
            out.extend(f"{name}{_labels(labels)} {value:g}" for labels, value in values.items())

        def by_model(name: str, text: str, values: Mapping[str, float]) -> None:
            simple(name, "counter", text, {(("model", model),): value for model, value in values.items()})

        def spread(name: str, text: str, h: Histogram) -> None:
            out.extend([f"# HELP {name} {text}", f"# TYPE {name} histogram"])
            so_far = 0
            for bound, count in zip((*map(_number, h.bounds), "+Inf"), list(h.counts), strict=True):
                so_far += count
                out.append(f'{name}_bucket{{le="{bound}"}} {so_far}')
            out.extend([f"{name}_sum {h.total:g}", f"{name}_count {so_far}"])

        answered: dict[Labels, float] = {
            (("path", path), ("status", str(code))): n for (path, code), n in list(self.requests.items())
        }
        simple("unmask_requests_total", "counter", "Answered requests.", answered)
        spread("unmask_request_seconds", "Seconds from a request's head to the end of its answer.", self.seconds)
        spread("unmask_first_text_seconds", "Seconds to the first text of a stream.", self.first_text)
        by_model("unmask_prompt_tokens_total", "Tokens of prompts that were answered.", self.prompt_tokens)
        by_model("unmask_useful_tokens_total", "Tokens of answers, up to their end of text.", self.useful_tokens)
        if engine is None:
            simple("unmask_retries_total", "counter", "Asked again because a replica died.", {(): self.retried})
            return "\n".join(out) + "\n"
        f = engine.figures
        by_model("unmask_committed_tokens_total", "Tokens that steps committed.", f.tokens)
        by_model("unmask_steps_total", "Forward passes.", f.steps)
        by_model("unmask_request_steps_total", "Forward passes, once for every request in them.", f.row_steps)
        by_model("unmask_step_seconds_total", "Seconds spent in forward passes.", f.seconds)
        simple("unmask_tokens_per_second", "gauge", "Committed tokens, last 10 s.", {(): f.rate()})
        simple("unmask_running", "gauge", "Requests in a slot.", {(): engine.running})
        simple("unmask_waiting", "gauge", "Requests in line.", {(): engine.waiting})
        spread("unmask_batch_size", "Requests in a forward pass.", f.batch)
        spread("unmask_tokens_per_step", "Tokens that a request got from a step.", f.per_step)
        spread("unmask_drafts_kept", "Drafts that held at a check (mode verify).", f.kept)
        spread("unmask_queue_seconds", "Seconds in line.", f.queued)
        return "\n".join(out) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    quoted = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for _, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for (name, _), value in zip(labels, quoted, strict=True)) + "}"


def _number(bound: float) -> str:
    return f"{bound:g}"
