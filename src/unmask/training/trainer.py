"""The training loop, on Accelerate: one CPU, several processes or GPUs, the same curve.

Noise and row order are functions of (seed, step), the normaliser is summed over ranks before the
backward pass, and checkpoints hold all that a step reads, so a killed run continues its own curve.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from unmask.checkpoints.folder import GENERATION, write_json
from unmask.checkpoints.safetensors import WEIGHTS, write_tensors
from unmask.checkpoints.save import checkpoint_at, describe_checkpoint
from unmask.checkpoints.tokens import read_tokenizer
from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.models.network import fresh
from unmask.models.transformer import Transformer
from unmask.objectives.draws import Draws
from unmask.objectives.masked import Curriculum
from unmask.objectives.objective import Noised, Objective, Rows
from unmask.training.checkpointer import Checkpointer, Progress
from unmask.training.data import DataConfig, Stream, make_rows
from unmask.training.documents import Documents
from unmask.training.framing import Framing
from unmask.training.freed import keep_freed_memory
from unmask.training.optimizer import Ema, learning_rate, make_optimizers, put
from unmask.training.precision import choose_precision, native_bf16
from unmask.training.progress import TrainingProgress, plot_loss
from unmask.training.recipe import Recipe, TrainRecipe
from unmask.training.shard import shard, whole
from unmask.training.token_file import tokenise
from unmask.training.tokenizer import MASK, begin_with_eos, special_tokens, train_tokenizer

VALIDATION_SEED = 2**31 - 1  # validation noise is the same at every check and in every run
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
PATIENCE = 2.0  # seconds after a signal within which others are taken for the same request


@dataclass
class Material:
    """What a run trains and on what: parameters of `network` that ask for a gradient are trained."""

    network: Transformer
    rows: Stream
    held_out: Stream | None = None
    tokenizer: Tokenizer | None = None
    teacher: Transformer | None = None  # frozen
    fingerprint: str = ""  # of the data, where it is known
    held_fingerprint: str = ""  # of the held-out data

    @staticmethod
    def of(recipe: Recipe, network: Transformer, framing: Framing, teacher: Transformer | None = None) -> Material:
        """The recipe's corpora, put into tokens by the framing."""
        data = recipe.data
        if data.format == "canvases":  # each a row
            data = replace(data, packed=False, whole=False, overlong="cut")

        def rows(files: tuple[str, ...], data: DataConfig, seed: int) -> Stream:
            tokens = tokenise(Documents(files, data), framing)
            return make_rows(tokens, data, seed, recipe.objective.eos, framing.eos)

        # of held-out text what fits is enough
        held = replace(data, cut=0.0, overlong="drop" if data.overlong == "refuse" else data.overlong)
        return Material(
            network=network,
            rows=rows(data.files, data, recipe.seed),
            held_out=rows(data.validation, held, 0) if data.validation else None,
            tokenizer=framing.tokenizer,
            teacher=teacher,
            fingerprint=Documents(data.files, data).fingerprint(),
            held_fingerprint=Documents(data.validation, data).fingerprint(),
        )


class Scored(nn.Module):
    """An objective's loss as a module, so that DDP and FSDP see one forward per backward."""

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, objective: Objective, noised: Noised) -> Tensor:
        return objective.loss(self.network, noised)


def make_material(recipe: TrainRecipe) -> Material:
    """Tokenizer, rows and a fresh network of a recipe that trains from nothing."""
    data = recipe.data
    if data.format == "dialogues":
        raise UnmaskError("data.format 'dialogues' holds the ids of a base model; use `unmask adapt`")
    canvases = data.format == "canvases"
    if data.tokenizer_file:
        tokenizer = read_tokenizer(Path(data.tokenizer_file))
    else:
        texts = (d.prompt + d.text for d in Documents(data.files, data))
        tokenizer = train_tokenizer(data.tokenizer, islice(texts, 1000 if canvases else None), data.vocab_size)
        if not canvases:
            begin_with_eos(tokenizer)
    special = special_tokens(tokenizer, data, recipe.model)
    config = recipe.network_config(special)
    if config.mask_token_id is None and recipe.objective.needs_mask and config.corruption == "absorbing":
        raise UnmaskError(
            f"the tokenizer has no '{MASK}' token, which masked diffusion needs; name its own as data.mask_token"
        )
    framing = Framing(tokenizer, eos=special["eos_token_id"], mask=special["mask_token_id"])
    return Material.of(recipe, fresh(config, recipe.seed), framing)


