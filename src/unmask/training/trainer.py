"""The training loop, on Accelerate: one CPU, several processes or GPUs, the same curve.

Noise and row order are functions of (seed, step), the normaliser is summed over ranks before the
backward pass, and checkpoints hold all that a step reads, so a killed run continues its own curve.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor, nn

from unmask.checkpoints import weights as checkpoint
from unmask.checkpoints.folder import read_json, read_tokenizer
from unmask.errors import UnmaskError
from unmask.files import replacing, write_text
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer
from unmask.noise import Draws
from unmask.objectives.masked import AR, Noised, Objective, Rows
from unmask.objectives.score import SEDD, Told
from unmask.training.curve import draw_curve
from unmask.training.data import Corpus, read_documents
from unmask.training.dialogues import Dialogues
from unmask.training.progress import TrainingProgress
from unmask.training.recipe import Recipe, TrainingConfig
from unmask.training.tokenizer import EOS, MASK, train_tokenizer

VALIDATION_SEED = 2**31 - 1  # validation noise is the same at every check and in every run


class Stream(Protocol):
    """Where rows come from; a row is a function of (seed, index) alone."""

    @property
    def num_rows(self) -> int: ...

    def rows(self, first: int, count: int) -> Rows: ...


class Scored(nn.Module):
    """Network and objective as one module, so that DDP sees one forward per backward."""

    def __init__(self, network: Transformer, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, noised: Noised) -> Tensor:
        return self.objective.loss(self.network, noised)


def prepare_data(recipe: Recipe) -> tuple[Tokenizer | None, Stream, Stream | None]:
    """Tokenizer, training rows and held-out rows of a recipe."""
    data, policy = recipe.data, recipe.objective.eos
    if data.format == "dialogues":
        held = Dialogues(data.validation, data.length, 0) if data.validation else None
        return None, Dialogues(data.files, data.length, recipe.seed), held
    documents = read_documents(data.files, data)
    if data.tokenizer_file:
        tokenizer = read_tokenizer(Path(data.tokenizer_file))
    else:
        tokenizer = train_tokenizer(data.tokenizer, (d.prompt + d.text for d in documents), data.vocab_size)
    corpus = Corpus(documents, tokenizer, data, recipe.seed, policy)
    if not data.validation:
        return tokenizer, corpus, None
    held_out = replace(data, cut=0.0)
    return tokenizer, corpus, Corpus(read_documents(data.validation, held_out), tokenizer, held_out, 0, policy)


def model_config(recipe: Recipe, tokenizer: Tokenizer | None) -> ModelConfig:
    """The recipe's network with the tokenizer's vocabulary and special tokens."""
    if tokenizer is None:
        raise UnmaskError("data.format 'dialogues' holds the ids of a base model; use `unmask adapt`")
    eos = tokenizer.token_to_id(EOS)
    given: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_length": recipe.data.length,
        "shift": recipe.objective.shift,
        "mask_token_id": tokenizer.token_to_id(MASK),
        "eos_token_id": eos,
        "bos_token_id": eos,
        "pad_token_id": eos,
    }
    if isinstance(recipe.objective, Told):
        given |= _told(recipe.objective, recipe.model)
    elif given["mask_token_id"] is None and not isinstance(recipe.objective, AR):
        raise UnmaskError(f"the tokenizer has no '{MASK}' token, which masked diffusion needs")
    config = ModelConfig.from_dict({**given, **recipe.model}, "recipe: model")
    if config.layout == "canvas":
        raise UnmaskError("recipe: model.layout 'canvas' is loaded from checkpoints and not trained here")
    if config.max_length < recipe.data.length:
        raise UnmaskError(f"recipe: model.max_length {config.max_length} is less than data.length {recipe.data.length}")
    return config


def _told(objective: Told, model: dict[str, Any]) -> dict[str, Any]:
    """What the objective settles of a network that is told the noise; uniform noise has no mask."""
    if isinstance(objective, SEDD) and not model.get("time_condition_size"):
        raise UnmaskError("recipe: objective sedd needs model.time_condition_size: its scores depend on the noise")
    own: dict[str, Any] = {
        "corruption": objective.corruption,
        "noise_schedule": objective.schedule,
        "noise_range": objective.noise_range,
        "time_conditioned": bool(model.get("time_condition_size")),
    }
    if isinstance(objective, SEDD):
        own |= {"output": "log_score", "score_scaled": objective.corruption == "absorbing"}
    return own if objective.corruption == "absorbing" else {**own, "mask_token_id": None}


def make_optimizer(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon (Jordan et al. 2024) for hidden matrices beside AdamW for all else.

    Weight decay touches matrices only. Muon's updates are scaled to AdamW's size, so one rate serves both.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    muon = [
        p for n, p in named if config.optimizer == "muon" and p.dim() == 2 and "embedding" not in n and "head" not in n
    ]
    chosen = {id(p) for p in muon}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    if not muon:
        return [adamw]
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return [adamw, torch.optim.Muon(muon, **options)]  # type: ignore[arg-type]


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to final_learning_rate of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Trainer:
    """Runs a recipe in `folder`: checkpoints under it, the finished model in `model_folder`, `folder`/model."""

    def __init__(
        self, recipe: Recipe, folder: Path, console: Console | None = None, network: Transformer | None = None
    ) -> None:
        """network: one to train the parameters of that ask for a gradient; made by the recipe if None."""
        self.recipe, self.folder, self.config = recipe, folder, recipe.training
        self.model_folder = folder / "model"  # of the finished model
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        if self.config.batch_size % ranks:
            raise UnmaskError(f"training.batch_size {self.config.batch_size} does not divide over {ranks} processes")
        self.rows_here = self.config.batch_size // ranks
        self.first_here = rank * self.rows_here
        self.console = console or Console(quiet=rank > 0)
        self.tokenizer, self.corpus, self.held_out = prepare_data(recipe)
        self.network = network or Transformer(model_config(recipe, self.tokenizer)).initialise(recipe.seed)
        self.network.to(self.accelerator.device)
        self.model = self.accelerator.prepare_model(Scored(self.network, recipe.objective))
        self.optimizers = make_optimizer(self.network, self.config)
        self.trained = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        self.ema = {n: p.detach().clone() for n, p in self.trained.items()}
        self.best: dict[str, Tensor] = {}  # averaged weights of the best check so far
        self.step = 0
        self.history: list[dict[str, float]] = []

    def run(self) -> Path:
        """Trains to the last step and returns the folder of the finished model."""
        main = self.accelerator.is_main_process
        self._prepare_folder()
        self._resume()
        tokens_per_step = self.config.batch_size * self.recipe.data.length
        with TrainingProgress(self.folder, self.config.steps, tokens_per_step, self.console, main) as progress:
            progress.start_at(self.step)
            while self.step < self.config.steps:
                record = self._train_step()
                if self.held_out and (self.step % self.config.validate_every == 0 or self.step == self.config.steps):
                    record |= self._validate()
                    if record["validation"] <= min(r.get("validation", math.inf) for r in [*self.history, record]):
                        self.best = {n: t.clone() for n, t in self.ema.items()}
                self.history.append(record)
                progress.advance(record)
                if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                    self._save_checkpoint()
        if main:
            self._save_model()
        self.accelerator.wait_for_everyone()
        return self.model_folder

    def _prepare_folder(self) -> None:
        """Makes the folder and takes away what a killed run left half-written in it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnmaskError(f"cannot write to {self.folder}: {error.strerror}; choose another --output") from None
        if self.accelerator.is_main_process:
            for stale in self.folder.glob(".checkpoint-*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)

    def _train_step(self) -> dict[str, float]:
        rate, began = learning_rate(self.config, self.step), time.perf_counter()
        rows = self.corpus.rows(self.step * self.config.batch_size + self.first_here, self.rows_here)
        draws = Draws(self.recipe.seed, self.step, self.config.batch_size, self.first_here, self.rows_here)
        noised = self._corrupt(self.recipe.objective, rows, draws)
        normaliser = max(1.0, self._sum_over_ranks(noised.normaliser))
        count = noised.inputs.shape[0]
        micro = min(count, self.config.micro_batch_size or count)
        total = 0.0
        for start in range(0, count, micro):
            last = start + micro >= count
            with self.accelerator.no_sync(self.model) if not last else nullcontext():
                with self._autocast():
                    loss = self.model(noised.slice(start, start + micro))
                # DDP averages gradients over ranks; the loss is a sum over all of them
                self.accelerator.backward(loss * (self.accelerator.num_processes / normaliser))
            total += float(loss.detach())
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), self.config.clip_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self._update_ema()
        self.step += 1
        loss_value = self._sum_over_ranks(total) / normaliser
        if not math.isfinite(loss_value):
            raise UnmaskError(
                f"the loss is {loss_value} at step {self.step}; lower training.learning_rate and start again"
            )
        seconds = time.perf_counter() - began
        record = {"step": self.step, "loss": loss_value, "learning_rate": rate, "grad_norm": float(norm or 0.0)}
        return {**record, "seconds": seconds}

    def _corrupt(self, objective: Objective, rows: Rows, draws: Draws) -> Noised:
        config = self.network.config
        return objective.corrupt(rows.to(self.accelerator.device), draws, config.mask_token_id, config.vocab_size)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _sum_over_ranks(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        reduced = self.accelerator.reduce(tensor, "sum")
        assert isinstance(reduced, Tensor)
        return float(reduced)

    def _update_ema(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))  # follows closely at first
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.ema[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Loss per token of the averaged weights on fixed held-out rows with fixed noise (nats), and what
        else the objective reports of them."""
        assert self.held_out is not None
        count = min(self.config.validation_rows, self.held_out.num_rows)
        current = {n: p.detach().clone() for n, p in self.trained.items()}
        self._load_parameters(self.ema)
        rows, draws = self.held_out.rows(0, count), Draws(VALIDATION_SEED, 0, count, 0, count)
        objective = self.recipe.objective.held_out()
        noised = self._corrupt(objective, rows, draws)
        total, micro = 0.0, max(1, self.config.micro_batch_size or 8)
        sums: dict[str, float] = {}
        with self._autocast():
            for start in range(0, noised.inputs.shape[0], micro):
                part = noised.slice(start, start + micro)
                total += float(objective.loss(self.network, part))
                for name, value in objective.report(self.network, part).items():
                    sums[name] = sums.get(name, 0.0) + value
        self._load_parameters(current)
        groups = sums.pop("count", 1.0)
        return {"validation": total / noised.normaliser, **{name: value / groups for name, value in sums.items()}}

    @torch.no_grad()
    def _load_parameters(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            parameter.copy_(values[name])

    def _save_checkpoint(self) -> None:
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        names = {id(p): n for n, p in self.trained.items()}
        moments: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    moments[f"{names[id(parameter)]}:{key}"] = torch.as_tensor(value)
        with replacing(self.folder / f"checkpoint-{self.step:07d}") as temporary:
            checkpoint.write_tensors(temporary / "weights.safetensors", dict(self.trained))
            checkpoint.write_tensors(temporary / "average.safetensors", self.ema)
            checkpoint.write_tensors(temporary / "optimizer.safetensors", moments)
            if self.best:
                checkpoint.write_tensors(temporary / "best.safetensors", self.best)
            state = {"step": self.step, "history": self.history, "identity": self._identity()}
            write_text(temporary / "state.json", json.dumps(state))
        for old in self._checkpoints()[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*"))

    @torch.no_grad()
    def _resume(self) -> None:
        """Continues from the newest checkpoint, if there is one."""
        found = self._checkpoints()
        if not found:
            return
        folder = found[-1]
        weights = checkpoint.read_tensors(folder / "weights.safetensors")
        average = checkpoint.read_tensors(folder / "average.safetensors")
        moments = checkpoint.read_tensors(folder / "optimizer.safetensors")
        parameters = self.trained
        if {n: p.shape for n, p in parameters.items()} != {n: t.shape for n, t in weights.items()}:
            raise UnmaskError(f"{folder} is of another network than this recipe; choose another --output or remove it")
        self._load_parameters(weights)
        self.ema = {n: t.to(self.accelerator.device) for n, t in average.items()}
        if (folder / "best.safetensors").is_file():
            best = checkpoint.read_tensors(folder / "best.safetensors")
            self.best = {n: t.to(self.accelerator.device) for n, t in best.items()}
        for optimizer in self.optimizers:
            owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in parameters.items():
                if id(parameter) in owned:
                    prefix = f"{name}:"
                    state = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
                    if state and ("momentum_buffer" in state) != isinstance(optimizer, torch.optim.Muon):
                        raise UnmaskError(f"{folder} is of another optimizer than this recipe; choose another --output")
                    optimizer.state[parameter] = {k: v.to(self.accelerator.device) for k, v in state.items()}
        saved = read_json(folder / "state.json")
        if not isinstance(saved.get("step"), int) or not isinstance(saved.get("history"), list):
            raise UnmaskError(f"{folder / 'state.json'} lacks step and history; remove {folder} to go on without it")
        if saved.get("identity", self._identity()) != self._identity():
            raise UnmaskError(f"{folder} was made with another objective, data or seed; choose another --output")
        self.step, self.history = saved["step"], saved["history"]
        self.console.print(f"continuing from step {self.step} in {folder}")

    def _identity(self) -> str:
        """What may not change when a run goes on; how long and how fast it trains may."""
        return repr((self.recipe.objective, self.network.config, self.recipe.data, self.recipe.seed))

    def _save_model(self) -> None:
        """The averaged weights in bfloat16 as a checkpoint folder, with the loss curve beside them: those of
        the best check on held-out rows, or the last where nothing is held out."""
        weights = {n: t.to(torch.bfloat16) for n, t in (self.best or self.ema).items()}
        details = {"recipe": self.recipe.name}  # one key: the order of several would vary from run to run
        folder = self.model_folder
        checkpoint.save(folder, self.network.config.to_dict(), weights, self.tokenizer, details)
        write_text(folder / "curve.jsonl", "".join(json.dumps(record) + "\n" for record in self.history))
        draw_curve(self.history, folder / "curve.png", f"{self.recipe.name}: {type(self.recipe.objective).__name__}")
