"""Dialogues that an autoregressive base writes all by itself, to learn from what it would say.

Nothing but the base's own samples is used: its chat template is rendered up to an empty user turn, the base
writes the turn and then the answer (as in Magpie, arXiv 2406.08464). Left alone, a base begins most turns alike; the
recipe may list a word or two for turns to begin with. No file is read and no prompt is given, so no text that a
model is evaluated on can enter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unmask.canvas import Frame
from unmask.decoding.options import option
from unmask.errors import UnmaskError
from unmask.files import read_json, write_text
from unmask.training.dialogues import read_shard, write_shard

if TYPE_CHECKING:
    from unmask.lm import DiffusionLM

SETTINGS = "text.json"  # beside the shards: what they were made with
KINDS = ("held", "train")  # shards of text, in the order they are made in
ROUNDS = 8  # of turns that are sampled for a shard before a base is given up
_USER = "UserSaysThis"  # stand-ins, to find a template's own text around them
_ANSWER = "AnswerSaysThat"


@dataclass(frozen=True)
class TextConfig:
    """How much text a base writes and how it is sampled. A dialogue's template counts as text too."""

    tokens: int = option(300_000, ge=1)  # to train on, at least
    held_tokens: int = option(10_000, ge=0)  # held out beside them, at least
    batch: int = option(64, ge=1)  # turns sampled at once, which make one shard
    length: int = option(0, ge=0)  # tokens of a dialogue, at most; 0: a row of the recipe's data
    turn: int = option(96, ge=1)  # tokens of a user's turn; longer turns are dropped
    turn_temperature: float = option(1.0, gt=0, le=100)
    turn_top_k: int = option(64, ge=0)
    answer_temperature: float = option(0.6, ge=0, le=100)
    answer_top_k: int = option(40, ge=0)
    openings: tuple[str, ...] = ("",)  # what a turn begins with: one of them by chance, "" for nothing


@dataclass(frozen=True)
class Surroundings:
    """What a chat template writes around the turns of a dialogue, as token ids."""

    before: list[int]  # up to where the user's turn begins, the default system prompt included
    between: list[int]  # from the end of that turn to where the answer begins
    turn_end: int
    answer_end: int
    control: frozenset[int]  # ids that are no text

    @staticmethod
    def of(lm: DiffusionLM) -> Surroundings:
        """Raises UnmaskError for a base whose template cannot tell where turns begin and end."""
        tokenizer = lm.tokenizer
        name = lm.name
        if tokenizer is None or lm.chat_template is None:
            lacks = "tokenizer" if tokenizer is None else "chat template"
            raise UnmaskError(f"model '{name}' has no {lacks}, so it cannot write dialogues; take a base made to chat")
        messages = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
        start, found, middle = lm.render_chat(messages[:1]).partition(_USER)
        _, answered, end = lm.render_chat(messages).partition(_ANSWER)
        before, between, after = (tokenizer.encode(t, add_special_tokens=False).ids for t in (start, middle, end))
        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        config = lm.config
        named = {config.eos_token_id, config.bos_token_id, config.pad_token_id, config.mask_token_id}
        control = frozenset(special | {i for i in named if i is not None})
        if not (found and answered and between and after and {between[0], after[0]} <= control):
            raise UnmaskError(f"model '{name}': its chat template ends turns with no control token; take another base")
        return Surroundings(before or [between[0]], between, between[0], after[0], control)


def make_text(
    lm: DiffusionLM, config: TextConfig, folder: Path, seed: int, progress: Callable[[int], None] = lambda tokens: None
) -> None:
    """Writes shards of dialogues, held-NNNN then train-NNNN, until there are as many tokens as asked for.

    A shard is a function of (seed, its kind and number) alone: a run that was cut off makes those that are
    missing, and more tokens add shards. progress is told how many tokens there are, those being written
    included. Raises UnmaskError where the base cannot write dialogues and where the folder holds other text.
    """
    around = Surroundings.of(lm)
    template = len(around.before) + len(around.between)
    if min(config.length, lm.config.max_length) < template + 2:
        raise UnmaskError(
            f"the template of model '{lm.name}' alone takes {template} tokens: a dialogue of {config.length} has no "
            "room for a turn and its answer; raise data.length"
        )
    _claim(folder, lm.name, config, seed)
    sizes = {path.name: len(read_shard(path)["ids"]) for path in sorted(folder.glob("*.safetensors"))}
    progress(sum(sizes.values()))
    for kind, wanted in zip(KINDS, (config.held_tokens, config.tokens), strict=True):
        made = number = 0
        while made < wanted:
            name = f"{kind}-{number:04d}.safetensors"
            if name not in sizes:
                rng = np.random.default_rng([seed, KINDS.index(kind), number])
                dialogues = _Writer(lm, config, around, rng, progress, sum(sizes.values())).dialogues()
                write_shard(folder / name, dialogues)
                sizes[name] = sum(len(ids) for ids, _ in dialogues)
                progress(sum(sizes.values()))
            made += sizes[name]
            number += 1


