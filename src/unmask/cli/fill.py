"""`unmask fill`: fill the gaps of a template."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from unmask.cli.options import Device, Dtype, Json, Model, decodes, load
from unmask.cli.report import print_output


@decodes("max_denoising_steps", "rule", "threshold", "temperature", "seed")
def fill(
    template: Annotated[str, typer.Argument(help='Text with gaps, such as "She was [[mask:3]] and [[mask:1-4]]."')],
    model: Model = "austen",
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: Json = False,
    **decoding: Any,
) -> None:
    """Fill the gaps of a template: any number, each of a fixed or ranged length.

    Example: `unmask fill "Mr. Darcy was [[mask:2-6]], and Elizabeth [[mask:4]]."`
    """
    lm = load(model, device, dtype)
    began = time.perf_counter()
    output = lm.fill(template, **decoding)
    seconds = time.perf_counter() - began
    print_output(output, seconds, as_json, False, {"text": output.text, "gaps": output.gaps})
