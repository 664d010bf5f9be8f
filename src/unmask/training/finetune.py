"""Fine-tuning of anything that loads: all weights or LoRA, autoregressive or diffusion, from one into the other."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from unmask.checkpoints import lora
from unmask.checkpoints.folder import CONFIG, GENERATION, write_json
from unmask.checkpoints.open import Checkpoint
from unmask.checkpoints.save import checkpoint_at
from unmask.checkpoints.weights import weight_table
from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.layout import BEHIND_TEXT, GROUPED
from unmask.lm import DiffusionLM
from unmask.models.transformer import Transformer
from unmask.objectives.distill import Distilled
from unmask.objectives.objective import Objective
from unmask.training.documents import Document, Documents
from unmask.training.framing import Framing
from unmask.training.optimizer import put
from unmask.training.precision import choose_precision
from unmask.training.recipe import FinetuneRecipe
from unmask.training.trainer import Material, Trainer

SHOWN = 3  # examples of a dry run


@dataclass
class Base:
    """A loaded model that is about to be trained on."""

    lm: DiffusionLM
    objective: Objective  # with the head shift settled
    changes: dict[str, Any]  # fields of its config that the objective changes
    paths: list[str]  # of projections with LoRA

    @property
    def network(self) -> Transformer:
        return self.lm.model


def open_base(recipe: FinetuneRecipe) -> Base:
    """Loads the base as the objective reads it, its parameters to train asking for gradients; raises UnmaskError
    where it cannot be trained so."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, _ = choose_precision(recipe.training.precision, torch.device(device))
    device = "cpu" if recipe.training.shard else device  # the trainer moves it, a block at a time
    frozen = recipe.lora.rank > 0 and dtype == torch.bfloat16
    loaded = Checkpoint.open(recipe.base, device, "bfloat16" if frozen else "float32")
    goes_on = loaded.folder.is_lora and recipe.lora.rank > 0
    network = loaded.whole.network() if goes_on else loaded.network()
    lm = DiffusionLM(network, loaded.tokenizer, loaded.defaults, loaded.name, loaded)
    lm.config = network.config = loaded.config
    objective, changes = _settle(recipe, lm)
    network.config = replace(network.config, **changes)
    lm.config = network.config
    network.train().requires_grad_(True)
    paths: list[str] = []
    if goes_on:
        paths = _go_on(recipe, loaded, network)
    elif recipe.lora.rank:
        paths = lora.attach(network, recipe.lora, recipe.seed)
    if not recipe.lora.merge:
        lora.peft_names(paths, _table(lm))
    return Base(lm, objective, changes, paths)


def _go_on(recipe: FinetuneRecipe, loaded: Checkpoint, network: Transformer) -> list[str]:
    """Attaches the base's own adapter, to be trained on; UnmaskError where the recipe asks for another."""
    config, tensors = loaded.lora()
    paths = lora.put(network, config, tensors)
    wanted = [path for path in paths if any(path == t or path.endswith(f".{t}") for t in recipe.lora.targets)]
    own, asked = ((c.rank, c.alpha, c.rslora) for c in (config, recipe.lora))
    if own != asked or wanted != paths:
        raise UnmaskError(
            f"base '{recipe.base}' is a LoRA adapter of rank {config.rank}, alpha {config.alpha:g}, rslora "
            f"{config.rslora}, which goes on as it is: say so in `lora`; or merge it first, by `save_pretrained`"
        )
    return paths


def _table(lm: DiffusionLM) -> dict[str, list[str]]:
    """Names of the base's own layout and ours."""
    family = None if lm.loaded is None else lm.loaded.whole.family
    return weight_table(lm.model, family)


