"""`unmask bench prefixes`: requests one after another that begin alike, with and without keeping what was read."""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import typer

from unmask.cli.options import Json, Tokens, load
from unmask.cli.report import report
from unmask.errors import UnmaskError

ROOMS = ("kitchen", "hall", "bedroom", "bathroom", "garage", "garden", "study", "attic")
DEVICES = ("light", "blind", "heating", "speaker", "fan", "socket")
KEPT = 256 << 20  # bytes


def dialogues(count: int) -> list[list[dict[str, str]]]:
    """So many commands to a home, behind a system message that lists its devices."""
    listed = "\n".join(f"- {room} {device}: off" for room in ROOMS for device in DEVICES)
    system = f"You control a home. Answer in one sentence. Its devices:\n{listed}"
    asked = [f"Turn on the {device} in the {room}." for device in DEVICES for room in ROOMS]
    return [[{"role": "system", "content": system}, {"role": "user", "content": text}] for text in asked[:count]]


def command(
    model: Annotated[str, typer.Argument(help="A model that chats, with the native backend.")] = "default",
    requests: Annotated[int, typer.Option(help="How many, one after another, at most 48.")] = 10,
    max_new_tokens: Tokens = 24,
    mode: Annotated[str, typer.Option(help="Of decoding.")] = "ar",
    rounds: Annotated[int, typer.Option(help="Rounds, both ways in turns; the kept text is forgotten between.")] = 3,
    as_json: Json = False,
) -> None:
    """Milliseconds to the first token and to the whole answer, and the same of computing; whether ids are equal.

    Example: `unmask bench prefixes`
    """
    lm = load(model, "cpu", None)
    prompts = dialogues(requests)
    taken: dict[str, list[list[float]]] = {"read anew": [], "kept": []}
    written: dict[str, list[list[int]]] = {}
    lm.generate(prompts[0], 2, mode=mode)
    for _ in range(rounds):
        for way, times in taken.items():
            lm.keep_prefixes(0)
            lm.keep_prefixes(KEPT if way == "kept" else 0)
            written[way] = []
            for number, prompt in enumerate(prompts):
                clocks = [[time.perf_counter(), time.process_time()]]
                run = lm.start(prompt, max_new_tokens, mode=mode, temperature=0.0)
                for _ in run.frames():
                    clocks.append([time.perf_counter(), time.process_time()])
                written[way].append(run.outputs()[0].token_ids)
                if number:  # the first reads all of it in any case
                    times.append([1e3 * (clocks[n][i] - clocks[0][i]) for n in (1, -1) for i in (0, 1)])
    if written["kept"] != written["read anew"]:
        raise UnmaskError("kept text changed what is written")
    columns = ["way", "first token, ms", "of computing", "whole answer, ms", "of computing "]
    records = list[dict[str, Any]]()
    for way, times in taken.items():
        middle = [round(statistics.median(column), 1) for column in zip(*times, strict=True)]
        records.append(dict(zip(columns, [way, *middle], strict=True)))
    length = len(lm.encode(prompts[0])[0])
    rows = [[str(value) for value in record.values()] for record in records]
    report({"prompt_tokens": length, "ways": records}, f"{lm.name}, {length} tokens of prompt", columns, rows, as_json)
