"""`unmask fill`: fill the gaps of a template."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from unmask.cli.options import (
    Device,
    Dtype,
    Json,
    Model,
    Rule,
    Seed,
    Steps,
    Temperature,
    Threshold,
    load,
)
from unmask.cli.report import print_output


def fill(
    template: Annotated[str, typer.Argument(help='Text with gaps, such as "She was [[mask:3]] and [[mask:1-4]]."')],
    model: Model = "austen",
    steps: Steps = None,
    rule: Rule = None,
    threshold: Threshold = None,
    temperature: Temperature = None,
    seed: Seed = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Fill the gaps of a template: any number, each of a fixed or ranged length.

    Example: `unmask fill "Mr. Darcy was [[mask:2-6]], and Elizabeth [[mask:4]]."`
    """
    lm = load(model, device, dtype)
    began = time.perf_counter()
    options = {"max_denoising_steps": steps, "rule": rule, "threshold": threshold, "temperature": temperature}
    output = lm.fill(template, seed=seed, **options)
    seconds = time.perf_counter() - began
    print_output(output, seconds, as_json, False, {"text": output.text, "gaps": output.gaps})