def _settle(recipe: FinetuneRecipe, lm: DiffusionLM) -> tuple[Objective, dict[str, Any]]:
    """The objective with its head shift, and what it changes about the base's config."""
    config = lm.config
    objective = recipe.objective
    try:
        settled = objective.network(asdict(config))
    except ValueError as error:
        raise UnmaskError(f"recipe: objective {error}; base '{recipe.base}' was not made for it") from None
    wanted = settled["layout"]
    if config.layout in GROUPED and config.layout != wanted:
        raise UnmaskError(f"base '{recipe.base}' has layout '{config.layout}', which is not fine-tuned; take its base")
    if config.max_length < recipe.data.length:
        raise UnmaskError(
            f"base '{recipe.base}' reads {config.max_length} tokens, less than data.length {recipe.data.length}"
        )
    if not recipe.shift_is_given and wanted not in BEHIND_TEXT:
        if config.layout == "causal" != wanted:
            raise UnmaskError(
                f"base '{recipe.base}' is autoregressive: say objective.shift: true (its head goes on scoring the next "
                "position) or false (it learns to score its own)"
            )
        objective = replace(objective, shift=config.shift)
        settled["shift"] = config.shift
    mask = settled.pop("mask_token_id", config.mask_token_id)
    readings = {"layout", "block_length", "shift", "in_place"}
    for name in settled.keys() - readings:
        if getattr(config, name) != settled[name]:
            raise UnmaskError(
                f"base '{recipe.base}' has {name} {getattr(config, name)!r}, the objective needs {settled[name]!r}"
            )
    if config.layout != "causal" == wanted:
        raise UnmaskError(
            f"base '{recipe.base}' is a diffusion model, which objective ar would unmake; use mdlm, bd3lm"
        )
    if mask is None and objective.needs_mask and config.corruption == "absorbing":
        raise UnmaskError(f"base '{recipe.base}' has no mask token, nor a control token to spare for one")
    block = settled.get("block_length", 0)
    has_blocks = wanted in ("block_causal", *BEHIND_TEXT)
    reading = {"in_place": False, **settled, "block_length": block if has_blocks else 0}
    return objective, {name: reading[name] for name in readings if reading[name] != getattr(config, name)}


SAME = ("vocab_size", "mask_token_id", "corruption", "output", "layout", "block_length")  # of student and teacher


def open_teacher(recipe: FinetuneRecipe, base: Base) -> Transformer | None:
    """The frozen teacher of an objective that has one: the base as the run begins, or what the recipe names."""
    if not base.objective.needs_teacher:
        if recipe.teacher:
            raise UnmaskError("recipe: this objective has no teacher; leave `teacher` out")
        return None
    if not recipe.teacher:
        return copy.deepcopy(base.network).requires_grad_(False).eval()
    device = base.network.embedding.weight.device.type
    lm = DiffusionLM.from_pretrained(recipe.teacher, device, "float32", backend="torch")
    wanted = {name: getattr(base.network.config, name) for name in SAME}
    if isinstance(base.objective, Distilled) and base.objective.reads == "clean":
        wanted |= {"layout": "causal", "block_length": 0}
    for name, value in wanted.items():
        if getattr(lm.config, name) != value:
            raise UnmaskError(
                f"teacher '{recipe.teacher}' has {name} {getattr(lm.config, name)!r}, where base '{recipe.base}' and "
                f"the objective need {value!r}; take a teacher of the same kind and tokens"
            )
    ours, theirs = (None if one.tokenizer is None else one.tokenizer.get_vocab() for one in (base.lm, lm))
    if ours != theirs:
        raise UnmaskError(f"teacher '{recipe.teacher}' has another vocabulary than base '{recipe.base}'; take its own")
    return lm.model.requires_grad_(False).eval()


