"""DiffusionLM: load a model by name and write, fill, score and save with it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from unmask import backends
from unmask.canvas import Frame
from unmask.checkpoints import loading
from unmask.decoding.feed import Backend
from unmask.decoding.infill import Template, mean_log_confidence, parse_template, settle_lengths
from unmask.decoding.loop import Decoder
from unmask.decoding.methods.ancestral import SamplerOptions
from unmask.decoding.methods.renoise_rule import noise
from unmask.decoding.methods.sample import check_sampler
from unmask.decoding.request import Mode, Prepared, Request
from unmask.decoding.rules import RuleOptions
from unmask.decoding.stops import Stops
from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.layout import GROUPED, PADDING, Coordinates, Layout, LayoutKind
from unmask.models.config import ModelConfig
from unmask.output import DecodingDefaults, Filled, Run, renoising
from unmask.prompts import Prompt, encode, is_single
from unmask.structured.grammar import Grammar
from unmask.structured.grammars import Grammars, RegexRule, SchemaRule
from unmask.structured.vocabulary import Vocabulary

if TYPE_CHECKING:  # torch takes two seconds to import, and a compiled model does without it
    from tokenizers import Tokenizer
    from torch import Tensor

    from unmask.models.diffusion_gemma import DiffusionGemma
    from unmask.models.transformer import Transformer
    from unmask.objectives.likelihood import Likelihood

BLOCK = 32  # length of blocks where neither the model nor the caller says
MODES: dict[str, tuple[Mode, ...]] = {
    "bidirectional": ("diffusion",),
    "block_causal": ("diffusion",),
    "causal": ("ar",),
    "drafts": ("diffusion", "ar", "verify"),
    "canvas": ("diffusion",),
}


class DiffusionLM:
    """A network, its tokenizer and its decoding defaults."""

    def __init__(
        self,
        model: Transformer | None,
        tokenizer: Tokenizer | None,
        defaults: DecodingDefaults | None = None,
        name: str = "model",
        loaded: loading.Loaded | None = None,
        backend: str = "torch",
    ) -> None:
        """A network in memory, or one that `loaded` describes: that is read when needed. backend: what generates."""
        self._model, self.tokenizer, self.name, self.loaded = model, tokenizer, name, loaded
        self.defaults = defaults or DecodingDefaults()
        if model is None and loaded is None:
            raise ValueError("a DiffusionLM needs a network or what describes one")
        self.config: ModelConfig = model.config if model is not None else cast(loading.Loaded, loaded).config
        self.computes = backend
        self._backend: Backend | None = None
        self.grammars = Grammars(self._vocabulary)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: str = "cpu", dtype: str | None = None, backend: str = "auto"
    ) -> DiffusionLM:
        """Loads a model by name ("default", "austen", ...; see `unmask models`), a checkpoint folder or a GGUF file.

        dtype: of the torch network: float32 (None means it too), bfloat16, float16, or auto for the file's
        own. backend: what generates: `torch`, `native` (8-bit weights on a CPU), `openvino`, or `auto`:
        native where it runs the model and is faster, unless a dtype is asked for.
        Raises UnmaskError if there is no such model or it cannot be read.
        """
        loaded = loading.describe(str(name), device, dtype or "float32")
        backend = backends.choose(backend, loaded, dtype)
        model = loaded.network() if backend == "torch" else None
        return cls(model, loaded.tokenizer, loaded.defaults, loaded.name, loaded, backend)

    @property
    def model(self) -> Transformer:
        """The torch network; read from its files when first asked for."""
        if self._model is None:
            self._model = cast(loading.Loaded, self.loaded).network()
        return self._model

    @property
    def backend(self) -> Backend:
        """What computes forwards when text is generated."""
        if self._backend is None:
            self._backend = self.new_backend()
        return self._backend

    def new_backend(self) -> Backend:
        """Another one, for requests that cannot share a cache with those of the first."""
        source = backends.Source(self.config, self._network, self.loaded)
        return backends.create(self.computes, source, self._backend)

    def _network(self) -> Transformer:
        """For a backend: the torch backend shares this model's network, others pack one that is not kept."""
        if self._model is None and self.computes != "torch" and self.loaded is not None:
            return self.loaded.network()
        return self.model

    @property
    def chat_template(self) -> str | None:
        return None if self.loaded is None else self.loaded.chat_template

    def save_pretrained(self, path: str | Path, layout: Literal["own", "sdar"] = "own") -> None:
        """Writes a checkpoint folder that from_pretrained reads back, in the layout of the family's own files, or in
        SDAR's, which other engines serve. Raises UnmaskError for a model that SDAR cannot express."""
        from unmask.checkpoints import export
        from unmask.checkpoints import weights as checkpoint
        from unmask.models import adapter

        folder, loaded = Path(path), self.loaded
        if layout == "sdar":
            export.sdar_config(self.config, self.name)  # before the weights are read
            threshold = self.defaults.threshold if self.defaults.rule == "threshold" else None
            about = (self.name, self.tokenizer, self.chat_template, self.defaults.eos_token_ids, threshold)
            return export.export_sdar(folder, self.model, *about)
        if loaded is not None and loaded.base is not None:
            adapter.save(folder, self.model, dict(adapter.own_parameters(self.model)), loaded.base)
        else:
            family, raw = (None, None) if loaded is None else (loaded.family, loaded.raw_config)
            raw = raw or self.config.to_dict()
            if loaded is not None and family is not None and family.unread:
                lost = checkpoint.unread(checkpoint.open_weights(loaded.path), family)
                if lost:
                    raise UnmaskError(
                        f"model '{self.name}' has {len(lost)} tensors that are not read, {lost[0]!r} among them; "
                        "saving would lose them, copy its folder instead"
                    )
            checkpoint.save(folder, raw, checkpoint.weights_to_save(self.model, family, raw), self.tokenizer)
            if loaded is not None and family is not None:
                generation = loaded.path / loading.GENERATION
                if generation.is_file():
                    write_text(folder / loading.GENERATION, generation.read_text(encoding="utf-8"))
                return
        write_text(folder / loading.GENERATION, json.dumps(asdict(self.defaults), indent=2) + "\n")

    def logits(
        self,
        input_ids: Tensor | list[list[int]],
        layout: str | None = None,
        block_length: int | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, L, V], float, from the torch network; logits[:, i] scores the token AT position i.

        input_ids: LongTensor [B, L]. layout: bidirectional, causal or block_causal, the model's own by
        default; `canvas` for a model that denoises random tokens: the last block_length tokens are a canvas
        behind the others, unconditioned. attention_mask: [B, L], 1 for tokens and 0 for padding on either side.
        Raises UnmaskError for ids outside the vocabulary or rows longer than the model reads.
        """
        import torch

        from unmask.attention import WindowMasks, plain_mask, render

        ids = torch.as_tensor(input_ids, device=self.model.embedding.weight.device)
        if ids.dim() != 2 or ids.dtype.is_floating_point or not ids.numel():
            raise UnmaskError("input_ids must be a non-empty [B, L] tensor of integers")
        self._check_ids(ids, "input_ids")
        shape = self._layout(layout or ("causal" if self.config.layout == "drafts" else None), block_length)
        windows = self.config.windows
        with torch.inference_mode():
            if attention_mask is None and shape.kind != "canvas":
                self._check_length(ids.shape[1])
                return self.model(ids, None, plain_mask(shape, ids.shape[1], ids.device, windows)).float()
            valid = torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids.device)
            if valid.shape != ids.shape:
                raise UnmaskError(f"attention_mask has shape {list(valid.shape)}, input_ids {list(ids.shape)}")
            valid = valid.bool()
            position = (valid.long().cumsum(1) - 1).clamp(min=0)
            self._check_length(int(position.max()) + 1)
            if shape.kind == "canvas":
                if int(valid.sum(1).min()) <= shape.block_length:
                    raise UnmaskError(f"input_ids must hold text before a canvas of {shape.block_length} tokens")
                return cast("DiffusionGemma", self.model).canvas_logits(ids, valid, shape.block_length).float()
            rows = Coordinates.of(position, torch.where(valid, 0, PADDING))
            mask = WindowMasks.of(shape, windows, rows) if windows else render(shape, rows)
            return self.model(ids, position, mask).float()

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        mode: str | None = None,
        block_length: int | None = None,
        sub_block_length: int | None = None,
        max_denoising_steps: int | None = None,
        rule: str | None = None,
        threshold: float | None = None,
        editing_threshold: float | None = None,
        factor: float | None = None,
        entropy_bound: float | None = None,
        schedule: str | None = None,
        guidance: float | None = None,
        cache: str | None = None,
        cache_refresh: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        remask_budget: int | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        confidence_threshold: float | None = None,
        stability_threshold: int | None = None,
        sampler: str | None = None,
        noise_removal: str | None = None,
        psi_kappa: float | None = None,
        nucleus_p: float | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        json_schema: Any = None,
        regex: str | None = None,
        streamer: Callable[[Frame], None] | None = None,
        **options: Any,
    ) -> Any:
        """Writes after a prompt; returns an Output, or a list of them for a list of prompts.

        prompt: text, a list of texts, token ids, or chat messages ({"role": ..., "content": ...}) for a model
        with a chat template. mode: `diffusion`, `ar` or `verify` (drafted by diffusion, identical to `ar`),
        of those that the model has; the first by default. block_length: the window's, so in mode verify one
        more than the drafts of a step; sub_block_length: of a block-causal model, parts of a block that are written
        one after another. rule: quota, threshold, factor, entropy_bound, margin, entropy, random, sequential,
        token_edit (written tokens are replaced where the model is surer than editing_threshold of another), or
        checked (drafts are kept where the base gives them `threshold` times its best token's probability).
        max_denoising_steps: steps per block. schedule: how many tokens they write: even, block, linear, cosine or
        timesteps. guidance: above 0 classifier-free, which reads the canvas twice per step. cache: auto, none,
        exact, or prefix or dual, which are approximate and of a bidirectional model (dual also of sub-blocks);
        cache_refresh: those read all again every so many steps. temperature 0 is greedy. remask_budget: how many
        committed tokens may be masked again. sampler: draws the steps in place of a rule; ancestral, ddpm,
        ddpm_cache, psi, analytic, euler or first_hitting, with noise_removal (greedy, ancestral or none), psi_kappa
        and nucleus_p; see decoding.ancestral.SamplerOptions. For DiffusionGemma, t_max to t_min are the steps'
        temperatures (a temperature above 0 stands for both, 0 takes the best tokens), and a canvas is done when its
        best tokens are those of the last stability_threshold steps and their mean entropy is below
        confidence_threshold (nats). Whole canvases are decoded, what was asked for is given. seed: None draws one.
        json_schema (a dict, true, JSON text or a pydantic model) or regex: all that is written is valid under it and
        complete, whatever the mode, rule and temperature; what is honoured says automata.json_schema and
        automata.regex. In their place `grammar`: what `grammar()` compiled. streamer: called with every frame.
        options: any other field of `DecodingDefaults`. What is None comes from the model's own defaults. Raises
        UnmaskError for options that are out of range and prompts that do not fit.
        """
        named = {k: v for k, v in locals().items() if k not in ("self", "prompt", "streamer", "options")}
        options |= named
        run = self.start(prompt, **options)
        for frame in run.frames():
            if streamer is not None:
                streamer(frame)
        return run.outputs()[0] if is_single(prompt) else run.outputs()

    def stream(self, prompt: Prompt, max_new_tokens: int = 128, **options: Any) -> Iterator[Frame]:
        """The frames of `generate`, as they are made; same arguments."""
        yield from self.start(prompt, max_new_tokens, **options).frames()

    def start(self, prompt: Prompt, max_new_tokens: int = 128, **options: Any) -> Run:
        """Prepares a generation: check everything, decode nothing. Arguments as for `generate`."""
        asked = self.prepare(prompt, max_new_tokens, **options)
        decoder = Decoder(self.backend, asked.layout, asked.requests, asked.eos_ids, asked.use_cache)
        return Run(decoder, self.tokenizer, asked.stops)

    def prepare(self, prompt: Prompt, max_new_tokens: int = 128, **options: Any) -> Prepared:
        """The requests of a generation, checked, for a decoder of any company. Arguments as for `generate`."""
        rows = encode(prompt, self.tokenizer, self.chat_template, self.config, self.name)
        if max_new_tokens < 1:
            raise UnmaskError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if self.config.layout in GROUPED and not all(rows):
            raise UnmaskError(f"model '{self.name}' has no start-of-text token; give it a prompt of at least one token")
        if options.get("block_length") == 1 and options.get("mode") == "verify":
            raise UnmaskError("mode 'verify' needs a block_length of at least 2: one sure token and a draft")
        grammar = self._grammar(options)
        seed, stop = options.pop("seed", None), options.pop("stop", None)
        seed = secrets.randbits(31) if seed is None else seed
        stops = [stop] if isinstance(stop, str) else stop or []
        base, decode = self._options(seed, **options), self._need_tokenizer().decode if stops else None
        if grammar is not None:
            base = self._hold(base, grammar)
            grammar.check(max_new_tokens)
        requests = [self._request(base, row, max_new_tokens, seed + number) for number, row in enumerate(rows)]
        if decode is not None:
            requests = [replace(request, stop=Stops(stops, decode)) for request in requests]
        ends = self._ends(self.defaults.override({"eos_token_ids": options.get("eos_token_ids")}))
        layout = self._layout(self._other_layout(options.get("layout")), base.block_length)
        use_cache = base.cache != "none"
        return Prepared(requests, layout, ends, use_cache, stops)

    def grammar(self, json_schema: Any = None, regex: str | None = None) -> Grammar:
        """The compiled grammar of a JSON schema or a regular expression, for this model's tokens; kept, so that it is
        compiled once. Raises UnmaskError for one that is refused, too large, or that no text fits."""
        if (json_schema is None) == (regex is None):
            raise UnmaskError("a grammar is one of json_schema and regex; give one of them")
        return self.grammars.get(SchemaRule.of(json_schema) if regex is None else RegexRule(regex))

    def _vocabulary(self) -> Vocabulary:
        config = self.config
        ends = self._ends(self.defaults)
        return Vocabulary.of(self._need_tokenizer(), config.vocab_size, ends, config.pad_token_id, config.mask_token_id)

    def _ends(self, options: DecodingDefaults) -> frozenset[int]:
        """Tokens that end a text."""
        own = () if self.config.eos_token_id is None else (self.config.eos_token_id,)
        return frozenset((*own, *options.eos_token_ids))

    def _grammar(self, options: dict[str, Any]) -> Grammar | None:
        """Takes a grammar out of options of `generate`, None where there is none."""
        schema, regex = options.pop("json_schema", None), options.pop("regex", None)
        grammar: Grammar | None = options.pop("grammar", None)
        if grammar is None and schema is None and regex is None:
            return None
        if sum(given is not None for given in (grammar, schema, regex)) > 1:
            raise UnmaskError("json_schema, regex and grammar are three ways to say one thing; give one of them")
        if options.get("eos_token_ids") is not None:
            raise UnmaskError("a grammar ends with the model's own ends of text; leave out eos_token_ids")
        if options.get("stop"):
            raise UnmaskError("a stop would cut what a grammar completes; leave out one of them")
        return grammar or self.grammar(schema, regex)

    def _hold(self, request: Request, grammar: Grammar) -> Request:
        """The request with a grammar; raises UnmaskError where it cannot be held to it."""
        if request.renoise is not None or request.sampler is not None or self.config.mask_token_id is None:
            how = "whole canvases of noise" if request.sampler is None else f"by sampler '{request.sampler.name}'"
            raise UnmaskError(
                f"model '{self.name}' writes {how}, which cannot be held to a grammar; use a model and a rule that "
                "fill masks"
            )
        if request.rule.name == "token_edit" and self.config.insert_token_id is not None:
            raise UnmaskError("rule token_edit inserts and deletes tokens here; with a grammar, use another rule")
        return replace(request, grammar=grammar, whole_blocks=False)

    def fill(self, template: str, streamer: Callable[[Frame], None] | None = None, **options: Any) -> Filled:
        """Fills every gap of a template such as "The [[mask:4]] sat on the [[mask:1-3]]."

        Gaps of ranged length are settled from left to right: all lengths are tried in one batch and the one
        whose text the model is surest of (mean log-confidence per token) is taken. Options as for `generate`.
        """
        if self.config.layout in ("causal", "drafts", "canvas"):
            raise UnmaskError(
                f"model '{self.name}' writes after its prompt and cannot fill gaps; use a model that denoises masks"
            )
        tokenizer = self._need_tokenizer()
        parsed = parse_template(template, tokenizer)
        prepare = self.prepare_fill(parsed, **options)

        def run(candidates: list[list[int]]) -> Run:
            asked = prepare(candidates)
            return Run(Decoder(self.backend, asked.layout, asked.requests), tokenizer, [])

        settling, sure = settle_lengths(parsed), None
        while True:
            try:
                tried = settling.send(sure) if sure is not None else next(settling)
            except StopIteration as settled:
                lengths: list[int] = settled.value
                break
            sure = [mean_log_confidence(out.frames) for out in run(tried).outputs()]
        final = run([lengths])
        for frame in final.frames():
            if streamer is not None:
                streamer(frame)
        output, canvas = final.outputs()[0], final.decoder.canvas.ids[0].tolist()
        gaps = parsed.gaps(canvas, lengths)
        written = [token for gap in gaps for token in gap]
        fields = {**vars(output), "text": tokenizer.decode(canvas), "token_ids": written}
        return Filled(**fields, gaps=tuple(tokenizer.decode(gap) for gap in gaps))

    def prepare_fill(self, template: Template, **options: Any) -> Callable[[list[list[int]]], Prepared]:
        """Checks a template and options as for `fill`; gives what makes requests of lists of gap lengths."""
        self._check_fits(template.length(template.longest), "the template with its longest gaps")
        seed = options.pop("seed", None)
        base = self._options(secrets.randbits(31) if seed is None else seed, **options)
        layout = self._layout(self._other_layout(options.get("layout")), base.block_length)
        base = replace(base, block_length=None, ends=False)

        def prepare(candidates: list[list[int]]) -> Prepared:
            canvases = [template.canvas(lengths, 0) for lengths in candidates]
            requests = [replace(base, ids=self._noised(ids, given, base.seed), given=given) for ids, given in canvases]
            return Prepared(requests, layout)

        return prepare

    def likelihood(
        self,
        texts: list[str],
        method: str = "auto",
        samples: int = 128,
        seed: int = 0,
        batch: int = 8,
        progress: Callable[[float], None] = lambda share: None,
    ) -> list[Likelihood]:
        """Negative log-likelihood of each text in nats, given the start of text, under the torch network.

        method: `exact` (AR; left-to-right chain rule on a masked model), `blockwise` (block diffusion),
        `nelbo` (upper bound by `samples` noised copies of a window, masked or of random tokens); `auto` takes the
        one made for the model. Texts longer than the model reads are cut into windows, each given the token before it.
        """
        from unmask.objectives.likelihood import score_texts

        ids = [self._need_tokenizer().encode(text, add_special_tokens=False).ids for text in texts]
        return score_texts(self.model, texts, ids, method, samples, seed, batch, progress)

    def _options(self, seed: int, mode: str | None = None, **options: Any) -> Request:
        """A request without a canvas: the caller's options over the model's defaults, checked."""
        modes = MODES[self.config.layout]
        chosen_mode = next((m for m in modes if m == (mode or modes[0])), None)
        if chosen_mode is None:
            raise UnmaskError(f"model '{self.name}' decodes in mode {' or '.join(modes)}, not '{mode}'")
        chosen = self.defaults.override(options)
        self._check_suits(chosen, chosen_mode)
        others: dict[str, Any] = {}
        if chosen_mode == "ar":
            plain = {"block_length": 1, "max_denoising_steps": None, "remask_budget": 0}
            others = {"rule": RuleOptions("sequential"), **plain}
        elif (self._other_layout(chosen.layout) or self.config.layout) in ("block_causal", *GROUPED):
            others = {"block_length": chosen.block_length or self.config.block_length or BLOCK}
        request = chosen.request(ids=[], given=[], seed=seed, mode=chosen_mode, **others)
        if self.config.layout == "canvas":
            return replace(request, renoise=renoising(chosen, options.get("temperature")))
        return request if chosen_mode == "ar" else replace(request, sampler=self._sampler(request, chosen))

    def _other_layout(self, layout: str | None) -> str | None:
        """The layout to decode with, None where it is the model's own."""
        asked = layout or self.defaults.layout
        return None if asked == "auto" else asked

    def _check_suits(self, chosen: DecodingDefaults, mode: Mode) -> None:
        """Raises UnmaskError for a layout, a rule, a cache or guidance that this model cannot have."""
        layout, budget = self._other_layout(chosen.layout) or self.config.layout, chosen.remask_budget
        if chosen.layout != "auto" and self.config.layout not in ("bidirectional", "block_causal"):
            raise UnmaskError(f"model '{self.name}' reads text from left to right; it has no layout '{chosen.layout}'")
        if chosen.rule == "token_edit" and layout not in ("bidirectional", "block_causal"):
            raise UnmaskError(f"model '{self.name}' never revises what it wrote; rule 'token_edit' needs another one")
        block = chosen.block_length or self.config.block_length
        if chosen.cache == "exact" and layout == "bidirectional":
            raise UnmaskError("an exact cache needs a causal or block-causal model; use cache='auto'")
        parts = chosen.cache == "dual" and chosen.sub_block_length is not None
        if chosen.cache in ("prefix", "dual") and layout != "bidirectional" and not parts:
            raise UnmaskError(
                f"cache '{chosen.cache}' is for bidirectional models, and '{self.name}' keeps exact keys and values; "
                "use cache='auto'"
            )
        masks = self.config.mask_token_id is not None and self.config.output == "logits"
        if chosen.guidance > 0 and (mode != "diffusion" or layout in GROUPED or not masks):
            raise UnmaskError(f"guidance needs a model that denoises masks, which '{self.name}' does not; leave it out")
        if mode == "ar":
            return
        if chosen.rule == "checked" and (layout != "drafts" or block < 2 or budget):
            raise UnmaskError(
                f"rule 'checked' is for models with an adapter that drafts, a block_length of at least 2 and no "
                f"remasking; model '{self.name}' has block_length {block}, remask_budget {budget}; use threshold"
            )
        if layout == "canvas" and (chosen.rule != "entropy_bound" or budget):
            raise UnmaskError(
                f"model '{self.name}' denoises random tokens: its rule is entropy_bound, without remasking"
            )

    def _request(self, base: Request, row: list[int], max_new_tokens: int, seed: int) -> Request:
        """A request to write after a prompt; a model that denoises random tokens writes whole canvases, and one
        whose blocks are to be whole fills up its last where there is room."""
        count, block = max_new_tokens, base.block_length or 1
        if base.renoise is not None:
            count = -(-count // block) * block
        elif base.whole_blocks:
            whole = count + -(count if base.blocks_from_prompt else len(row) + count) % block
            count = whole if len(row) + whole <= self.config.max_length else count
        self._check_fits(len(row) + count, f"a prompt of {len(row)} tokens and {count} new ones")
        given = [True] * len(row) + [False] * count
        ids = self._noised(row + [0] * count, given, seed)
        return replace(base, ids=ids, given=given, seed=seed, wanted=max_new_tokens)

    def _sampler(self, request: Request, chosen: DecodingDefaults) -> SamplerOptions | None:
        """The sampler that the options name, checked; raises UnmaskError where the model cannot be decoded by it."""
        if chosen.sampler == "none":
            if self.config.corruption == "uniform" or self.config.output == "log_score":
                raise UnmaskError(f"model '{self.name}' is decoded by a sampler, not by a rule; leave out rule")
            return None
        steps = chosen.max_denoising_steps or SamplerOptions.steps
        options = SamplerOptions(chosen.sampler, steps, chosen.noise_removal, chosen.psi_kappa, chosen.nucleus_p)
        check_sampler(request, options, self.config)
        return options

    def _layout(self, layout: str | None, block_length: int | None) -> Layout:
        kind = layout or self.config.layout
        canvas = self.config.layout == "canvas"
        known = ("causal", "canvas") if canvas else ("bidirectional", "causal", "block_causal")
        if layout is not None and layout not in known:
            raise UnmaskError(f"layout '{kind}' is not one of model '{self.name}'; use {', '.join(known)}")
        block = block_length or self.config.block_length or BLOCK
        if block < 1:
            raise UnmaskError(f"block_length must be at least 1, got {block}")
        return Layout(cast(LayoutKind, kind), block if kind in ("block_causal", "canvas") else 1)

    def _check_ids(self, ids: Any, what: str) -> None:
        if int(ids.min()) < 0 or int(ids.max()) >= self.config.vocab_size:
            raise UnmaskError(f"{what} holds an id outside the vocabulary of {self.config.vocab_size}")

    def _check_length(self, length: int) -> None:
        if length > self.config.max_length:
            raise UnmaskError(f"{length} tokens are more than model '{self.name}' reads ({self.config.max_length})")

    def _check_fits(self, length: int, what: str) -> None:
        room = self.config.max_length
        if length > room:
            raise UnmaskError(f"{what} do not fit the canvas of {room} tokens: {length - room} too many; shorten one")

    def _noised(self, ids: list[int], given: list[bool], seed: int) -> list[int]:
        """The canvas to begin with: masks, or random tokens of the seed, where nothing is given."""
        mask = self.config.mask_token_id
        if mask is None and self.config.corruption == "absorbing" and self.config.layout != "canvas":
            raise UnmaskError(f"model '{self.name}' has no mask token, so it has no canvas to write on")
        place = np.arange(len(ids))
        start = noise(seed, 0, place, self.config.vocab_size) if mask is None else np.full(len(ids), mask)
        out: list[int] = np.where(given, ids, start).tolist()
        return out

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UnmaskError(f"model '{self.name}' has no tokenizer.json; give it token ids instead of text")
        return self.tokenizer
