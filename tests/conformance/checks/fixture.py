"""Folders of recorded numbers: which of them are fixtures, and reading their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from unmask.canvas import Array
from unmask.checkpoints.folder import CONFIG
from unmask.errors import UnmaskError
from unmask.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

FORWARD, GENERATE, NOISE = "forward.safetensors", "generate.json", "sampler_noise.safetensors"
MODEL_FREE = (
    "commit_rules",
    "entropy_bound",
    "indel",
    "likelihood",
    "objectives",
    "sampling_rules",
    "schedules",
    "t2t",
)
WHAT_IT_IS = (
    f"a family's fixture has {CONFIG}, weights and {FORWARD} or {GENERATE}; "
    f"one without a model has {', '.join(f'{name}.json' for name in MODEL_FREE[:-1])} or {MODEL_FREE[-1]}.json"
)


@dataclass(frozen=True)
class Fixture:
    """A folder with a checkpoint and what its reference made of it, or with cases that need no checkpoint."""

    path: Path
    has_model: bool
    model_free: tuple[str, ...]  # stems of the files that are there

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @staticmethod
    def at(path: Path) -> Fixture | None:
        """The fixture in a folder; None if it is none."""
        recorded = (path / FORWARD).is_file() or (path / GENERATE).is_file()
        model_free = tuple(stem for stem in MODEL_FREE if (path / f"{stem}.json").is_file())
        has_model = (path / CONFIG).is_file() and recorded
        return Fixture(path, has_model, model_free) if has_model or model_free else None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors of one of its files; none if it is not there."""
        from safetensors.torch import load_file

        path = self.path / name
        try:
            return load_file(path) if path.is_file() else {}
        except (SafetensorError, OSError, ValueError) as error:
            raise UnmaskError(f"{path} is not a readable safetensors file ({error})") from None

    def json(self, name: str) -> dict[str, Any]:
        return read_json(self.path / name)

    def cases(self) -> list[dict[str, Any]]:
        """What generate.json records; none if it is not there."""
        if not (self.path / GENERATE).is_file():
            return []
        cases = self.json(GENERATE).get("cases")
        if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
            raise UnmaskError(f"{self.path / GENERATE} must hold a list of objects under 'cases'")
        return cases

    def noise(self) -> dict[str, Array]:
        """The uniform draws of stochastic samplers."""
        return {name: np.asarray(tensor) for name, tensor in self.tensors(NOISE).items()}


def find(root: Path) -> tuple[list[Fixture], list[str]]:
    """The fixtures in a folder, or the folder itself if it is one; and the folders beside them that are none.

    Raises UnmaskError if there is nothing to check.
    """
    if not root.is_dir():
        raise UnmaskError(f"{root} is not a folder; give a folder of fixtures, or one fixture")
    own = Fixture.at(root)
    if own is not None:
        return [own], []
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._" and path.name != "checks"
    )
    fixtures = [(path, Fixture.at(path)) for path in folders]
    found = [fixture for _, fixture in fixtures if fixture is not None]
    if not found:
        raise UnmaskError(f"{root} holds no fixture: {WHAT_IT_IS}")
    return found, [path.name for path, fixture in fixtures if fixture is None]
