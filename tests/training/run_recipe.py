"""Training runs in a process of their own, for tests that kill one or start two.

python run_recipe.py RECIPE.yaml FOLDER [RECIPE.yaml FOLDER ...], one run after another; with DIE_AT=STEP in the
environment the process that writes kills itself at that step, in the middle of saving; with STOP_AT=STEP the last rank
gets the SIGTERM of a launcher, and again.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from unmask.training import checkpointer as checkpointer_module
from unmask.training.finetune import Finetuner
from unmask.training.recipe import FinetuneRecipe, read_recipe
from unmask.training.trainer import Trainer


def run(recipe_file: str, folder: str) -> None:
    recipe = read_recipe(Path(recipe_file), [])
    trainer = (Finetuner if isinstance(recipe, FinetuneRecipe) else Trainer)(recipe, Path(folder))
    if "DIE_AT" in os.environ:
        fatal, write_text = int(os.environ["DIE_AT"]), checkpointer_module.write_text

        def write_or_die(*args: Any) -> None:
            if trainer.step == fatal:  # the tensors are written, the checkpoint is not yet in its place
                os.kill(os.getpid(), signal.SIGKILL)
            write_text(*args)

        checkpointer_module.write_text = write_or_die
    if "STOP_AT" in os.environ and os.environ.get("RANK") == "1":
        told, train_step = int(os.environ["STOP_AT"]), trainer._train_step

        def stop_or_train() -> Any:
            if trainer.step == told:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step()

        trainer._train_step = stop_or_train
    trainer.run()


for pair in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    run(*pair)
