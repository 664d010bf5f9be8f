"""`unmask bench multi_block`: forwards that several active blocks save, and what they change, on answers of 4 calls."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from unmask.cli.options import Json, load, shares
from unmask.cli.report import report
from unmask.decoding.feed import Feed
from unmask.lm import DiffusionLM

HOME = {
    "areas": ["Den", "Bedroom", "Kitchen", "Hall"],
    "light": ["Desk Lamp", "Ceiling Light", "Kitchen Spots"],
    "switch": ["Coffee Machine", "Fountain"],
    "climate": ["Thermostat"],
    "cover": ["Bedroom Blinds", "Hall Shutter"],
    "media_player": ["Den TV"],
}
SAID = [
    "turn on the {thing}",
    "turn off the {thing}",
    "switch the {thing} on",
    "set the {area} to {degrees} degrees",
    "open the {cover}",
    "close the {cover}",
    "turn off the lights in the {area}",
    "dim the {light} to {percent} percent",
    "pause the den tv",
]


def prompts(count: int, seed: int) -> list[list[dict[str, Any]]]:
    """Dialogues of a home and four commands in one sentence."""
    rng = random.Random(seed)
    home = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in HOME.items())
    out = []
    for _ in range(count):
        said = []
        for template in rng.sample(SAID, 4):
            names = {
                "thing": rng.choice([*HOME["light"], *HOME["switch"]]).lower(),
                "area": rng.choice(HOME["areas"]).lower(),
                "cover": rng.choice(HOME["cover"]).lower(),
                "light": rng.choice(HOME["light"]).lower(),
                "degrees": rng.randint(17, 24),
                "percent": rng.randrange(10, 100, 10),
            }
            said.append(template.format(**names))
        command = f"{said[0]}, {said[1]}, {said[2]} and {said[3]}"
        out.append([{"role": "system", "content": home}, {"role": "user", "content": command}])
    return out


@dataclass
class Tally:
    """One way of decoding, over all answers."""

    name: str
    options: dict[str, Any]
    steps: int = 0
    tokens: int = 0
    columns: int = 0
    seconds: float = 0.0  # of the process, on all threads
    same: int = 0


def bench(lm: DiffusionLM, ways: list[Tally], rows: list[Any], longest: int) -> None:
    """Every way on every row, one after another; the first is what the others' ids are compared with."""
    forward = lm.backend.forward
    read = 0

    def counted(feed: Feed) -> Any:
        nonlocal read
        read += feed.ids.shape[1]
        return forward(feed)

    lm.backend.forward = counted  # type: ignore[method-assign]
    for row in rows:
        lm.generate(row, longest, **ways[0].options)  # what is compiled for it is compiled
        first: list[int] = []
        for way in ways:
            read = 0
            began = time.process_time()
            out = lm.generate(row, longest, temperature=0.0, **way.options)
            way.seconds += time.process_time() - began
            first = first or out.token_ids
            way.steps += out.steps
            way.tokens += len(out.token_ids)
            way.columns += read
            way.same += out.token_ids == first


def command(
    model: Annotated[str, typer.Argument(help="A block-causal model of household commands.")],
    count: Annotated[int, typer.Option(help="Answers.")] = 40,
    thresholds: Annotated[str, typer.Option(help="Of the rule, separated by commas.")] = "0.7,0.9",
    skip_thresholds: Annotated[str, typer.Option(help="Of the blocks after the first.")] = "0.9,0.99",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Of an answer at most.")] = 160,
    seed: Annotated[int, typer.Option(help="Of the commands.")] = 1,
    as_json: Json = False,
) -> None:
    """Forwards, columns and CPU time of one, two and four active blocks on answers of four calls; ids compared.

    Example: `unmask bench multi_block runs/blocks/model --count 40`
    """
    lm = load(model)
    rows = prompts(count, seed)
    tallies: list[Tally] = []
    for threshold in shares("--thresholds", thresholds):
        ways = [Tally(f"{threshold:g}, 1 block", {"threshold": threshold})]
        for blocks in (2, 4):
            for skip in shares("--skip-thresholds", skip_thresholds):
                options = {"threshold": threshold, "buffer_size": blocks, "skip_threshold": skip}
                ways.append(Tally(f"{threshold:g}, {blocks} blocks, {skip:g}", options))
        bench(lm, ways, rows, max_new_tokens)
        tallies += ways
    table = [
        [
            tally.name,
            str(tally.steps),
            f"{tally.tokens / tally.steps:.2f}",
            f"{tally.columns / tally.steps:.1f}",
            f"{tally.seconds:.2f}",
            f"{tally.same} of {count}",
        ]
        for tally in tallies
    ]
    columns = ["threshold, blocks, skip threshold", "forwards", "tokens/forward", "columns", "CPU s", "ids of 1 block"]
    report([vars(tally) for tally in tallies], f"{lm.name}: {count} answers of four calls", columns, table, as_json)
