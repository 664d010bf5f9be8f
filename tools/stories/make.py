"""Short simple stories by rule and by the default's base: rules say who and where, what goes wrong and how it ends, a sentence
each, and the base writes what stands between and behind them.

    python tools/stories/make.py write 20000000 --batch 64   # tokens; stopped, it goes on where it was
    python tools/stories/make.py gather                      # train.jsonl and held-out.jsonl of what is sound

Story number n is a function of (SEED, n), whatever stands beside it. Every HELD_EVERY-th story is of a held-out trouble.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from unmask.decoding.loop import Decoder
from unmask.lm import DiffusionLM

SEED = 16
FOLDER = Path("runs/stories")
RAW = "raw.jsonl"
BASE = "smollm2-135m-instruct"
HELD_EVERY = 40
TASK = "Write a short story for children about {who} called {name}."
SENTENCES = (1, 2, 2)  # that the base writes behind each sentence of the rules
MOST = 36  # tokens of such a sentence
SAMPLING: dict[str, Any] = {"mode": "ar", "temperature": 0.7, "top_p": 0.9}
ENDING = re.compile(r"[.!?][\"”]?$")
QUOTE = re.compile(r"[\"“”]")
RUN = 6  # words of a run that two stories may share
SHARED = 0.6  # share of a story's runs that may stand in earlier ones
LISTS = yaml.safe_load((Path(__file__).parent / "topics.yaml").read_text(encoding="utf-8"))
TROUBLES = [(kind, thing) for kind, own in LISTS["troubles"].items() for thing in own["things"]]
HELD = TROUBLES[3::8]
SEEN = [trouble for trouble in TROUBLES if trouble not in HELD]
QUOTES = str.maketrans({"“": '"', "”": '"', "\u2018": "'", "\u2019": "'", "—": "-", "\u2013": "-", "…": "..."})


@dataclass
class Story:
    """A story that is being written: text so far, and how many of the rules' sentences are in it."""

    number: int
    trouble: tuple[str, str]
    task: str
    rules: list[str]
    text: str = ""
    stage: int = 0
    tokens: int = 0  # that the base wrote


def held_out(number: int) -> bool:
    return number % HELD_EVERY == HELD_EVERY - 1


def begun(number: int) -> Story:
    """A story's rules, by its number."""
    rng = random.Random(f"{SEED} {number}")
    kind, thing = rng.choice(HELD if held_out(number) else SEEN)
    own = LISTS["troubles"][kind]
    about = {"thing": thing, **{part: rng.choice(LISTS[part]) for part in ("name", "who", "where")}}
    turn = f"{rng.choice(LISTS['turns'])} {rng.choice(own['says'])}."
    finish = f"{rng.choice(LISTS['finishes'])} {rng.choice(own['ends'])}."
    rules = [part.format(**about) for part in (rng.choice(LISTS["openings"]), turn, finish)]
    return Story(number, (kind, thing), TASK.format(**about), rules)