def _claim(folder: Path, base: str, config: TextConfig, seed: int) -> None:
    """Says in the folder what its shards are made with, or refuses one whose shards are others."""
    amount = ("tokens", "held_tokens")
    settings = {"base": base, "seed": seed, **{k: v for k, v in asdict(config).items() if k not in amount}}
    text = json.dumps(settings, indent=2) + "\n"
    path = folder / SETTINGS
    if path.is_file():
        if read_json(path) != json.loads(text):
            raise UnmaskError(f"{folder} holds text of another base, seed or sampling; choose another --output")
        return
    if shards := sorted(folder.glob("*.safetensors")):
        raise UnmaskError(f"{folder} holds text made elsewhere ({shards[0].name}); train on it with --stage train")
    write_text(path, text)


@dataclass(frozen=True)
class _Writer:
    """Writes one shard; rng is the shard's own, done the tokens of all others."""

    lm: DiffusionLM
    config: TextConfig
    around: Surroundings
    rng: np.random.Generator
    progress: Callable[[int], None]
    done: int

    def dialogues(self) -> list[tuple[list[int], int]]:
        """The ids of each dialogue and where its answer starts."""
        for _ in range(ROUNDS):
            prompts = [[*self.around.before, *turn, *self.around.between] for turn in self.turns()]
            answered = self.answered(prompts) if prompts else []
            if answered:
                return answered
        tries = f"{ROUNDS * self.config.batch} tries: it ends no turn within {self.config.turn} tokens or says nothing"
        raise UnmaskError(f"model '{self.lm.name}' wrote no dialogue in {tries}; take a base made to chat")

    def turns(self) -> list[list[int]]:
        """User's turns that say something, ended in time and hold no control token."""
        config = self.config
        around = self.around
        tokenizer = self.lm.tokenizer
        assert tokenizer is not None
        length = min(config.length, self.lm.config.max_length)
        most = min(config.turn, length - len(around.before) - len(around.between) - 1)
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in config.openings]
        openings = [ids[i] for i in self.rng.integers(len(ids), size=config.batch)]
        prompts = [[*around.before, *opening] for opening in openings]
        turns = []
        written = self.sample(prompts, most + 1, config.turn_temperature, config.turn_top_k)
        for opening, more in zip(openings, written, strict=True):
            turn = [*opening, *more]
            end = next((i for i, token in enumerate(turn) if token in around.control), 0)
            if end and turn[end] == around.turn_end and end <= most:
                turns.append(turn[:end])
        return turns

    def answered(self, prompts: list[list[int]]) -> list[tuple[list[int], int]]:
        """The prompts with the answers that say something."""
        config = self.config
        sizes = [len(prompt) for prompt in prompts]
        # all rows are given the same room, so the longest may go on for longer than a dialogue: that is cut
        room = min(config.length - min(sizes), self.lm.config.max_length - max(sizes))
        written = self.done + sum(sizes)

        def count(frame: Frame) -> None:
            nonlocal written
            written += len(frame.positions)
            self.progress(written)

        answers = self.sample(prompts, room, config.answer_temperature, config.answer_top_k, count)
        dialogues = []
        for prompt, answer in zip(prompts, answers, strict=True):
            answer = answer[: config.length - len(prompt)]
            end = next((i for i, token in enumerate(answer) if token in self.around.control), len(answer))
            answer = answer[: end + (answer[end : end + 1] == [self.around.answer_end])]
            if answer:
                dialogues.append(([*prompt, *answer], len(prompt)))
        return dialogues

    def sample(
        self,
        prompts: list[list[int]],
        room: int,
        temperature: float,
        top_k: int,
        streamer: Callable[[Frame], None] | None = None,
    ) -> list[list[int]]:
        """What the base writes after each prompt, its end-of-text token included where it came to one."""
        seed = int(self.rng.integers(2**62))
        outputs = self.lm.generate(
            prompts, room, mode="ar", temperature=temperature, top_k=top_k, top_p=1.0, seed=seed, streamer=streamer
        )
        mask = self.lm.config.mask_token_id
        written = []
        for prompt, output in zip(prompts, outputs, strict=True):
            ids = output.written[len(prompt) :].tolist()
            written.append(ids[: ids.index(mask)] if mask in ids else ids)
        return written
