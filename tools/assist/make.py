"""Spoken household commands and the calls that Home Assistant's intents make of them, drawn by rule and seed.

    pip install hassil home-assistant-intents
    python tools/assist/make.py train 180000 1 > runs/assist-data/train.jsonl
    python tools/assist/make.py dev 1000 2 > runs/assist-data/dev.jsonl
    python tools/assist/make.py test 2000 3 > runs/assist-data/test.jsonl

`train` draws from four of five templates of each intent and of every word list; `dev` and `test` from the fifth alone.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import words
import yaml
from hassil.expression import Alternative, Group, ListReference, Permutation, RuleReference, TextChunk
from hassil.parse_expression import parse_sentence
from home_assistant_intents import get_intents

ORDER = [
    "name", "area", "floor", "domain", "device_class", "state", "zone", "brightness", "color", "temperature", "percentage",
    "position", "volume_level", "volume_step", "fan_mode", "media_class", "search_query", "item", "message", "hours", "minutes",
    "seconds", "start_hours", "start_minutes", "start_seconds", "conversation_command",
]  # fmt: skip
SKIPPED = {"HassRespond"}  # small talk that the community answers with fixed lines
NAME_DOMAINS = {
    "HassListAddItem": ["todo"], "HassListCompleteItem": ["todo"], "HassListRemoveItem": ["todo"],
    "HassGetWeather": ["weather"], "HassVacuumStart": ["vacuum"], "HassVacuumReturnToBase": ["vacuum"],
    "HassLawnMowerDock": ["lawn_mower"], "HassLawnMowerStartMowing": ["lawn_mower"], "HassFanSetSpeed": ["fan"],
    "HassSetPosition": ["cover", "valve"], "HassLightSet": ["light"], "HassClimateSetTemperature": ["climate"],
    "HassClimateGetTemperature": ["climate"], "HassClimateSetFanMode": ["climate"],
}  # fmt: skip
MEDIA = ["HassMediaNext", "HassMediaPause", "HassMediaPlayerMute", "HassMediaPlayerUnmute", "HassMediaPrevious"]
NAME_DOMAINS |= {name: ["media_player"] for name in [*MEDIA, "HassMediaUnpause", "HassMediaSearchAndPlay"]}
NAME_DOMAINS |= {name: ["media_player"] for name in ("HassSetVolume", "HassSetVolumeRelative")}
WEIGHTS = {
    "HassTurnOn": 16, "HassTurnOff": 16, "HassLightSet": 9, "HassClimateSetTemperature": 6, "HassStartTimer": 7, "HassGetState": 9,
    "HassSetVolume": 4, "HassSetPosition": 4, "HassShoppingListAddItem": 4, "HassListAddItem": 4, "HassFanSetSpeed": 3,
    "HassClimateGetTemperature": 4, "HassMediaSearchAndPlay": 4, "HassSetVolumeRelative": 3,
}  # fmt: skip
QUESTIONS = {"HassGetState", "HassGetWeather", "HassGetCurrentTime", "HassGetCurrentDate", "HassTimerStatus"}
QUESTIONS |= {"HassClimateGetTemperature", "HassNevermind"}
NOVELS = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parents[2] / "data" / "austen").glob("*.txt"))
)
ASKING = {
    "are_any": parse_sentence("(is|are) [(there|the|my|our)] (any|some) [of (the|my|our)]").expression,
    "are_all": parse_sentence("(is|are) (all [[of] (the|my|our)]|every [single]|each [and every])").expression,
}
ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen""".split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int, rng: random.Random) -> str:
    """A number from 0 to 9,999 as people say it."""
    if number < 20:
        return ONES[number]
    if number < 100:
        joint = rng.choice([" ", "-"])
        return TENS[number // 10] + (joint + ONES[number % 10] if number % 10 else "")
    if number < 1000:
        rest = number % 100
        joint = rng.choice([" ", " and "])
        return ONES[number // 100] + " hundred" + (joint + in_words(rest, rng) if rest else "")
    rest = number % 1000
    return in_words(number // 1000, rng) + " thousand" + (" " + in_words(rest, rng) if rest else "")


@dataclass
class Template:
    """One sentence of one intent. domains: what {name} may be; None where there is no {name}."""

    intent: str
    slots: dict[str, Any]
    domains: list[str] | None
    expression: Any
    text: str
    lists: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)


def parsed(rules: dict[str, str]) -> dict[str, Any]:
    """Expansion rules by name, as expressions."""
    return {name: parse_sentence(body).expression for name, body in rules.items()}


class Templates:
    """The community's templates and our own, split into those for training and every fifth for tests."""

    def __init__(self) -> None:
        data = get_intents("en")
        self.lists = data["lists"]
        self.rules = parsed(data["expansion_rules"])
        self.parts: dict[bool, dict[str, list[Template]]] = {False: defaultdict(list), True: defaultdict(list)}
        made: dict[str, list[Template]] = defaultdict(list)
        for intent, body in data["intents"].items():
            if intent in SKIPPED:
                continue
            for block in body["data"]:
                made[intent] += self._community(intent, block)
        for intent, templates in made.items():
            for place, template in enumerate(templates):
                self.parts[place % 5 == 4][intent].append(template)
        self._own()

    def _own(self) -> None:
        """Add the sentences of paraphrases.yaml to those for training."""
        own = yaml.safe_load((Path(__file__).parent / "paraphrases.yaml").read_text(encoding="utf-8"))
        shared = parsed(own["rules"])
        lists = {name: {"values": values} for name, values in own["lists"].items()}
        for block in own["blocks"]:
            rules = shared | parsed(block.get("rules", {}))
            for sentence in block["say"].splitlines():
                self.parts[False][block["intent"]].append(
                    Template(
                        intent=block["intent"],
                        slots=block.get("slots", {}),
                        domains=block.get("names"),
                        expression=parse_sentence(sentence).expression,
                        text=sentence,
                        lists=lists,
                        rules=rules,
                    )
                )

    def _community(self, intent: str, block: dict[str, Any]) -> Iterator[Template]:
        context = block.get("requires_context") or {}
        domains = context.get("domain")
        if isinstance(domains, dict):
            domains = domains.get("value")
        if isinstance(domains, str):
            domains = [domains]
        slots = dict(block.get("slots") or {})
        rules = parsed(block.get("expansion_rules") or {})
        for sentence in block["sentences"]:
            expression = parse_sentence(sentence).expression
            known = (
                domains
                or NAME_DOMAINS.get(intent)
                or ([slots["domain"]] if slots.get("domain") in words.NOUNS else None)
            )
            known = [domain for domain in known or ["light", "switch"] if domain.replace("input_", "") in words.NOUNS]
            lists = block.get("lists") or {}
            yield Template(intent, slots, known or ["light", "switch"], expression, sentence, lists, rules)


@dataclass
class Home:
    """What a command may name: rooms, floors, and devices by domain."""

    areas: list[str]
    floors: list[str]
    devices: dict[str, list[str]]

    def text(self) -> str:
        lines = []
        if self.areas:
            lines.append("areas: " + ", ".join(self.areas))
        if self.floors:
            lines.append("floors: " + ", ".join(self.floors))
        lines += [f"{domain}: " + ", ".join(names) for domain, names in self.devices.items()]
        return "\n".join(lines)


class Impossible(Exception):
    """A template asks for what the home does not have."""


def says_another(pieces: list[tuple[str, str]], name: str | None, home: Home) -> bool:
    """Whether a sentence also says a device that it doesn't mean: "lamp off" for all lights where one is called lamp.

    Args: pieces as of `Maker.say`, the name of the device that is meant (None: none), and the home.
    """
    text = " " + tidy("".join(text if kind != "copied" else " _ " for text, kind in pieces)) + " "
    text, meant = (said.lower().replace("'", "") for said in (text, name or ""))
    others = (other.lower().replace("'", "") for names in home.devices.values() for other in names)
    return any(other not in meant and f" {other} " in text for other in others)


class Maker:
    def __init__(self, templates: Templates, rng: random.Random, test: bool) -> None:
        self.templates = templates.parts[test]
        self.all = templates
        self.rng = rng
        self.test = test
        self.rooms = words.split(words.listed(words.ROOMS), test)
        self.floors = words.split(words.listed(words.FLOORS), test)
        self.owners = words.split(words.listed(words.OWNERS), test)
        self.adjectives = words.split(words.listed(words.ADJECTIVES), test)
        self.nouns = {domain: words.split(words.listed(text), test) for domain, text in words.NOUNS.items()}
        self.items = words.split(words.listed(words.ITEMS), test)
        self.messages = words.split(words.listed(words.MESSAGES), test)
        self.timers = words.split(words.listed(words.TIMERS), test)
        self.searches = words.split(words.listed(words.SEARCHES), test)
        self.nothing = words.split([" ".join(text.split()) for text in words.NOTHING.split("|")], test)
        self.intents = [intent for intent, found in self.templates.items() if found]
        self.plain = False  # names of the lists alone, nothing invented: half of the homes for training

        self.book = [word for place, word in enumerate(book()) if (place % 5 == 4) == test]
        self.phrases = [line for place, line in enumerate(phrases()) if (place % 5 == 4) == test]

    # -- names -----------------------------------------------------------------------------------------------------
    def invented(self) -> str:
        """A word that no list has, so that names have to be read and not remembered."""
        rng = self.rng
        if rng.random() < 0.6:
            return rng.choice(self.book)
        onset = [
            "b",
            "br",
            "d",
            "dr",
            "f",
            "g",
            "gl",
            "k",
            "kr",
            "l",
            "m",
            "n",
            "p",
            "pl",
            "r",
            "s",
            "sh",
            "st",
            "t",
            "tr",
            "v",
            "w",
            "z",
            "qu",
            "",
        ]
        nucleus = ["a", "e", "i", "o", "u", "ai", "ee", "oo", "ou", "y"]
        coda = ["", "", "n", "r", "l", "x", "sk", "nd", "m", "t", "ck", "ss", "th"]
        return "".join(
            rng.choice(onset) + rng.choice(nucleus) + rng.choice(coda) for _ in range(rng.choice([1, 2, 2, 3]))
        )

    def device(self, domain: str, areas: list[str]) -> str:
        rng = self.rng
        noun = rng.choice(self.nouns[domain])
        if domain in ("todo", "scene", "script", "person", "weather", "sensor") and rng.random() < 0.45:
            return noun
        if domain in ("todo", "scene", "script") and not self.plain and rng.random() < 0.5:
            return self.phrase(3)
        kind = rng.random()
        if self.plain:
            kind *= 0.83
        elif rng.random() < 0.3:
            kind = rng.uniform(0.83, 1.0)
        if kind < 0.36:
            return noun
        if kind < 0.52:
            return f"{rng.choice(self.adjectives)} {noun}"
        if kind < 0.64:
            return f"{rng.choice(self.owners)}{rng.choice([chr(39) + 's', 's', chr(39) + 's'])} {noun}"
        if kind < 0.76:
            return f"{rng.choice(areas or self.rooms)} {noun}"
        if kind < 0.83:
            return f"{noun} {rng.choice(['1', '2', '3', 'one', 'two', 'a', 'b', '4'])}"
        if kind < 0.92:
            return f"{self.invented()} {noun}"
        return rng.choice(
            [self.invented(), f"{self.invented()} {self.invented()}", f"{rng.choice(self.owners)} {self.invented()}"]
        )

    def phrase(self, most: int) -> str:
        """A few words that stand together in a book."""
        rng = self.rng
        line = rng.choice(self.phrases).split()
        count = rng.randrange(1, most + 1)
        start = rng.randrange(max(1, len(line) - count))
        return " ".join(line[start : start + count])

    def room(self) -> str:
        rng = self.rng
        kind = rng.random()
        if self.plain:
            kind *= 0.92
        elif rng.random() < 0.2:
            kind = 0.99
        if kind < 0.74:
            return rng.choice(self.rooms)
        if kind < 0.84:
            return f"{rng.choice(self.owners)}'s {rng.choice(['room', 'bedroom', 'office', 'bath', *self.rooms[:6]])}"
        if kind < 0.92:
            return f"{rng.choice(self.adjectives)} {rng.choice(self.rooms)}"
        return rng.choice([self.invented(), f"{self.invented()} room"])

    def home(self) -> Home:
        rng = self.rng
        self.plain = not self.test and rng.random() < 0.5
        areas = list(dict.fromkeys(self.room() for _ in range(rng.choice([0, 1, 2, 2, 3, 3, 4, 4, 5, 6]))))
        floors = list(dict.fromkeys(rng.choice(self.floors) for _ in range(rng.choice([0, 0, 0, 1, 2, 2]))))
        common = ["light"] * 7 + ["switch"] * 4 + ["media_player"] * 3 + ["cover"] * 3 + ["climate"] * 2 + ["fan"] * 2
        domains = common + [
            "lock",
            "lock",
            "vacuum",
            "scene",
            "scene",
            "script",
            "todo",
            "todo",
            "sensor",
            "person",
            "binary_sensor",
        ]
        domains += ["lawn_mower", "valve", "button", "weather"]
        devices: dict[str, list[str]] = defaultdict(list)
        taken: set[str] = set(areas)
        for _ in range(rng.choice([0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9])):
            domain = rng.choice(domains)
            name = self.device(domain, areas)
            if name not in taken:
                taken.add(name)
                devices[domain].append(name)
        home = Home(areas, floors, {domain: devices[domain] for domain in sorted(devices, key=lambda _: rng.random())})
        style = rng.random()
        if style < 0.35:
            return home
        change = str.title if style < 0.85 else str.capitalize
        fix = lambda text: change(text).replace("'S", "'s").replace("Tv", "TV")  # noqa: E731
        return Home(
            [fix(a) for a in areas],
            [fix(f) for f in floors],
            {d: [fix(n) for n in ns] for d, ns in home.devices.items()},
        )

    # -- sentences -------------------------------------------------------------------------------------------------
    def say(self, template: Template, home: Home, domains: list[str]) -> tuple[list[tuple[str, str]], dict[str, Any]]:
        """A sentence in pieces (text, kind: plain, name, copied or value) and the slots that it fills."""
        slots: dict[str, Any] = {}
        pieces = list(self._walk(template.expression, template, home, slots, domains))
        return pieces, slots

    def _walk(
        self, node: Any, template: Template, home: Home, slots: dict[str, Any], domains: list[str]
    ) -> Iterator[tuple[str, str]]:
        rng = self.rng
        if isinstance(node, TextChunk):
            yield node.original_text, "plain"
        elif isinstance(node, Alternative):
            items = node.items
            if node.is_optional and rng.random() < 0.55:
                items = [item for item in items if isinstance(item, TextChunk) and item.is_empty] or items
            yield from self._walk(rng.choice(items), template, home, slots, domains)
        elif isinstance(node, Permutation):
            items = list(node.items)
            rng.shuffle(items)
            for item in items:
                yield " ", "plain"
                yield from self._walk(item, template, home, slots, domains)
                yield " ", "plain"
        elif isinstance(node, Group):
            for item in node.items:
                yield from self._walk(item, template, home, slots, domains)
        elif isinstance(node, RuleReference):
            body = template.rules.get(node.rule_name) or self.all.rules[node.rule_name]
            if node.rule_name in ASKING:  # its verb may be left out, and then "all fans off" would be a question
                body = ASKING[node.rule_name]
            yield from self._walk(body, template, home, slots, domains)
        elif isinstance(node, ListReference):
            yield self._slot(node.list_name, node.slot_name, template, home, slots, domains)
        else:
            raise TypeError(type(node).__name__)

    def _slot(
        self, name: str, slot: str, template: Template, home: Home, slots: dict[str, Any], domains: list[str]
    ) -> tuple[str, str]:
        rng = self.rng
        if slot in slots:
            raise Impossible
        if name in ("area", "floor"):
            options = home.areas if name == "area" else home.floors
            if not options:
                raise Impossible
            slots[slot] = rng.choice(options)
            return self._spoken(slots[slot]), "name"
        if name == "name":
            options = [device for domain in domains for device in home.devices.get(domain, [])]
            if not options:
                raise Impossible
            slots[slot] = rng.choice(options)
            return self._spoken(slots[slot]), "name"
        wild = {
            "message": self.messages,
            "search_query": self.searches,
            "timer_name": self.timers,
            "shopping_list_item": self.items,
            "todo_list_item": self.items,
        }
        if name in wild:
            text = rng.choice(wild[name])
            if rng.random() < (0.15 if self.plain else 0.5):
                most = 6 if name == "message" else 3
                text = rng.choice([self.invented(), f"{self.invented()} {text}", self.phrase(most), self.phrase(most)])
            slots[slot] = text
            return text, "copied"
        if name == "zone":
            slots[slot] = rng.choice(words.split(words.listed(words.PERSON_ZONES), self.test))
            return slots[slot], "copied"
        if name == "timer_command":
            text = self._inner_command(home)
            slots[slot] = text
            return text, "copied"
        source = template.lists.get(name) or self.all.lists[name]
        if "range" in source:
            return self._number(name, slot, source["range"], slots)
        values = source["values"]
        value = rng.choice(values)
        if isinstance(value, str):
            value = {"in": value, "out": value}
        inner = parse_sentence(value["in"]).expression
        text = "".join(piece for piece, _ in self._walk(inner, template, home, {}, domains))
        slots[slot] = value.get("out", text)
        return text, "value"

    def _number(self, name: str, slot: str, spec: dict[str, Any], slots: dict[str, Any]) -> tuple[str, str]:
        rng = self.rng
        low, high, step = spec["from"], spec["to"], spec.get("step", 1)
        if name == "temperature":
            low, high = rng.choice([(16, 28), (5, 35), (60, 80)])
        value: float = rng.randrange(low, high + 1, step)
        if name.startswith("timer_") or rng.random() < 0.5:
            value = rng.choice(
                [v for v in (1, 2, 3, 5, 10, 15, 20, 25, 30, 40, 45, 50, 60, 70, 75, 80, 90, 100) if low <= v <= high]
                or [value]
            )
        half = spec.get("fractions") == "halves" and rng.random() < 0.12
        said = str(int(value)) if rng.random() < 0.62 else in_words(int(value), rng)
        if half:
            said += ".5" if said.isdigit() else rng.choice([" and a half", " point five"])
            value += 0.5
        if name.startswith("timer_") and value == 1 and rng.random() < 0.3:
            said = "one"
        slots[slot] = value * spec.get("multiplier", 1)
        return said, "value"

    def _spoken(self, name: str) -> str:
        """A name as it is said: mostly without its capitals."""
        rng = self.rng
        if rng.random() < 0.85:
            name = name.lower()
        if "'" in name and rng.random() < 0.4:
            name = name.replace("'", "")
        return name

    def _inner_command(self, home: Home) -> str:
        for _ in range(50):
            try:
                pieces, _, _ = self.command(home, ["HassTurnOn", "HassTurnOff", "HassLightSet", "HassSetVolume"])
            except Impossible:
                continue
            text = tidy("".join(text for text, _ in pieces))
            if len(text) < 60:
                return text
        raise Impossible

    def command(
        self, home: Home, intents: list[str] | None = None
    ) -> tuple[list[tuple[str, str]], str, list[dict[str, Any]]]:
        """One command: its pieces, its intent, and its calls (two where a verb is shared by two devices)."""
        rng = self.rng
        names = [name for name in intents or self.intents if self.templates[name]]
        intent = rng.choices(names, [WEIGHTS.get(name, 2) for name in names])[0]
        template = rng.choice(self.templates[intent])
        domains = template.domains or []
        pieces, slots = self.say(template, home, domains)
        if says_another(pieces, slots.get("name"), home):
            raise Impossible
        call = arranged(intent, {**template.slots, **slots})
        if intent in ("HassTurnOn", "HassTurnOff") and "name" in slots and rng.random() < 0.14:
            others = [n for d in domains for n in home.devices.get(d, []) if n != slots["name"]]
            where = [i for i, (_, kind) in enumerate(pieces) if kind == "name"]
            if others and len(where) == 1:
                other = rng.choice(others)
                pieces = list(pieces)
                joint = rng.choice([" and ", " and the ", ", ", " and my ", " as well as the ", " plus the ", " & "])
                pieces[where[0] : where[0] + 1] = [pieces[where[0]], (joint, "plain"), (self._spoken(other), "name")]
                return pieces, intent, [call, arranged(intent, {**template.slots, **slots, "name": other})]
        if (
            "area" in slots
            and "name" not in slots
            and intent in ("HassTurnOn", "HassTurnOff", "HassLightSet")
            and rng.random() < 0.08
        ):
            others = [a for a in home.areas if a != slots["area"]]
            where = [i for i, (_, kind) in enumerate(pieces) if kind == "name"]
            if others and len(where) == 1:
                other = rng.choice(others)
                pieces = list(pieces)
                joint = rng.choice([" and ", " and the ", " as well as the ", " and in the "])
                pieces[where[0] : where[0] + 1] = [pieces[where[0]], (joint, "plain"), (self._spoken(other), "name")]
                return pieces, intent, [call, arranged(intent, {**template.slots, **slots, "area": other})]
        return pieces, intent, [call]

    def item(self, wanted: int) -> tuple[str, str, list[dict[str, Any]]]:
        """A home, a command and its calls, about `wanted` of them; 0 for what no intent covers."""
        rng = self.rng
        home = self.home()
        if wanted == 0:
            filler = rng.choice(
                [rng.choice(self.items), rng.choice(self.searches), rng.choice(self.owners), self.invented()]
            )
            text = rng.choice(self.nothing).replace("{x}", filler).replace("{n}", str(rng.randrange(2, 60)))
            return home.text(), self.dressed([(text, "copied")], True), []
        pieces: list[tuple[str, str]] = []
        calls: list[dict[str, Any]] = []
        question = False
        for attempt in range(200):
            if len(calls) >= wanted:
                break
            try:
                said, intent, made = self.command(home)
            except Impossible:
                if attempt == 100:
                    home = self.home() if not calls else home
                continue
            if (
                len(calls) + len(made) > wanted
                or (calls and intent == "HassNevermind")
                or (wanted > 1 and intent == "HassBroadcast")
            ):
                continue
            if any(call in calls for call in made) or (
                wanted > 1 and any("conversation_command" in c["arguments"] for c in made)
            ):
                continue
            if calls:
                joint = rng.choice(
                    [
                        " and ",
                        " and ",
                        " and then ",
                        ", ",
                        ", then ",
                        " then ",
                        ", and ",
                        " and also ",
                        ", also ",
                        " plus ",
                        ". ",
                        "; ",
                        " after that ",
                    ]
                )
                pieces.append((joint, "plain"))
            else:
                question = intent in QUESTIONS
            pieces += said
            calls += made
        if len(calls) != wanted:
            return self.item(wanted)
        return home.text(), self.dressed(pieces, question), calls

    def dressed(self, pieces: list[tuple[str, str]], question: bool) -> str:
        """The sentence with fillers, slips and casing as people speak and type."""
        rng = self.rng
        pieces = [
            (self.slip(text) if kind in ("plain", "name") and rng.random() < 0.02 else text, kind)
            for text, kind in pieces
        ]
        text = tidy("".join(piece for piece, _ in pieces))
        if rng.random() < 0.16:
            text = contracted(text)
        if not question and rng.random() < 0.28:
            before = [
                "please ",
                "can you ",
                "could you ",
                "could you please ",
                "hey ",
                "ok ",
                "okay ",
                "would you ",
                "i want you to ",
                "i'd like you to ",
                "can you please ",
                "hey, ",
                "um ",
                "so ",
                "alright ",
                "quickly ",
                "just ",
                "go ahead and ",
                "would you mind to ",
                "hey there ",
                "uh ",
                "now ",
                "ok so ",
                "well ",
            ]
            text = rng.choice(words.split(before, self.test) if self.test else before) + text
        elif rng.random() < 0.08:
            text = rng.choice(["hey ", "um ", "ok ", "so ", "please ", "hey, ", "well "]) + text
        if rng.random() < 0.16:
            text += rng.choice(
                [
                    " please",
                    " thanks",
                    " now",
                    " for me",
                    " right now",
                    ", please",
                    ", thanks",
                    " thank you",
                    " if you can",
                    " would you",
                    " ok",
                ]
            )
        style = rng.random()
        if style < 0.42:
            text = text[:1].upper() + text[1:]
        elif style < 0.44:
            text = text.upper() if rng.random() < 0.3 else text.title()
        if rng.random() < 0.4:
            text += "?" if question else rng.choice([".", ".", ".", "!"])
        return text

    def slip(self, text: str) -> str:
        """One wrong letter in a word of four and more."""
        rng = self.rng
        places = [m.span() for m in re.finditer(r"[a-z]{4,}", text)]
        if not places:
            return text
        start, end = rng.choice(places)
        at = rng.randrange(start + 1, end - 1)
        kind = rng.random()
        if kind < 0.35:
            return text[:at] + text[at + 1 :]
        if kind < 0.7:
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        return text[:at] + text[at] + text[at:]


@cache
def book() -> list[str]:
    """Words of four letters and more of the novels in data/austen, in random order."""
    found = sorted(set(re.findall(r"\b[a-z]{4,12}\b", NOVELS)))
    random.Random(0).shuffle(found)
    return found


@cache
def phrases() -> list[str]:
    """Lines of the novels without anything but words, in random order."""
    found = [" ".join(re.findall(r"[a-z]+", line.lower())) for line in NOVELS.splitlines()]
    found = sorted({line for line in found if line.count(" ") > 4})
    random.Random(0).shuffle(found)
    return found


def tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" ([,.;!?%])", r"\1", text)


def contracted(text: str) -> str:
    for long, short in (
        ("what is", "what's"),
        ("it is", "it's"),
        ("i would", "i'd"),
        ("how is", "how's"),
        (" and ", " n "),
        ("do not", "don't"),
        ("what's", "whats"),
        ("turn off", "turn of"),
        ("lights", "light's"),
    ):
        if long in text:
            return text.replace(long, short, 1)
    return text


def arranged(intent: str, slots: dict[str, Any]) -> dict[str, Any]:
    """A call with its arguments in the one order that answers have."""
    unknown = [name for name in slots if name not in ORDER]
    if unknown:
        raise KeyError(f"{intent}: {unknown}")
    arguments = {name: slots[name] for name in ORDER if name in slots}
    for name, value in arguments.items():
        if isinstance(value, float) and value == int(value):
            arguments[name] = int(value)
        if isinstance(value, list):
            arguments[name] = value[0]
    return {"name": intent, "arguments": arguments}


def compact(calls: list[dict[str, Any]]) -> str:
    return json.dumps(calls, separators=(",", ":"), ensure_ascii=False)


def main() -> None:
    kind, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    maker = Maker(Templates(), rng, kind != "train")
    numbers = [0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4]
    for place in range(count):
        if kind == "train":
            wanted = rng.choice(numbers)
        else:  # a quarter with three or four calls, a sixteenth with none
            wanted = [1, 1, 2, 3, 1, 1, 2, 4, 1, 1, 2, 3, 1, 0, 2, 4][place % 16]
        home, command, calls = maker.item(wanted)
        prompt = f"{home}\n> {command}\n" if home else f"> {command}\n"
        print(json.dumps({"prompt": prompt, "response": compact(calls)}, ensure_ascii=False))


if __name__ == "__main__":
    main()