def make_framing(recipe: FinetuneRecipe, base: Base) -> Framing:
    """Documents as this base reads them, with its own template, start and end."""
    lm = base.lm
    if lm.tokenizer is None:
        raise UnmaskError(f"base '{recipe.base}' has no tokenizer.json, so text cannot be put into tokens")
    if lm.config.eos_token_id is None:
        raise UnmaskError(f"base '{recipe.base}' names no end of text; add eos_token_id to its config.json")
    return Framing(
        tokenizer=lm.tokenizer,
        eos=lm.config.eos_token_id,
        mask=lm.config.mask_token_id,
        template=lm.templates or None,
        special_tokens=lm.special_tokens,
        model=f"base '{recipe.base}'",
        answer_by_answer=recipe.data.answer_block > 0,
    )


class Finetuner(Trainer):
    """Trains a loaded model on; its finished model is whole in its base's own layout, a LoRA adapter in PEFT's."""

    def __init__(self, recipe: FinetuneRecipe, folder: Path, console: Console | None = None) -> None:
        self.asked_for = recipe
        self.base = base = open_base(recipe)
        self.lora = recipe.lora
        self.base_name = recipe.base
        self.asked = list(Documents(recipe.data.validation, recipe.data)) if recipe.training.samples else []
        framing = make_framing(recipe, base)
        material = Material.of(recipe, base.network, framing, open_teacher(recipe, base))
        super().__init__(replace(recipe, objective=base.objective), folder, console, material)
        self.decode = self._decoder(base)

    def _decoder(self, base: Base) -> DiffusionLM:
        return DiffusionLM(base.network, base.lm.tokenizer, self._defaults(), base.lm.name, base.lm.loaded)

    def _defaults(self) -> Any:
        """The base's decoding where its kind stays the same, else none but its ends of text; the recipe's over them."""
        defaults = self.base.lm.defaults
        ends = {"eos_token_ids": list(defaults.eos_token_ids)}
        values = {**(ends if self.base.changes else asdict(defaults)), **self.recipe.decoding}
        return type(defaults).read(values, "recipe: decoding")

    def dry_run(self) -> None:
        """Says what a run would do: rows, tokens, memory, steps, and examples with what is learned in brackets."""
        print = self.console.print
        tokens = self.corpus.tokens
        trained = sum(p.numel() for p in self.trained.values())
        total = self.network.num_parameters()
        steps = self.config.steps
        epochs = steps * self.config.batch_size / max(1, self.corpus.num_rows)
        held = self.held_out.num_rows if self.held_out else 0
        gigabytes = (sum(p.numel() * p.element_size() for p in self.network.parameters()) + 16 * trained) / 1e9
        lines = [
            f"base {self.base_name}, objective {self.recipe.objective}",
            f"documents {tokens.documents:,}, tokens {len(tokens.ids):,}, learned {int(tokens.learned.sum()):,}",
            f"rows {self.corpus.num_rows:,} of {self.recipe.data.length} tokens, held out {held:,}",
            f"steps {steps:,} of {self.config.batch_size} rows: {epochs:.2f} epochs",
            f"parameters {total:,}, trained {trained:,} ({trained / total:.1%})",
            f"memory {gigabytes:.2f} GB for weights, gradients, averages and moments, activations apart",
        ]
        for line in lines:
            print(line, highlight=False, markup=False)
        for number in range(min(SHOWN, tokens.documents)):
            print(f"--- example {number + 1}, what is learned between ⟦ and ⟧", markup=False)
            print(shown_example(self.tokenizer, *tokens.document(number)), highlight=False, markup=False)

    def _validate(self) -> dict[str, float]:
        record = super()._validate()
        asked = [d for d in self.asked if d.prompt or d.messages][: self.config.samples]
        if not asked:
            return record
        right = 0
        self.network.eval()
        with self.ema.in_place(), torch.no_grad():
            for number, document in enumerate(asked):
                prompt, expected = question(document)
                longest = max(8, self.recipe.data.length // 2)
                with self._interruptible():
                    written = self.decode.generate(prompt, longest, temperature=0.0, seed=0).text
                right += written.strip() == expected.strip()
                if number == 0:
                    self.console.print(
                        f"sample at step {self.step}: {written.strip()!r}", highlight=False, markup=False
                    )
        self.network.train()
        return {**record, "exact_match": right / len(asked)}

    def _describe(self, folder: Path) -> None:
        """A state of this run is no model: what its base has is not in it."""

    def _save_model(self, finished: dict[str, Tensor]) -> None:
        whole = self.lora.merge or not self.lora.rank
        if self.lora.rank:
            names: dict[str, str] = {}
            try:
                names = lora.peft_names(self.base.paths, _table(self.base.lm))
            except UnmaskError:  # PEFT has no name for projections that are joined
                if not whole:
                    raise
            if names:
                self._save_adapter(self.folder / "adapter" if whole else self.model_folder, finished, names)
        if whole:
            self._save_whole(finished)
        write_text(self.model_folder / "README.md", self.card())
        self._save_curve(self.model_folder, self.recipe.name)

    def _save_adapter(self, folder: Path, finished: dict[str, Tensor], names: dict[str, str]) -> None:
        """The adapter in PEFT's layout; beside it how the base is read with it, where that is another way."""
        loaded = cast(Checkpoint, self.base.lm.loaded)
        with checkpoint_at(folder) as made:
            lora.save_peft(made, finished, self.lora, names, loaded.base_name or self.base_name)
            if self.network.config != loaded.whole.config:
                write_json(made / CONFIG, self.network.config.to_dict())
                write_json(made / GENERATION, asdict(self._defaults()))

    def _save_whole(self, finished: dict[str, Tensor]) -> None:
        """The base with the finished weights; a network that is split is loaded anew for it."""
        base = open_base(self.asked_for) if self.config.shard else self.base
        network = base.network
        put({name: p for name, p in network.named_parameters() if name in finished}, finished)
        if self.lora.rank:
            lora.merge(network, base.paths, self.lora)
        network.to(torch.bfloat16).eval()
        self._decoder(base).save_pretrained(self.model_folder)

    def card(self) -> str:
        """The model card: what it was made from and how, and its scores."""
        checks = [record for record in self.history if "validation" in record]
        kept = self.history[-1]
        if checks and self.config.keep == "best":
            kept = min(checks, key=lambda record: record["validation"])
        scores = {k: v for k, v in kept.items() if k not in ("learning_rate", "grad_norm", "seconds")}
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in scores.items())
        recipe = self.recipe
        rank = self.lora.rank
        way = f"LoRA of rank {rank} on {len(self.base.paths)} projections" if rank else "all weights"
        return (
            f"---\nbase_model: {self.base_name}\n---\n# {recipe.name}\n\n"
            f"Fine-tuned from `{self.base_name}` ({way}) by `unmask finetune`.\n\n"
            f"- Data: {', '.join(recipe.data.files)}\n- Objective: `{recipe.objective}`\n"
            f"- Training: `{recipe.training}`\n- Seed: {recipe.seed}\n\n| figure | value |\n|---|---|\n{rows}\n"
        )


def question(document: Document) -> tuple[Any, str]:
    """What is asked of a model for a document, and the answer that it should give."""
    if not document.messages:
        return document.prompt, document.text
    last = max(i for i, message in enumerate(document.messages) if message["role"] == "assistant")
    return list(document.messages[:last]), str(document.messages[last].get("content") or "")


def shown_example(tokenizer: Any, ids: Any, learned: Any) -> str:
    """A document's text, learned stretches in brackets."""
    out = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learned[end] != learned[start]:
            text = tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=False)
            out.append(f"⟦{text}⟧" if learned[start] else text)
            start = end
    return "".join(out)


def finetune(recipe: FinetuneRecipe, output: Path, dry_run: bool = False, console: Console | None = None) -> Path:
    """Runs a recipe, or only says what it would do; returns the folder of the finished model."""
    trainer = Finetuner(recipe, output, console)
    if dry_run:
        trainer.dry_run()
        return trainer.model_folder
    return trainer.run()
