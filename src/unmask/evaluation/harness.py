"""unmask as a model of lm-evaluation-harness (`pip install 'unmask[harness]'`).

`python -m unmask.evaluation.harness` is the harness's own command line with the model `unmask` known:

    python -m unmask.evaluation.harness run --model unmask --model_args pretrained=default,samples=32 --tasks piqa
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple
from zlib import crc32

from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as missing:
    raise UnmaskError(f"lm-evaluation-harness is missing ({missing}); run: pip install 'unmask[harness]'") from None

log = logging.getLogger(__name__)
ARGUMENTS = ("pretrained", "device", "dtype", "backend", "method", "samples", "guidance", "seed", "max_gen_toks")


class Asked(NamedTuple):
    """A text to write: its place among the requests, prompt, generation arguments and seed."""

    place: int
    context: str
    options: dict[str, Any]
    seed: int


@register_model("unmask")
class UnmaskLM(LM):  # type: ignore[misc]
    """Any model of ours, scored by `DiffusionLM.likelihood` and asked by `DiffusionLM.generate`.

    Requests' masks and draws are of the seed and the request, whatever stands beside it.
    """

    def __init__(
        self,
        pretrained: str | DiffusionLM,
        device: str | None = None,
        dtype: str | None = None,
        backend: str = "auto",
        batch_size: int | str = 8,
        method: str = "auto",
        samples: int = 128,
        guidance: float = 0.0,
        seed: int = 0,
        max_gen_toks: int = 256,
        **unknown: Any,
    ) -> None:
        """pretrained, device, dtype, backend: as of `DiffusionLM.from_pretrained`. batch_size: a number, or auto for 8.
        method, samples, guidance, seed: as of `DiffusionLM.likelihood`. max_gen_toks: of a task that does not say."""
        super().__init__()
        for name in unknown:
            raise UnmaskError(f"model argument '{name}' is unknown; use {', '.join(ARGUMENTS)}")
        for name, value in {"samples": samples, "seed": seed, "max_gen_toks": max_gen_toks}.items():
            if not isinstance(value, int):
                raise UnmaskError(f"model argument '{name}' must be a whole number, got {value!r:.40}")
        self.lm = (
            pretrained
            if isinstance(pretrained, DiffusionLM)
            else DiffusionLM.from_pretrained(pretrained, device or "cpu", dtype, backend)
        )
        self.batch = 8 if batch_size == "auto" else int(batch_size)
        self.scoring: dict[str, Any] = {"method": method, "samples": samples, "guidance": guidance, "seed": seed}
        self.seed = seed
        self.max_gen_toks = max_gen_toks

    @property
    def tokenizer_name(self) -> str:
        return self.lm.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if chat_template is False:
            return None
        name = "default" if chat_template is True else chat_template
        if name not in self.lm.templates:
            raise UnmaskError(f"model '{self.lm.name}' has no chat template '{name}'; leave out --apply_chat_template")
        return self.lm.templates[name]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = self.lm.render_chat(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        begun = chat_history[-1]["content"].rstrip()  # of an answer that is gone on with
        return text[: text.rindex(begun) + len(begun)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = []
        for request in requests:
            context, continuation = self._texts(request)
            kept = context.rstrip()
            before, text = self.lm.encode_pair(kept, context[len(kept) :] + continuation)
            pairs.append((self._cut(before, len(text)), text))
        scores = self.lm.likelihood(
            ids=[text for _, text in pairs], given=[before for before, _ in pairs], batch=self.batch, **self.scoring
        )
        if any(one.greedy is None for one in scores):
            log.warning("this kind of model has no greedy text; is_greedy is False for all requests")
        return [(-one.nats, bool(one.greedy)) for one in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        texts = [str(request.args[0]) for request in requests]
        return [-one.nats for one in self.lm.likelihood(texts, batch=self.batch, **self.scoring)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        alike: Counter[str] = Counter()  # repeats of one request are drawn anew
        groups: dict[str, list[Asked]] = {}
        for place, request in enumerate(requests):
            context, options = self._texts(request)
            name = f"{self.seed} {request.args!r}"
            seed = crc32(f"{name} {alike[name]}".encode()) >> 1
            alike[name] += 1
            groups.setdefault(repr(options), []).append(Asked(place, context, options, seed))
        answers = [""] * len(requests)
        for group in groups.values():
            group.sort(key=lambda one: len(one.context))
            for first in range(0, len(group), self.batch):
                some = group[first : first + self.batch]
                for one, text in zip(some, self._write(some), strict=True):
                    answers[one.place] = text
        return answers

    def _write(self, asked: list[Asked]) -> list[str]:
        """Answers to requests of the same options, decoded together."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(asked[0].options, self.max_gen_toks))
        stops = [text for text in options.pop("until", []) if text]
        length = int(options.pop("max_gen_toks"))
        options.pop("do_sample", None)
        prepared = []
        for each in asked:
            ids = self._cut(self.lm.encode(each.context)[0], 1)
            most = max(1, min(length, self.lm.room(len(ids))))
            prepared.append(self.lm.prepare(ids, most, stop=stops, **{"seed": each.seed, **options}))
        every = [request for single in prepared for request in single.requests]
        return [out.text for out in self.lm.run(replace(prepared[0], requests=every)).outputs()]

    def _texts(self, request: Instance) -> tuple[str, Any]:
        if len(request.args) != 2 or not isinstance(request.args[0], str):
            raise UnmaskError(f"task '{request.task_name}' asks with more than text; unmask answers texts")
        context, options = request.args
        return context, options

    def _cut(self, before: list[int], behind: int) -> list[int]:
        """A prompt's last tokens, as many as fit before so many others."""
        most = max(1, self.lm.config.max_length - behind)
        if len(before) > most:
            log.warning("a prompt of %d tokens was cut on the left: the model reads %d", len(before), most + behind)
        return before[-most:]


def main() -> None:
    """The harness's command line; what a model cannot do is one line on standard error and exit status 2."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UnmaskError as error:
        print(f"unmask: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
