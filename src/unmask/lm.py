"""DiffusionLM: load a model by name and write, fill, score and save with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, cast
from weakref import ref

from unmask import backends
from unmask.canvas import Frame
from unmask.checkpoints.hub import cache
from unmask.checkpoints.open import Checkpoint
from unmask.decoding import decisions
from unmask.decoding.decisions import Deciding
from unmask.decoding.feed import Backend
from unmask.decoding.infill import Template, mean_log_confidence, parse_template, settle_lengths
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import DecodingDefaults, capabilities
from unmask.decoding.prefixes import Remembering
from unmask.decoding.prepare import Preparer
from unmask.decoding.questions import Decision
from unmask.decoding.request import Alternatives, Prepared
from unmask.errors import UnmaskError
from unmask.layout import BEHIND_TEXT, PADDING, WRITES_BEHIND, Coordinates
from unmask.models.config import ModelConfig
from unmask.output import Filled, Run
from unmask.prompts import Prompt, encode, encode_text, is_single, render_chat
from unmask.structured.grammar import Grammar
from unmask.structured.grammars import Grammars, RegexRule, SchemaRule
from unmask.structured.prompt_lists import AnswerRule
from unmask.structured.vocabulary import Vocabulary

if TYPE_CHECKING:  # torch takes two seconds to import, and a compiled model does without it
    from tokenizers import Tokenizer
    from torch import Tensor

    from unmask.models.diffusion_gemma import DiffusionGemma
    from unmask.models.transformer import Transformer
    from unmask.objectives.likelihood import Likelihood

READ_TOGETHER = 32  # canvases that one forward reads for a call of `decide`


class DiffusionLM:
    """A network, its tokenizer and its decoding defaults."""

    def __init__(
        self,
        model: Transformer | None,
        tokenizer: Tokenizer | None,
        defaults: DecodingDefaults | None = None,
        name: str = "model",
        loaded: Checkpoint | None = None,
        backend: str = "torch",
    ) -> None:
        """A network in memory, or one that `loaded` describes: that is read when needed. backend: what generates."""
        self._model = model
        self.tokenizer = tokenizer
        self.name = name
        self.loaded = loaded
        self.defaults = defaults or DecodingDefaults()
        if model is None and loaded is None:
            raise ValueError("a DiffusionLM needs a network or what describes one")
        self.config: ModelConfig = model.config if model is not None else cast(Checkpoint, loaded).config
        self.computes = backend
        self._backend: Backend | None = None
        self._user: Callable[[], Run | None] = lambda: None  # whose requests have places in the backend's cache
        self._lock = RLock()
        self.grammars = Grammars(self._vocabulary, lambda: cache() / "grammars")

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "cpu",
        dtype: str | None = None,
        backend: str = "auto",
        quantize: str | None = None,
    ) -> DiffusionLM:
        """Loads a model by name ("default", "austen", ...; see `unmask models`), a checkpoint folder or a GGUF file.

        dtype: of the torch network: float32 (None means it too), bfloat16, float16, or auto for the file's
        own. backend: what generates: `torch`, `native` (8-bit weights on a CPU), or `auto`:
        native where it runs the model and is faster, unless a dtype is asked for. quantize: native with weights of 8
        bits (`q8`, 4 where that loses nothing), of 4 (`q4`), or float32 (`none`).
        Raises UnmaskError if there is no such model or it cannot be read.
        """
        loaded = Checkpoint.open(name, device, dtype or "float32")
        backend = backends.choose(backend, loaded, dtype, quantize)
        model = loaded.network() if backend == "torch" else None
        return cls(model, loaded.tokenizer, loaded.defaults, loaded.name, loaded, backend)

    @property
    def model(self) -> Transformer:
        """The torch network; read from its files when first asked for."""
        if self._model is None:
            self._model = cast(Checkpoint, self.loaded).network()
        return self._model

    @property
    def backend(self) -> Backend:
        """What computes forwards when text is generated."""
        self.load_backend()
        return cast(Backend, self._backend)

    def load_backend(self, progress: backends.Progress | None = None) -> None:
        """Does what the first text would wait for, as packing weights for a compiled backend; `progress` is told."""
        with self._lock:
            if self._backend is None:
                self._backend = self.new_backend(progress)

    def new_backend(self, progress: backends.Progress | None = None) -> Backend:
        """Another one, for requests that cannot share a cache with those of the first."""
        source = backends.Source(self.config, self._network, self.loaded)
        return backends.create(self.computes, source, self._backend, progress)

    def keep_prefixes(self, most_bytes: int) -> None:
        """From now on text that begins like an earlier one is read from there on: keys and values are kept, of the
        texts that were of use last, in so many bytes; 0 forgets them. What is written stays the same to the bit.

        Raises UnmaskError for a backend that keeps none.
        """
        backend = self.backend
        if not isinstance(backend, Remembering):
            raise UnmaskError(f"backend '{self.computes}' keeps no text; backend 'native' does")
        backend.prefixes.shrink(most_bytes)

    def _network(self) -> Transformer:
        """For a backend: the torch backend shares this model's network, others pack one that is not kept."""
        if self._model is None and self.computes != "torch" and self.loaded is not None:
            return self.loaded.network()
        return self.model

    @property
    def chat_template(self) -> str | None:
        """The model's plain chat template; None without one."""
        return self.templates.get("default")

    @property
    def templates(self) -> dict[str, str]:
        """The model's chat templates by name: "default" and, for requests with tools, "tool_use"."""
        return {} if self.loaded is None else self.loaded.templates

    @property
    def special_tokens(self) -> dict[str, str]:
        """What chat templates may name: `bos_token` and the like, as text."""
        return {} if self.loaded is None else self.loaded.special_tokens

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema that answers are held to where nothing else is asked for; None for a model without one."""
        return None if self.loaded is None else self.loaded.answer_schema

    def save_pretrained(self, path: str | Path, layout: Literal["own", "sdar"] = "own") -> None:
        """Writes a checkpoint folder that from_pretrained reads back, in the layout of the family's own files, or in
        SDAR's, which other engines serve. Raises UnmaskError for a model that SDAR cannot express."""
        from unmask.checkpoints import save

        folder = Path(path)
        defaults = asdict(self.defaults)
        if layout == "sdar":
            save.sdar_config(self.config, self.name)  # before the weights are read
            save.export_sdar(
                folder,
                self.model,
                self.name,
                tokenizer=self.tokenizer,
                templates=self.templates,
                special_tokens=self.special_tokens,
                ends=self.defaults.eos_token_ids,
                threshold=self.defaults.threshold if self.defaults.rule == "threshold" else None,
            )
        elif self.loaded is not None:
            save.save_again(folder, self.model, self.loaded, defaults)
        else:
            save.save_new(folder, self.model, self.tokenizer, defaults)

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
        if int(ids.min()) < 0 or int(ids.max()) >= self.config.vocab_size:
            raise UnmaskError(f"input_ids holds an id outside the vocabulary of {self.config.vocab_size}")
        own = "causal" if self.config.layout in ("drafts", *BEHIND_TEXT) else None
        shape = self.preparer.layout(layout or own, block_length)
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
        max_denoising_steps: int | None = None,
        rule: str | None = None,
        threshold: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        json_schema: Any = None,
        streamer: Callable[[Frame], None] | None = None,
        **method_options: Any,
    ) -> Any:
        """Writes after a prompt; returns an Output, or a list of them for a batch.

        Args:
            prompt: Text, chat messages ({"role": ..., "content": ...}) or token ids (a list, an array or a tensor); a
                list of any of these is a batch.
            max_new_tokens: How many tokens to write; less where an end of text comes first.
            mode: `diffusion`, `ar` or `verify` (drafted by diffusion, identical to `ar`); the model's first by default.
            block_length: Tokens decoded together; in mode verify one more than the drafts of a step.
            max_denoising_steps: Steps per block.
            rule: Which proposals a step keeps; `capabilities()` lists the rules and what each reads.
            threshold: Of the rules threshold, token_edit and checked, 0 to 1.
            temperature: 0 takes the best token.
            top_p: Nucleus that is sampled from.
            top_k: Number of best tokens that is sampled from; 0 is all.
            seed: None draws one; the output says which.
            stop: Texts that end the answer.
            json_schema: All that is written is valid under it and complete, whatever the mode, rule and temperature: a
                dict, true, JSON text or a pydantic model.
            streamer: Called with every frame.
            method_options: `regex` or a compiled `grammar` in place of json_schema, and every other option of decoding
                (`sampler`, `guidance`, `cache`, `convention`, ...); `capabilities()` says which way of decoding reads
                which, with types and ranges.

        What is None comes from the model's own defaults.

        Raises:
            UnmaskError: for options that are unknown, out of range or not read, and prompts that do not fit.
        """
        run = self.start(
            prompt,
            max_new_tokens,
            mode=mode,
            block_length=block_length,
            max_denoising_steps=max_denoising_steps,
            rule=rule,
            threshold=threshold,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
            json_schema=json_schema,
            **method_options,
        )
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
        return self.run(asked)

    def run(self, asked: Prepared) -> Run:
        """Decodes what was prepared, by a backend of its own while another run is not at its end."""
        with self._lock:
            user = self._user()
            free = user is None or user.done
            backend = self.backend if free else self.new_backend()
            decoder = Decoder(backend, asked.layout, asked.requests, asked.eos_ids, asked.use_cache)
            run = Run(decoder, self.tokenizer, asked.stops)
            if free:
                self._user = ref(run)
        return run

    def prepare(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        mode: str | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        json_schema: Any = None,
        regex: str | None = None,
        grammar: Grammar | None = None,
        **options: Any,
    ) -> Prepared:
        """The requests of a generation, checked, for a decoder of any company. Arguments as for `generate`."""
        stops = [stop] if isinstance(stop, str) else stop or []
        given = sum(rule is not None for rule in (grammar, json_schema, regex))
        if given > 1:
            raise UnmaskError("json_schema, regex and grammar are three ways to say one thing; give one of them")
        rows = self.encode(prompt)
        if given:
            grammars: list[Grammar] | None = [grammar or self.grammar(json_schema, regex)] * len(rows)
        else:
            grammars = None if self.answer_schema is None else [self._answers(row) for row in rows]
        return self.preparer.write(
            rows,
            max_new_tokens,
            mode=mode,
            seed=seed,
            stops=stops,
            decode=self._need_tokenizer().decode if stops else None,
            grammars=grammars,
            options=options,
        )

    @property
    def preparer(self) -> Preparer:
        """What makes requests for this model, with its defaults as they are now."""
        return Preparer(self.name, self.config, self.defaults)

    def capabilities(self) -> dict[str, Any]:
        """What this model can be asked for, as plain data (it is JSON as it stands).

        Returns:
            `model`, `layout`, `max_length`: of the network.
            `fills`, `chats`, `grammars`: whether it fills gaps, takes messages, and can be held to a grammar.
            `parameters`: every option of decoding by name: `type`, bounds, `choices`, the model's `default`, and `off`,
                the value that changes nothing.
            `modes`: by mode, the ways to decode in it, the defaults first: the `method`, the `rule` or `sampler` that
                decides, `options` that choose it, the `parameters` that it reads (any other is refused), the kinds of
                `cache` that it takes and whether it can be held to a `grammar`.
        """
        found = capabilities(self.name, self.config, self.defaults)
        held = self.tokenizer is not None and any(way["grammar"] for ways in found["modes"].values() for way in ways)
        return {
            "model": self.name,
            "layout": self.config.layout,
            "max_length": self.config.max_length,
            "fills": self.tokenizer is not None and self.config.layout not in WRITES_BEHIND,
            "chats": self.chat_template is not None,
            "grammars": held,
            **found,
        }

    def room(self, tokens: int) -> int:
        """How many new tokens fit behind a prompt; whole canvases, of a model that writes those."""
        return self.preparer.room(tokens)

    def encode(self, prompt: Prompt) -> list[list[int]]:
        """The token ids that a prompt stands for, a row for each of a batch; chats as the template writes them."""
        return encode(prompt, self.tokenizer, self.templates, self.config, self.name, self.special_tokens)

    def render_chat(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, /, **variables: Any
    ) -> str:
        """Chat messages as the model's template writes them; `variables` are whatever else the template reads."""
        return render_chat(messages, self.templates, self.name, tools, self.special_tokens, **variables)

    def grammar(self, json_schema: Any = None, regex: str | None = None) -> Grammar:
        """The compiled grammar of a JSON schema or a regular expression, for this model's tokens; kept, so that it is
        compiled once. Raises UnmaskError for one that is refused, too large, or that no text fits."""
        if (json_schema is None) == (regex is None):
            raise UnmaskError("a grammar is one of json_schema and regex; give one of them")
        return self.grammars.get(SchemaRule.of(json_schema) if regex is None else RegexRule(regex))

    def _vocabulary(self) -> Vocabulary:
        config = self.config
        ends = self.preparer.ends(self.defaults)
        return Vocabulary.of(self._need_tokenizer(), config.vocab_size, ends, config.pad_token_id, config.mask_token_id)

    def _answers(self, ids: list[int]) -> Grammar:
        """The grammar of the model's own schema of answers, with the lists of a prompt of these tokens."""
        return self.grammars.get(AnswerRule.of(self.answer_schema, self._need_tokenizer().decode(ids)))

    def fill(self, template: str, streamer: Callable[[Frame], None] | None = None, **options: Any) -> Filled:
        """Fills every gap of a template such as "The [[mask:4]] sat on the [[mask:1-3]]."

        Gaps of ranged length are settled from left to right: all lengths are tried in one batch and the one
        whose text the model is surest of (mean log-confidence per token) is taken. Options as for `generate`.
        """
        if self.config.layout in WRITES_BEHIND:
            raise UnmaskError(
                f"model '{self.name}' writes after its prompt and cannot fill gaps; use a model that denoises masks"
            )
        tokenizer = self._need_tokenizer()
        parsed = parse_template(template, tokenizer)
        prepare = self.prepare_fill(parsed, **options)

        settling = settle_lengths(parsed)
        sure: list[float] | None = None
        while True:
            try:
                tried = next(settling) if sure is None else settling.send(sure)
            except StopIteration as settled:
                lengths: list[int] = settled.value
                break
            sure = [mean_log_confidence(out.frames) for out in self.run(prepare(tried)).outputs()]
        final = self.run(prepare([lengths]))
        for frame in final.frames():
            if streamer is not None:
                streamer(frame)
        output, canvas = final.outputs()[0], final.decoder.canvas.ids[0].tolist()
        text, gaps = parsed.text(canvas, lengths, tokenizer)
        written = [token for gap in parsed.gaps(canvas, lengths) for token in gap]
        return Filled(**{**vars(output), "text": text, "token_ids": written}, gaps=tuple(gaps))

    def prepare_fill(
        self, template: Template, seed: int | None = None, **options: Any
    ) -> Callable[[list[list[int]]], Prepared]:
        """Checks a template and options as for `fill`; gives what makes requests of lists of gap lengths."""
        return self.preparer.fill(template, seed, options)

    def decide(
        self, state: Any, questions: list[dict[str, Any]], form: str | None = None, threshold: float | None = None
    ) -> list[Decision]:
        """Answers questions about a state by distributions over their labels, without writing text.

        A model that denoises masks reads all answers off one canvas in one forward; one that reads from left to right
        is asked each question alone, and its answer is the likelihood of each label.

        Args:
            state: Text, or chat messages.
            questions: Dicts in the form of OpenAI's Decisions API: `type` predicate (yes or no), choice (with
                `choices`) or score (with `levels`, or a `range` of two whole numbers), `instructions`, and a `name`.
            form: Text of the answer with a slot [[name]] for each question, for a model that was taught a form of its
                own. It stands behind the state as that is, and instructions are not told. By default questions stand
                behind the state, and the answer has a line for each.
            threshold: Answers of at least this confidence are written into the canvas and the others are read again, as
                long as that makes one more of them so sure. None: all are read once.

        Raises:
            UnmaskError: for questions that are wrong, labels that cannot be told apart, and models without masks that
                do not read from left to right.
        """
        deciding = self.prepare_decisions(state, questions, form, threshold)
        canvases = next(deciding)
        while True:
            told: list[dict[int, Alternatives]] = []
            for first in range(0, len(canvases), READ_TOGETHER):
                run = self.run(self.preparer.read(canvases[first : first + READ_TOGETHER]))
                run.outputs()
                told += [row.logprobs for row in run.decoder.rows.values()]
            try:
                canvases = deciding.send(told)
            except StopIteration as decided:
                made: list[Decision] = decided.value
                return made

    def prepare_decisions(
        self, state: Any, questions: list[dict[str, Any]], form: str | None = None, threshold: float | None = None
    ) -> Deciding:
        """Checks what `decide` is given; gives what yields the canvases to read, and is sent what stands in them."""
        chats = self.chat_template is not None
        model = decisions.Asked(self.name, self.config, self._need_tokenizer(), self.encode, chats)
        return decisions.prepare(model, state, questions, form, threshold)

    def likelihood(
        self,
        texts: list[str] | None = None,
        method: str = "auto",
        samples: int = 128,
        seed: int = 0,
        batch: int = 8,
        progress: Callable[[float], None] = lambda share: None,
        *,
        given: list[Any] | None = None,
        ids: list[list[int]] | None = None,
        guidance: float = 0.0,
    ) -> list[Likelihood]:
        """Negative log-likelihood of each text in nats, behind what is given or the start of text, under the torch
        network; and whether greedy decoding would write it.

        Args:
            method: `exact` (AR; left-to-right chain rule on a masked model), `blockwise` (block diffusion), `nelbo`
                (upper bound by `samples` noised copies of a window, masked or of random tokens), `llada` (the bound as
                LLaDA's own evaluation draws it, for comparison); `auto` takes the one made for the model.
            given: A prompt for each text, of any kind that `generate` takes; it is not scored.
            ids: The texts' token ids, in place of `texts`.
            guidance: Of `llada`: classifier-free guidance away from what is likely without the prompt.

        Texts longer than the model reads are cut into windows: the first behind its prompt, each other behind the
        token before it. Raises UnmaskError for what does not fit the model.
        """
        from unmask.objectives.likelihood import score_texts, windows

        if (texts is None) == (ids is None):
            raise UnmaskError("likelihood scores texts or ids; give one of them")
        wanted: list[Any] = [*(texts or []), *(ids or [])]
        prompts = [None] * len(wanted) if given is None else given
        if len(prompts) != len(wanted):
            raise UnmaskError(f"{len(wanted)} texts have {len(prompts)} prompts given; give one for each")
        pairs = [self.encode_pair(*pair, start=method != "llada") for pair in zip(prompts, wanted, strict=True)]
        cut = [windows(text, before, self.config.max_length) for before, text in pairs]
        scores = score_texts(self.model, cut, method, samples, seed, batch, progress, guidance)
        plain = [text if isinstance(text, str) else self._text(text) for text in wanted]
        return [replace(one, num_bytes=len(text.encode())) for one, text in zip(scores, plain, strict=True)]

    def encode_pair(self, given: Any, text: str | list[int], start: bool = True) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of the text behind it, cut where the prompt's own ids end.

        given: None or empty: the start of a text, or its end where the model has none to begin with; with start False,
        nothing. Texts are encoded together with a text before them where that leaves its ids as they are.
        """
        name = self.name
        own = text if not isinstance(text, str) else encode_text(text, self.tokenizer, self.config, name)
        if own and not 0 <= min(own) <= max(own) < self.config.vocab_size:
            raise UnmaskError(f"a text holds an id outside the vocabulary of {self.config.vocab_size}")
        if given is None or len(given) == 0:
            first = self.config.bos_token_id
            if first is None and self.config.layout != "bidirectional":
                first = min(self.preparer.ends(self.defaults), default=None)
                if first is None:
                    raise UnmaskError(f"model '{name}' has no start of text to score from; give prompts (given)")
            return ([] if first is None or not start else [first]), own
        before = self.encode(given)[0]
        if isinstance(given, str) and isinstance(text, str) and text:
            whole = self.encode(given + text)[0]
            if whole[: len(before)] == before and len(whole) > len(before):
                return before, whole[len(before) :]
        return before, own

    def _text(self, ids: list[int]) -> str:
        return "" if self.tokenizer is None else self.tokenizer.decode(ids)

    def _check_length(self, length: int) -> None:
        if length > self.config.max_length:
            raise UnmaskError(f"{length} tokens are more than model '{self.name}' reads ({self.config.max_length})")

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UnmaskError(f"model '{self.name}' has no tokenizer.json; give it token ids instead of text")
        return self.tokenizer