class Trainer:
    """Runs a recipe in `folder`: checkpoints under it, the finished model in `model_folder`, `folder`/model."""

    def __init__(
        self, recipe: Recipe, folder: Path, console: Console | None = None, material: Material | None = None
    ) -> None:
        """material: made by the recipe if None."""
        self.recipe = recipe
        self.folder = folder
        self.config = recipe.training
        self.model_folder = folder / "model"  # of the finished model
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.device = self.accelerator.device
        ranks = self.accelerator.num_processes
        rank = self.accelerator.process_index
        if self.config.batch_size % ranks:
            raise UnmaskError(f"training.batch_size {self.config.batch_size} does not divide over {ranks} processes")
        self.rows_here = self.config.batch_size // ranks
        self.first_here = rank * self.rows_here
        self.console = console or Console(quiet=rank > 0)
        self.dtype, chosen = choose_precision(self.config.precision, self.device)
        self.console.print(chosen, highlight=False)
        material = material or make_material(cast(TrainRecipe, recipe))
        for rows in (material.rows, material.held_out):
            if rows and rows.note:
                self.console.print(f"data: {rows.note}", highlight=False)
        self.tokenizer = material.tokenizer
        self.corpus = material.rows
        self.held_out = material.held_out
        self.teacher = material.teacher
        if self.config.shard and ranks == 1:
            raise UnmaskError(
                "training.shard splits the network over processes, and there is one: start it by `torchrun "
                "--nproc-per-node N -m unmask ...`, or leave it out"
            )
        self.network = material.network if self.config.shard else material.network.to(self.device)
        for block in self.network.blocks:
            if self.config.gradient_checkpointing:
                block.forward = partial(recompute, block.forward, use_reentrant=False)
            if self.config.compile:
                block.compile()
        self.scored: nn.Module = Scored(self.network)
        if self.config.shard:
            shard(self.scored, self.network, ranks, self.device)
        self.model = self.scored if self.config.shard else self.accelerator.prepare_model(self.scored)
        iterations = torch.bfloat16 if native_bf16(self.device) else torch.float32
        self.optimizers = make_optimizers(self.network, self.config, iterations)
        self.trained = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        self.ema = Ema(self.trained, self.config.ema)
        self.progress = Progress()
        self.stopped = StopSignal()
        identity = {
            # without an empty curriculum: runs begun before there were any go on
            "objective": repr(recipe.objective).replace(f", curriculum={Curriculum()}", ""),
            "network": repr(self.network.config),
            "data": f"{recipe.data} {material.fingerprint}".strip(),
            "held-out data": material.held_fingerprint,
            "seed": str(recipe.seed),
        }
        self.checkpointer = Checkpointer(folder, self.ema, self.optimizers, identity, self._describe, rank == 0)

    @property
    def step(self) -> int:
        return self.progress.step

    @property
    def history(self) -> list[dict[str, float]]:
        return self.progress.history

    def run(self) -> Path:
        """Trains to the last step and returns the folder of the finished model.

        A SIGTERM, a Ctrl-C or a terminal that closes saves a checkpoint of the last whole step and leaves with 128 and
        the signal's number; one that comes while the finished model is written lets it be finished.
        """
        main = self.accelerator.is_main_process
        if self.device.type == "cpu":
            keep_freed_memory()
        if main:
            self.checkpointer.claim()
        try:
            self.accelerator.wait_for_everyone()
            self.progress = self.checkpointer.restore(self.device, self.console.print)
            self._renew_teacher()
            with self.stopped:
                self._train()
                weights = self.finished_weights()
                if main:
                    self._save_model(weights)
                self.accelerator.wait_for_everyone()
        finally:
            self.checkpointer.release()
        return self.model_folder

    def _train(self) -> None:
        steps = self.config.steps
        tokens_per_step = self.config.batch_size * self.recipe.data.length
        main = self.accelerator.is_main_process
        with TrainingProgress(self.folder, steps, self.step, tokens_per_step, self.console, main) as shown:
            saved = self.step
            while True:
                with suppress(Stopped):
                    self._check()
                stopped = self._stopping()
                if self.step > saved and (stopped or self.step % self.config.save_every == 0 or self.step == steps):
                    self._save_checkpoint()
                    saved = self.step
                if stopped:
                    where = f", saved in {self.checkpointer.path(saved)}" if saved else ""
                    self.console.print(f"stopped at step {saved}{where}; start again to go on")
                    raise SystemExit(128 + stopped)
                if self.history:
                    shown.show(self.history[-1])
                if self.step == steps:
                    return
                with suppress(Stopped):
                    self.history.append(self._train_step())

    def _check(self) -> None:
        """Validates after the steps for which that is due; where a stop cuts it short, the run that goes on does it."""
        due = self.step % self.config.validate_every == 0 or self.step == self.config.steps
        if not self.held_out or not self.history or not due or "validation" in self.history[-1]:
            return
        record = self._validate()
        self.history[-1] |= record
        at = self.recipe.objective.held_out().at  # losses of other rounds do not compare
        rivals = [r for r in self.history if at(int(r["step"]) - 1) == at(self.step - 1)]
        if record["validation"] <= min(r.get("validation", math.inf) for r in rivals):
            self.progress.best = {n: t.clone() for n, t in self.ema.values.items()}

    def _stopping(self) -> int:
        """The signal with which this process, or another of the run, was told to stop; 0 for none."""
        (signals,) = self._sum_over_ranks(float(self.stopped.number))
        return int(signals) and (self.stopped.number or int(signal.SIGTERM))

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Work that is done again where a stop cuts it short: Stopped before it, or where it fails for the signal took
        with it what it needs, such as a compiler."""
        if self._stopping():
            raise Stopped
        try:
            yield
        except Exception:
            if self.accelerator.num_processes == 1 and self.stopped.number:
                raise Stopped from None
            raise

    def _save_checkpoint(self) -> None:
        """Saves where this process has a part in it; where the disk is full, all processes end."""
        self.accelerator.wait_for_everyone()
        failure: UnmaskError | None = None
        try:
            if self.accelerator.is_main_process or self.config.shard:
                self.checkpointer.save(self.progress)
        except UnmaskError as error:
            failure = error
        if any(self._sum_over_ranks(float(failure is not None))):
            raise failure or UnmaskError("the first process could not save")

    def _renew_teacher(self) -> None:
        """Makes the average of the student as this round began the teacher."""
        if self.progress.teacher:
            self.teacher = copy.deepcopy(self.network).requires_grad_(False).eval()
            put({n: p for n, p in self.teacher.named_parameters() if n in self.trained}, self.progress.teacher)

    def _train_step(self) -> dict[str, float]:
        objective = self.recipe.objective.at(self.step)
        at = self.recipe.objective.held_out().at
        if self.teacher is not None and self.step and at(self.step) != at(self.step - 1):
            self.progress.teacher = {n: t.clone() for n, t in self.ema.values.items()}
            self.progress.best = {}
            self._renew_teacher()
        rate = learning_rate(self.config, self.step)
        began = time.perf_counter()
        rows = self.corpus.rows(self.step * self.config.batch_size + self.first_here, self.rows_here)
        draws = Draws(
            seed=self.recipe.seed,
            step=self.step,
            total_rows=self.config.batch_size,
            first_row=self.first_here,
            rows=self.rows_here,
        )
        noised = self._corrupt(objective, rows, draws)
        normaliser = max(1.0, self._sum_over_ranks(noised.normaliser)[0])
        count = noised.inputs.shape[0]
        micro = min(count, self.config.micro_batch_size or count)
        total = 0.0
        for start in range(0, count, micro):
            last = start + micro >= count
            with self._interruptible(), self.accelerator.no_sync(self.model) if not last else nullcontext():
                part = noised.slice(start, start + micro)
                with self._autocast():
                    loss = self.model(objective, self._taught(objective, part))
                # DDP and FSDP average gradients over ranks; the loss is a sum over all of them
                self.accelerator.backward(loss * (self.accelerator.num_processes / normaliser))
            total += float(loss.detach())
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), self.config.clip_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.ema.update(self.step)
        self.progress.step += 1
        (summed,) = self._sum_over_ranks(total)
        if not math.isfinite(summed):
            raise UnmaskError(
                f"the loss is {summed / normaliser} at step {self.step}; lower training.learning_rate and start again"
            )
        return {
            "step": self.step,
            "loss": summed / normaliser,
            "learning_rate": rate,
            "grad_norm": 0.0 if norm is None else float(whole(norm)),
            "seconds": time.perf_counter() - began,
        }

    def _corrupt(self, objective: Objective, rows: Rows, draws: Draws) -> Noised:
        config = self.network.config
        return objective.corrupt(rows.to(self.device), draws, config.mask_token_id, config.vocab_size)

    @torch.no_grad()
    def _taught(self, objective: Objective, noised: Noised) -> Noised:
        """The batch with what the teacher says of it, where there is one."""
        return noised if self.teacher is None else objective.teach(self.teacher, noised)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _sum_over_ranks(self, *values: float) -> list[float]:
        if self.accelerator.num_processes == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        return cast(Tensor, self.accelerator.reduce(tensor, "sum")).tolist()

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Loss per token of the averaged weights on fixed held-out rows with fixed noise (nats), and what
        else the objective reports of them."""
        held_out = self.held_out
        assert held_out is not None
        count = min(self.config.validation_rows, held_out.num_rows)
        rows = held_out.rows(0, count)
        draws = Draws(seed=VALIDATION_SEED, step=0, total_rows=count, first_row=0, rows=count)
        objective = self.recipe.objective.held_out().at(self.step - 1)
        noised = self._corrupt(objective, rows, draws)
        micro = max(1, self.config.micro_batch_size or 8)
        total = 0.0
        sums: dict[str, float] = {}
        with self.ema.in_place(), self._autocast():
            for start in range(0, noised.inputs.shape[0], micro):
                with self._interruptible():
                    part = self._taught(objective, noised.slice(start, start + micro))
                    total += float(self.scored(objective, part))
                    for name, value in objective.report(self.network, part).items():
                        sums[name] = sums.get(name, 0.0) + value
        groups = sums.pop("count", 1.0)
        return {"validation": total / noised.normaliser, **{name: value / groups for name, value in sums.items()}}

    def finished_weights(self) -> dict[str, Tensor]:
        """The averaged weights that the recipe keeps, the last where nothing is held out; where they are split, the
        first process gets all of them in its memory and the others none."""
        weights = (self.config.keep == "best" and self.progress.best) or self.ema.values
        if not self.config.shard:
            return weights
        main = self.accelerator.is_main_process
        gathered = ((name, whole(tensor)) for name, tensor in weights.items())
        return {name: tensor.cpu() for name, tensor in gathered if main}

    def _save_model(self, finished: dict[str, Tensor]) -> None:
        """The finished weights in bfloat16 as a checkpoint folder, with the loss curve beside them."""
        weights = {n: t.to(torch.bfloat16) for n, t in finished.items()}
        details = {"recipe": self.recipe.name}  # one key: the order of several would vary from run to run
        with checkpoint_at(self.model_folder) as folder:
            write_tensors(folder / WEIGHTS, weights, details)
            self._describe(folder)
            self._save_curve(folder, f"{self.recipe.name}: {type(self.recipe.objective).__name__}")

    def _describe(self, folder: Path) -> None:
        """Everything of a model's folder but its weights."""
        describe_checkpoint(folder, self.network.config.to_dict(), self.tokenizer)
        # how it decodes where nobody says: by the objective for free text, greedily for answers
        own = self.recipe.objective.decoding() if self.corpus.tokens.learned.all() else {}
        write_json(folder / GENERATION, {**own, **self.recipe.decoding})

    def _save_curve(self, folder: Path, title: str) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        write_text(folder / "curve.jsonl", lines)
        plot_loss(self.history, folder / "curve.png", title)


class Stopped(Exception):
    """A stop was asked for: what is under way is given up, to be done by the run that goes on."""


class StopSignal:
    """A request to stop: the number of the signal that came first, 0 for none.

    Within its context SIGTERM, SIGHUP and Ctrl-C are one. A launcher passes on what its workers got as well, so those
    that follow change nothing, but for a Ctrl-C after `PATIENCE` seconds, which ends the process at once.
    """

    def __init__(self) -> None:
        self.usual: dict[int, Any] = {}
        self.received = 0
        self.since = 0.0
        self.parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0

    @property
    def number(self) -> int:
        """The signal that came; the death of a launcher counts as one."""
        if self.parent and os.getppid() != self.parent:
            return int(signal.SIGTERM)
        return self.received

    def _receive(self, number: int, frame: Any) -> None:
        if not self.received:
            self.received = number
            self.since = time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                with suppress(OSError):  # the terminal is gone
                    os.write(2, b"\nstopping, saves first; another Ctrl-C ends it at once\n")
        elif number == signal.SIGINT and time.monotonic() > self.since + PATIENCE:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        with suppress(ValueError):  # not in the main thread: signals go elsewhere
            for number in STOPS:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                    self.usual[number] = signal.signal(number, self._receive)

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)
