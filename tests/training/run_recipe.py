"""A training run in a process of its own, for tests that kill one or start two.

python run_recipe.py RECIPE.yaml FOLDER [STEP]: at STEP the process kills itself in the middle of saving.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from unmask.training import checkpointer as checkpointer_module
from unmask.training.recipe import read_recipe
from unmask.training.trainer import Trainer


def main() -> None:
    recipe, folder = read_recipe(Path(sys.argv[1]), []), Path(sys.argv[2])
    trainer = Trainer(recipe, folder)
    if len(sys.argv) > 3:
        fatal, write_text = int(sys.argv[3]), checkpointer_module.write_text

        def write_or_die(*args: Any) -> None:
            if trainer.step == fatal:  # the tensors are written, the checkpoint is not yet in its place
                os.kill(os.getpid(), signal.SIGKILL)
            write_text(*args)

        checkpointer_module.write_text = write_or_die
    trainer.run()


main()
