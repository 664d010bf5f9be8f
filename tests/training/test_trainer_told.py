"""Training with the losses of SEDD and DUO, from a recipe to a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from unmask import DiffusionLM, UnmaskError
from unmask.training.recipe import Recipe
from unmask.training.trainer import Trainer

MakeRecipe = Callable[..., Recipe]
TOLD = {"time_condition_size": 16}


@pytest.mark.parametrize(("objective", "corruption"), [("duo", "uniform"), ("sedd", "absorbing")])
def test_the_loss_falls_and_the_model_writes(
    make_recipe: MakeRecipe, tmp_path: Path, objective: str, corruption: str
) -> None:
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, **TOLD}
    kind: dict[str, Any] = {"kind": objective, "corruption": corruption}
    made = Trainer(make_recipe(objective=kind, model=shape, training__steps=24), tmp_path, Console(quiet=True))
    lm = DiffusionLM.from_pretrained(made.run())
    held_out = [record["validation"] for record in made.history if "validation" in record]
    assert np.isfinite(held_out).all()
    assert min(held_out[1:]) < 0.9 * held_out[0]
    assert (lm.config.mask_token_id is None) == (corruption == "uniform")
    written = lm.generate("the ", max_new_tokens=12, max_denoising_steps=6, seed=1)
    assert len(written.canvas) == 1 + 4 + 12  # the start of a text, the prompt, what is written
    assert lm.defaults.sampler == ("ancestral" if objective == "duo" else "analytic")
    (bound,) = lm.likelihood(["the cat"], samples=64)
    assert 0 < bound.nats < 12 * bound.tokens
    with pytest.raises(UnmaskError, match="use 'nelbo'"):
        lm.likelihood(["the cat"], method="exact")


def test_scores_depend_on_the_noise(make_recipe: MakeRecipe) -> None:
    with pytest.raises(UnmaskError, match="time_condition_size"):
        make_recipe(objective={"kind": "sedd"})