def write(wanted: int, batch: int, seconds: float, path: Path) -> None:
    """Appends stories until the base has written so many tokens, or the time is over; places that get free are filled at once."""
    done = {record["n"]: record["tokens"] for record in records(path)}
    stories = len(done)
    at_start = tokens = sum(done.values())
    lm = DiffusionLM.from_pretrained(BASE, backend="native")
    lm.keep_prefixes(2**29)
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    words = [tokenizer.decode([token]) for token in range(lm.config.vocab_size)]
    ends = {token for token, word in enumerate(words) if ENDING.search(word)}
    quotes = {token for token, word in enumerate(words) if len(QUOTE.findall(word)) % 2}
    none = {token: -100.0 for token, word in enumerate(words) if "\n" in word or token in lm.preparer.ends(lm.defaults)}
    chat = lm.render_chat([{"role": "user", "content": TASK}])
    decoder: Decoder | None = None
    open_stories: dict[int, Story] = {}
    waiting = (begun(number) for number in count() if number not in done)
    began = time.monotonic()

    def report() -> None:
        rate = (tokens - at_start) / (time.monotonic() - began)
        print(f"{stories} stories, {tokens} tokens, {rate:.0f} tokens/s", flush=True)

    def admit(story: Story) -> None:
        nonlocal decoder
        story.text = f"{story.text} {story.rules[story.stage]}".strip()
        sentences = SENTENCES[story.stage]

        def enough(own: list[int]) -> bool:
            return bool(
                own
                and own[-1] in ends
                and sum(t in ends for t in own) >= sentences
                and sum(t in quotes for t in own) % 2 == 0
            )

        ids = tokenizer.encode(chat.replace(TASK, story.task) + story.text, add_special_tokens=False).ids
        seed = SEED * 10**9 + len(SENTENCES) * story.number + story.stage
        one = lm.prepare(ids, MOST * sentences, seed=seed, logit_bias=none, **SAMPLING)
        if decoder is None:
            decoder = Decoder(lm.backend, one.layout, eos_ids=one.eos_ids)
        request = replace(one.requests[0], stop=enough)
        open_stories[decoder.admit(request)] = story

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        while tokens < wanted and time.monotonic() < began + seconds:
            while len(open_stories) < batch:
                admit(next(waiting))
            assert decoder is not None
            decoder.step()
            for place in open_stories.keys() - {row.number for row, _ in decoder.active}:
                story = open_stories.pop(place)
                row = decoder.release(place)
                ids = row.canvas.ids[0, row.request.given.index(False) : row.edge].tolist()
                tokens += len(ids)
                story.tokens += len(ids)
                story.text += tokenizer.decode(ids)
                story.stage += 1
                if ids[-1] in ends and story.stage < len(SENTENCES):
                    admit(story)
                    continue
                record = {"n": story.number, "tokens": story.tokens, "ended": ids[-1] in ends, "text": story.text}
                file.write(json.dumps(record) + "\n")
                stories += 1
                if stories % 128 == 0:
                    file.flush()
                    report()
    report()


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The stories of a file; a last line that was cut off is taken off it."""
    if not path.exists():
        return
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        with path.open("r+b") as file:
            file.truncate(end)
    yield from map(json.loads, whole[:end].decode().splitlines())


def fault(record: dict[str, Any]) -> str:
    """Why a story is not sound; nothing if it is."""
    text = record["text"]
    sentences = [" ".join(re.findall(r"\w+", one.casefold())) for one in re.split(r"[.!?]", text)]
    words = re.findall(r"\w+", text.casefold())
    threes = Counter(zip(words, words[1:], words[2:], strict=False))
    tests = {
        "no end": not record["ended"],
        "length": not 40 <= len(words) <= 180,
        "characters": re.search(r"[^ -~]|[*#<>_|:@\[\]{}\\/0-9()]", text) is not None,
        "quotes": text.count('"') % 2 == 1,
        "spaces": re.search(r"[.!?][A-Z]| [.,!?]|  ", text) is not None,
        "a sentence twice": max(Counter(one for one in sentences if one.count(" ") > 1).values(), default=0) > 1,
        "repeats itself": sum(found - 1 for found in threes.values()) > 0.08 * len(words),
        "a word again and again": re.search(r"\b(\w+)\b(?:\W+\1\b){2}", text) is not None,
        "about the story": re.search(r"\b(story|stories|moral|sentence|AI|SmolLM)\b", text) is not None,
    }
    return next((name for name, found in tests.items() if found), "")


def gather(folder: Path) -> None:
    """Writes the sound stories of which most runs of words are new, and says why others went."""
    seen = set[int]()
    went: Counter[str] = Counter()
    kept: dict[str, list[str]] = {"train": [], "held-out": []}
    for record in sorted(records(folder / RAW), key=lambda one: one["n"]):
        record["text"] = record["text"].translate(QUOTES)
        why = fault(record)
        words = re.findall(r"\w+", record["text"].casefold())
        runs = {hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1)}
        if not why and len(runs & seen) > SHARED * len(runs):
            why = "like earlier ones"
        went[why or "kept"] += 1
        if not why:
            seen |= runs
            kept["held-out" if held_out(record["n"]) else "train"].append(json.dumps({"text": record["text"]}))
    for name, rows in kept.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    print(dict(went), {name: len(rows) for name, rows in kept.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "gather"])
    parser.add_argument("tokens", type=int, nargs="?", default=20_000_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    if given.what == "write":
        write(given.tokens, given.batch, given.seconds, given.folder / RAW)
    else:
        gather(given.folder)


if __name__ == "__main__":
    main()
