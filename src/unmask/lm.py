"""DiffusionLM: load a model by name and write, fill, score and save with it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from unmask.attention import LAYOUT_KINDS, PADDING, Coordinates, Layout, LayoutKind, plain_mask
from unmask.canvas import Frame
from unmask.decoding.infill import parse_template
from unmask.decoding.loop import Decoder, Request
from unmask.decoding.rules import RuleOptions
from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.generation import DecodingDefaults, Filled, Run
from unmask.likelihood import Likelihood, blockwise, exact_causal, exact_sequential, nelbo, windows
from unmask.models import catalogue, checkpoint
from unmask.models.config import build
from unmask.models.family import Family
from unmask.models.transformer import Transformer

Prompt = str | list[str] | list[int] | list[dict[str, str]] | Tensor
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": None}
GENERATION = "generation_config.json"


class DiffusionLM:
    """A network, its tokenizer and its decoding defaults."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        defaults: DecodingDefaults | None = None,
        name: str = "model",
        family: Family | None = None,
        raw_config: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.defaults = defaults or DecodingDefaults()
        self.config = model.config
        self.family, self.raw_config = family, raw_config

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu", dtype: str = "float32") -> DiffusionLM:
        """Loads a shipped model by name ("default", "austen", "austen-ar") or a checkpoint folder.

        dtype: float32, bfloat16, float16, or auto for the file's own. Raises UnmaskError if there is no such
        model or it cannot be read.
        """
        if dtype not in DTYPES:
            raise UnmaskError(f"dtype '{dtype}' is unknown; use one of {', '.join(DTYPES)}")
        folder = catalogue.find(str(name))
        try:
            target = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise UnmaskError(
                f"device '{device}' cannot be used ({str(error).splitlines()[0]}); try device='cpu'"
            ) from None
        model, family = checkpoint.load(folder, target, DTYPES[dtype])
        path = folder / GENERATION
        values = checkpoint.read_json(path) if family is None and path.is_file() else {}
        values = values if family is None else family.defaults  # other layouts' file speaks of other things
        defaults: DecodingDefaults = build(DecodingDefaults, values, str(path))
        raw = checkpoint.read_json(folder / checkpoint.CONFIG)
        return cls(model, checkpoint.load_tokenizer(folder), defaults, folder.name, family, raw)

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a checkpoint folder that from_pretrained reads back, in the family's own layout."""
        folder, raw = Path(path), self.raw_config or self.config.to_dict()
        checkpoint.save(folder, raw, checkpoint.weights_to_save(self.model, self.family, raw), self.tokenizer)
        if self.family is None:
            write_text(folder / GENERATION, json.dumps(asdict(self.defaults), indent=2) + "\n")

    @torch.inference_mode()
    def logits(
        self,
        input_ids: Tensor | list[list[int]],
        layout: str | None = None,
        block_length: int | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, L, V], float; logits[:, i] scores the token AT position i.

        input_ids: LongTensor [B, L]. layout: bidirectional, causal or block_causal, the model's own by
        default. attention_mask: [B, L], 1 for tokens and 0 for padding on either side.
        Raises UnmaskError for ids outside the vocabulary or rows longer than the model reads.
        """
        ids = torch.as_tensor(input_ids, device=self.model.embedding.weight.device)
        if ids.dim() != 2 or ids.dtype.is_floating_point or not ids.numel():
            raise UnmaskError("input_ids must be a non-empty [B, L] tensor of integers")
        self._check_ids(ids, "input_ids")
        shape = self._layout(layout, block_length)
        if attention_mask is None:
            self._check_length(ids.shape[1])
            return self.model(ids, None, plain_mask(shape, ids.shape[1], ids.device)).float()
        valid = attention_mask.to(ids.device).bool()
        if valid.shape != ids.shape:
            raise UnmaskError(f"attention_mask has shape {list(valid.shape)}, input_ids {list(ids.shape)}")
        position = (valid.long().cumsum(1) - 1).clamp(min=0)
        self._check_length(int(position.max()) + 1)
        mask = shape.render(Coordinates.of(position, torch.where(valid, 0, PADDING)))
        return self.model(ids, position, mask).float()

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        mode: str | None = None,
        block_length: int | None = None,
        max_denoising_steps: int | None = None,
        rule: str | None = None,
        threshold: float | None = None,
        factor: float | None = None,
        entropy_bound: float | None = None,
        cache: str = "auto",
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        remask_budget: int | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        streamer: Callable[[Frame], None] | None = None,
    ) -> Any:
        """Writes after a prompt; returns an Output, or a list of them for a list of prompts.

        prompt: text, a list of texts, or token ids. mode: `diffusion` or `ar`; what the model was trained
        for by default. rule: quota, threshold, factor, entropy_bound, margin, random or sequential.
        max_denoising_steps: steps per block. cache: auto, none or exact. temperature 0 is greedy.
        remask_budget: how many committed tokens may be masked again. seed: None draws one. streamer: called
        with every frame. What is None comes from the model's own defaults. Raises UnmaskError for options
        that are out of range and prompts that do not fit.
        """
        options = {k: v for k, v in locals().items() if k not in ("self", "prompt", "streamer")}
        run = self.start(prompt, **options)
        for frame in run.frames():
            if streamer is not None:
                streamer(frame)
        return run.outputs()[0] if _is_single(prompt) else run.outputs()

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Frame]:
        """The frames of `generate`, as they are made; same arguments."""
        yield from self.start(prompt, **options).frames()

    def start(self, prompt: Prompt, max_new_tokens: int = 128, cache: str = "auto", **options: Any) -> Run:
        """Prepares a generation: check everything, decode nothing. Arguments as for `generate`."""
        rows = self._encode(prompt)
        if max_new_tokens < 1:
            raise UnmaskError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if cache not in ("auto", "none", "exact"):
            raise UnmaskError(f"cache '{cache}' is unknown; use auto, none or exact")
        if cache == "exact" and self.config.layout == "bidirectional":
            raise UnmaskError("an exact cache needs a causal or block-causal model; use cache='auto'")
        for row in rows:
            self._check_fits(len(row) + max_new_tokens, f"a prompt of {len(row)} tokens and {max_new_tokens} new ones")
        seed, stop = options.pop("seed", None), options.pop("stop", None)
        seed = secrets.randbits(31) if seed is None else seed
        stops = [stop] if isinstance(stop, str) else stop or []
        base = replace(self._options(seed, **options), stop=self._stop(stops))
        requests = []
        for number, row in enumerate(rows):
            given = [True] * len(row) + [False] * max_new_tokens
            ids = row + [self._mask_id()] * max_new_tokens
            requests.append(replace(base, ids=ids, given=given, seed=seed + number))
        eos = frozenset() if self.config.eos_token_id is None else frozenset([self.config.eos_token_id])
        decoder = Decoder(self.model, self._layout(None, base.block_length), requests, eos, use_cache=cache != "none")
        return Run(decoder, self.tokenizer, stops)

    def fill(self, template: str, streamer: Callable[[Frame], None] | None = None, **options: Any) -> Filled:
        """Fills every gap of a template such as "The [[mask:4]] sat on the [[mask:1-3]]."

        Gaps of ranged length are settled from left to right: all lengths are tried in one batch and the one
        whose text the model is surest of (mean log-confidence per token) is taken. Options as for `generate`.
        """
        if self.config.layout == "causal":
            raise UnmaskError(
                f"model '{self.name}' writes from left to right and cannot fill gaps; use a diffusion model"
            )
        mask_id, tokenizer = self._mask_id(), self._need_tokenizer()
        parsed = parse_template(template, tokenizer)
        lengths = list(parsed.shortest)
        self._check_fits(len(parsed.canvas(list(parsed.longest), mask_id)[0]), "the template with its longest gaps")
        seed = options.pop("seed", None)
        base = self._options(secrets.randbits(31) if seed is None else seed, **options)
        base = replace(base, block_length=None)

        def run(candidates: list[list[int]]) -> Run:
            canvases = [parsed.canvas(lengths, mask_id) for lengths in candidates]
            requests = [replace(base, ids=ids, given=given) for ids, given in canvases]
            return Run(Decoder(self.model, self._layout(None, None), requests), tokenizer, [])

        for gap, (low, high) in enumerate(zip(parsed.shortest, parsed.longest, strict=True)):
            if low < high:
                tried = [[*lengths[:gap], n, *lengths[gap + 1 :]] for n in range(low, high + 1)]
                outcomes = run(tried).outputs()
                lengths = tried[max(range(len(tried)), key=lambda i: _mean_log_confidence(outcomes[i].frames))]
        final = run([lengths])
        for frame in final.frames():
            if streamer is not None:
                streamer(frame)
        output, canvas = final.outputs()[0], final.decoder.canvas.ids[0].tolist()
        gaps = parsed.gaps(canvas, lengths)
        written = [token for gap in gaps for token in gap]
        fields = {**vars(output), "text": tokenizer.decode(canvas), "token_ids": written}
        return Filled(**fields, gaps=[tokenizer.decode(gap) for gap in gaps])

    @torch.inference_mode()
    def likelihood(
        self,
        texts: list[str],
        method: str = "auto",
        samples: int = 128,
        seed: int = 0,
        batch: int = 8,
        progress: Callable[[float], None] = lambda share: None,
    ) -> list[Likelihood]:
        """Negative log-likelihood of each text in nats, given the start of text.

        method: `exact` (AR; left-to-right chain rule on a masked model), `blockwise` (block diffusion),
        `nelbo` (upper bound by `samples` masks a window); `auto` takes the one made for the model. Texts
        longer than the model reads are cut into windows, each given the token before it.
        """
        tokenizer, first = self._need_tokenizer(), self.config.bos_token_id
        own = {"causal": "exact", "block_causal": "blockwise", "bidirectional": "nelbo"}[self.config.layout]
        method = own if method == "auto" else method
        fits = {"causal": ("exact",), "block_causal": ("blockwise",), "bidirectional": ("exact", "nelbo")}
        if method not in fits[self.config.layout]:
            raise UnmaskError(f"likelihood method '{method}' does not fit a {self.config.layout} model; use '{own}'")
        if samples < 1:
            raise UnmaskError(f"samples must be at least 1, got {samples}")
        if first is None:
            raise UnmaskError(f"model '{self.name}' has no start-of-text token to score from")
        results = []
        for number, text in enumerate(texts):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            cut = windows(ids, first, self.config.max_length)
            mean = error = 0.0
            for length in sorted({len(w) for w in cut}, reverse=True):
                group = torch.tensor([w for w in cut if len(w) == length], device=self.model.embedding.weight.device)

                def done(share: float, number: int = number, part: float = len(group) / len(cut)) -> None:
                    progress((number + share * part) / len(texts))

                nats, spread = self._score(group, method, samples, seed + number, batch, done)
                mean, error = mean + float(nats.sum()), error + float((spread**2).sum())
            results.append(Likelihood(mean, len(ids), error**0.5, len(text.encode()), cast(Any, method)))
        return results

    def _score(
        self, group: Tensor, method: str, samples: int, seed: int, batch: int, progress: Callable[[float], None]
    ) -> tuple[Tensor, Tensor]:
        if method == "nelbo":
            return nelbo(self.model, group, samples, seed, batch, progress)
        if method == "blockwise":
            return blockwise(self.model, group, self.config.block_length, samples, seed, batch, progress)
        exact = exact_causal if self.config.layout == "causal" else exact_sequential
        nats = torch.cat([exact(self.model, group[i : i + batch]) for i in range(0, len(group), batch)])
        return nats, torch.zeros_like(nats)

    def _options(self, seed: int, mode: str | None = None, **options: Any) -> Request:
        """A request without a canvas: the caller's options over the model's defaults, checked."""
        own = "ar" if self.config.layout == "causal" else "diffusion"
        if mode not in (None, own):
            raise UnmaskError(f"model '{self.name}' decodes in mode '{own}', not '{mode}'")
        chosen = self.defaults.override(options)
        rule = RuleOptions(chosen.rule, chosen.threshold, chosen.factor, chosen.entropy_bound)
        block, steps, budget = chosen.block_length, chosen.max_denoising_steps, chosen.remask_budget
        if own == "ar":
            rule, block, steps, budget = RuleOptions("sequential"), 1, None, 0
        elif self.config.layout == "block_causal":
            block = block or self.config.block_length
        sampling = (chosen.temperature, chosen.top_k, chosen.top_p)
        return Request([], [], seed, *sampling, rule, block, steps, budget)

    def _stop(self, stops: list[str]) -> Callable[[list[int]], bool] | None:
        if not stops:
            return None
        tokenizer = self._need_tokenizer()
        return lambda ids: any(stop in tokenizer.decode(ids) for stop in stops)

    def _encode(self, prompt: Prompt) -> list[list[int]]:
        """Token rows of a prompt."""
        prompt = prompt.tolist() if isinstance(prompt, Tensor) else prompt
        if isinstance(prompt, str):
            return [self._encode_text(prompt)]
        if not isinstance(prompt, list):
            raise UnmaskError(f"a prompt is text, a list of texts or token ids, not {type(prompt).__name__}")
        if prompt and isinstance(prompt[0], dict):
            raise UnmaskError(f"model '{self.name}' has no chat template; give it plain text")
        if prompt and all(isinstance(p, str) for p in prompt):
            return [self._encode_text(str(p)) for p in prompt]
        rows = cast(list[list[int]], prompt if prompt and isinstance(prompt[0], list) else [prompt])
        for row in rows:
            if not all(isinstance(token, int) and not isinstance(token, bool) for token in row):
                raise UnmaskError("a prompt of token ids must hold integers only")
            self._check_ids(torch.tensor(row or [0]), "the prompt")
        return [row or self._start() for row in rows]

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = self._need_tokenizer().encode(text, add_special_tokens=False).ids
        return ids or self._start()

    def _start(self) -> list[int]:
        """An empty prompt is the start of a text."""
        return [] if self.config.bos_token_id is None else [self.config.bos_token_id]

    def _layout(self, layout: str | None, block_length: int | None) -> Layout:
        kind = layout or self.config.layout
        if kind not in LAYOUT_KINDS or kind == "block_diffusion":
            raise UnmaskError(f"layout '{kind}' is unknown; use bidirectional, causal or block_causal")
        block = block_length or self.config.block_length or 32
        if block < 1:
            raise UnmaskError(f"block_length must be at least 1, got {block}")
        return Layout(cast(LayoutKind, kind), block if kind == "block_causal" else 1)

    def _check_ids(self, ids: Tensor, what: str) -> None:
        if int(ids.min()) < 0 or int(ids.max()) >= self.config.vocab_size:
            raise UnmaskError(f"{what} holds an id outside the vocabulary of {self.config.vocab_size}")

    def _check_length(self, length: int) -> None:
        if length > self.config.max_length:
            raise UnmaskError(f"{length} tokens are more than model '{self.name}' reads ({self.config.max_length})")

    def _check_fits(self, length: int, what: str) -> None:
        room = self.config.max_length
        if length > room:
            raise UnmaskError(f"{what} do not fit the canvas of {room} tokens: {length - room} too many; shorten one")

    def _mask_id(self) -> int:
        if self.config.mask_token_id is None:
            raise UnmaskError(f"model '{self.name}' has no mask token, so it has no canvas to write on")
        return self.config.mask_token_id

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UnmaskError(f"model '{self.name}' has no tokenizer.json; give it token ids instead of text")
        return self.tokenizer


def _mean_log_confidence(frames: list[Frame]) -> float:
    """Over the tokens that stayed: how sure the model was of what it wrote."""
    last: dict[int, float] = {}
    for frame in frames:
        last.update(zip(frame.positions, frame.confidences, strict=True))
    logs = torch.tensor(list(last.values()), dtype=torch.float64).clamp(min=1e-30).log()
    return float(logs.mean())


def _is_single(prompt: Prompt) -> bool:
    """Whether a prompt asks for one text."""
    if isinstance(prompt, Tensor):
        return prompt.dim() == 1
    return isinstance(prompt, str) or not prompt or isinstance(prompt[0], int)
