"""Sets assist's answers on a grid: tabs before a comma put each argument on a multiple of 8 tokens and each call on a
multiple of 16, so that a denoiser knows places without the lengths of the names before them.

python tools/assist/grid.py rows TOKENIZER < train.jsonl > train-grid.jsonl
python tools/assist/grid.py model FOLDER    # its grammar takes the tabs, and its tokenizer writes no text for them
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders

ARGUMENT = 8
CALL = 16
TAB = "ĉ"  # as byte-level vocabularies write it


def on_grid(calls: list[dict[str, object]], tokenizer: Tokenizer) -> str:
    """The calls as JSON, with tabs before the commas between arguments and between calls."""

    def padded(text: str, step: int) -> str:
        text += "\t"  # at least one, so that no token joins what stands on its two sides
        return text + "\t" * (-len(tokenizer.encode(text, add_special_tokens=False).ids) % step)

    text = "["
    for place, call in enumerate(calls):
        text = (padded(text, CALL) + "," if place else text) + f'{{"name":{json.dumps(call["name"])},"arguments":{{'
        for number, (name, value) in enumerate(call["arguments"].items()):  # type: ignore[attr-defined]
            text = padded(text, ARGUMENT) + "," if number else text
            text += f"{json.dumps(name)}:{json.dumps(value, ensure_ascii=False)}"
        text += "}}"
    return text + "]"


def rows(path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    for line in sys.stdin:
        row = json.loads(line)
        calls = json.loads(row["response"])
        text = on_grid(calls, tokenizer)
        assert json.loads(text) == calls
        print(json.dumps({**row, "response": text}, ensure_ascii=False))


def model(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(TAB, ""), decoders.ByteLevel()])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    schema = json.loads((Path(__file__).parent / "answer_schema.json").read_text(encoding="utf-8"))
    schema["x-guidance"]["item_separator"] = "\\t*,"
    (folder / "answer_schema.json").write_text(json.dumps(schema, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    {"rows": rows, "model": model}[sys.argv[1]](Path(sys.argv[2]))
