"""The checkpoints of a run: written whole, the newest two kept, read back to go on bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from unmask.checkpoints.safetensors import WEIGHTS, each_tensor, write_one_by_one, write_tensors
from unmask.errors import UnmaskError
from unmask.files import read_json, replacing, write_text
from unmask.training.optimizer import Ema, put
from unmask.training.shard import split_like, whole
from unmask.training.token_file import locked

KEPT = 2
HALF_WRITTEN = (".checkpoint-*.tmp", ".checkpoint-*.old", f"*/.{'[0-9a-f]' * 8}.tmp")  # by `files`
EXTRA = ("best", "teacher")  # tensors of Progress, where it has them


@dataclass
class Progress:
    """What a run carries from step to step besides tensors."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  # averaged weights of the best check so far
    teacher: dict[str, Tensor] = field(default_factory=dict)  # the student's that became its own teacher


class Checkpointer:
    """Saves and restores one run's parameters, their average, the optimizers' moments and its progress.

    Files hold whole tensors, so that any number of processes goes on from them: tensors that are split over processes
    are gathered one at a time.

    identity: what may not change when a run goes on, by name (how long and how fast it trains may).
    describe: writes what makes the averaged weights in a folder a model that loads.
    writes: whether this process writes; where tensors are split, the others save too, to give their parts.
    """

    def __init__(
        self,
        folder: Path,
        ema: Ema,
        optimizers: Sequence[torch.optim.Optimizer],
        identity: Mapping[str, str],
        describe: Callable[[Path], None] = lambda folder: None,
        writes: bool = True,
    ) -> None:
        self.describe = describe
        self.writes = writes
        self.folder = folder
        self.parameters = ema.parameters
        self.ema = ema
        self.optimizers = optimizers
        self.identity = dict(identity)
        self.lock: Any = None

    def claim(self) -> None:
        """Makes the folder this run's own and takes away what a killed run left half-written in it."""
        try:
            self.lock = locked(self.folder / "run.lock", wait=False)
        except BlockingIOError:
            raise UnmaskError(
                f"{self.folder} is in use by another run; wait for it, or choose another --output"
            ) from None
        except OSError as error:
            raise UnmaskError(f"cannot write to {self.folder}: {error.strerror}; choose another --output") from None
        for pattern in HALF_WRITTEN:
            for stale in self.folder.glob(pattern):
                shutil.rmtree(stale, ignore_errors=True)

    def release(self) -> None:
        """Gives the folder free; the end of the process does so too."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:07d}"

    def found(self) -> list[Path]:
        """The checkpoints that there are, oldest first."""
        return sorted(self.folder.glob("checkpoint-*"))

    def save(self, progress: Progress) -> Path:
        """Writes a checkpoint, whole or not at all, and removes all but the newest."""
        files = self._files(progress)
        split = any(isinstance(parameter, DTensor) for parameter in self.parameters.values())
        gathered = iter(whole(tensor) for tensors in files.values() for tensor in tensors.values())
        path = self.path(progress.step)
        try:
            if self.writes:
                with replacing(path) as temporary:
                    for name, tensors in files.items():
                        if split:
                            write_one_by_one(temporary / name, tensors, gathered)
                        else:
                            write_tensors(temporary / name, tensors)
                    self.describe(temporary)
                    state = {"step": progress.step, "history": progress.history, "identity": self.identity}
                    write_text(temporary / "state.json", json.dumps(state))
                for old in self.found()[:-KEPT]:
                    shutil.rmtree(old, ignore_errors=True)
        finally:
            for _ in gathered:  # what the other processes ask for, also where writing failed
                pass
        return path

    def _files(self, progress: Progress) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file of a checkpoint."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        moments: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    moments[f"{names[id(parameter)]}:{key}"] = torch.as_tensor(value)
        files = {
            "weights.safetensors": dict(self.parameters),
            WEIGHTS: self.ema.values,
            "optimizer.safetensors": moments,
        }
        extra = {name: getattr(progress, name) for name in EXTRA}
        return {**files, **{f"{name}.safetensors": tensors for name, tensors in extra.items() if tensors}}

    def _read(self, path: Path, device: torch.device) -> dict[str, Tensor]:
        """The tensors of a checkpoint's file on the device, each split as its parameter is."""
        out: dict[str, Tensor] = {}
        for name, tensor in each_tensor(path):
            parameter = self.parameters.get(name.partition(":")[0])
            if parameter is not None and parameter.shape == tensor.shape:
                tensor = split_like(tensor, parameter)
            out[name] = tensor.to(device)
        return out

    @torch.no_grad()
    def restore(self, device: torch.device, say: Callable[[str], None]) -> Progress:
        """The newest checkpoint put back, or a fresh start where there is none."""
        found = self.found()
        if not found:
            return Progress()
        folder = found[-1]
        weights = self._read(folder / "weights.safetensors", device)
        average = self._read(folder / WEIGHTS, device)
        moments = self._read(folder / "optimizer.safetensors", device)
        if {n: p.shape for n, p in self.parameters.items()} != {n: t.shape for n, t in weights.items()}:
            raise UnmaskError(f"{folder} is of another network than this recipe; choose another --output or remove it")
        put(self.parameters, weights)
        self.ema.values = average
        for optimizer in self.optimizers:
            self._restore_moments(folder, optimizer, moments)
        saved = read_json(folder / "state.json")
        step = saved.get("step")
        history = saved.get("history")
        if not isinstance(step, int) or not isinstance(history, list):
            raise UnmaskError(f"{folder / 'state.json'} lacks step and history; remove {folder} to go on without it")
        identity = saved.get("identity")
        was = identity if isinstance(identity, dict) else {}
        changed = [name for name, value in self.identity.items() if was.get(name, value) != value]
        if changed:
            raise UnmaskError(f"{folder} was made with another {' and '.join(changed)}; choose another --output")
        progress = Progress(step, history)
        for name in EXTRA:
            if (folder / f"{name}.safetensors").is_file():
                setattr(progress, name, self._read(folder / f"{name}.safetensors", device))
        say(f"continuing from step {step} in {folder}")
        return progress

    def _restore_moments(self, folder: Path, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        muon = type(optimizer).__name__ == "Muon"
        for name, parameter in self.parameters.items():
            if id(parameter) in owned:
                prefix = f"{name}:"
                state = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
                if state and ("momentum_buffer" in state) != muon:
                    raise UnmaskError(f"{folder} is of another optimizer than this recipe; choose another --output")
                optimizer.state[parameter] = state
