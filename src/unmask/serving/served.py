"""What a process serves: which models, read how, within which bounds. A value that can be sent to another machine."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp

from unmask.lm import DiffusionLM
from unmask.serving.api.app import Settings
from unmask.serving.engine import Engine, Limits
from unmask.serving.run import make_app


@dataclass(frozen=True)
class Served:
    """Models by the names that clients use; limits and settings hold for one process."""

    models: dict[str, str]
    limits: Limits
    settings: Settings
    device: str = "cpu"
    dtype: str | None = None
    backend: str = "auto"

    def start(self) -> tuple[ASGIApp, Engine]:
        """Reads the models; the application that answers for them, and its engine, which the caller closes."""
        how = (self.device, self.dtype, self.backend)
        lms = {name: DiffusionLM.from_pretrained(source, *how) for name, source in self.models.items()}
        return make_app(lms, self.limits, self.settings)
