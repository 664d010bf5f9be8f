"""From token rows and options to checked requests: what is asked of a model, without its weights."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from unmask.decoding.convention import convention_of
from unmask.decoding.forms import Canvas
from unmask.decoding.infill import Template
from unmask.decoding.methods import BLOCK, DecodingDefaults, Way, choose, read
from unmask.decoding.methods.renoise import noise
from unmask.decoding.request import Prepared, Request
from unmask.decoding.rules import RuleOptions
from unmask.decoding.stops import Stops
from unmask.errors import UnmaskError
from unmask.layout import GROUPED, Layout, LayoutKind
from unmask.models.config import ModelConfig
from unmask.structured.grammar import Grammar


@dataclass(frozen=True)
class Preparer:
    """Makes the requests of one model."""

    name: str
    config: ModelConfig
    defaults: DecodingDefaults

    def write(
        self,
        rows: list[list[int]],
        max_new_tokens: int,
        mode: str | None,
        seed: int | None,
        stops: list[str],
        decode: Callable[[list[int]], str] | None,
        grammars: list[Grammar] | None,
        options: dict[str, Any],
    ) -> Prepared:
        """Requests to write after prompts, one for each row of token ids.

        Args:
            stops: Texts that end an answer; `decode` is needed where there are any.
            grammars: What each row's answer is held to.
            options: Of decoding, by name; what is None comes from the model's defaults.
        """
        if max_new_tokens < 1:
            raise UnmaskError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if self.config.layout in GROUPED and not all(rows):
            raise UnmaskError(f"model '{self.name}' has no start-of-text token; give it a prompt of at least one token")
        if grammars:
            named = ("eos_token_ids", "stop_token_ids", "ignore_eos", "min_tokens")
            for name in filter(options.get, named):
                raise UnmaskError(f"a grammar ends with the model's own ends of text; leave out {name}")
            if stops:
                raise UnmaskError("a stop would cut what a grammar completes; leave out one of them")
        seed = secrets.randbits(31) if seed is None else seed
        way = choose(self.name, self.config, self.defaults, mode, options)
        base = way.request(seed)
        if base.min_tokens > max_new_tokens:
            raise UnmaskError(f"option min_tokens is {base.min_tokens}, more than the {max_new_tokens} new tokens")
        if grammars:
            reason = way.method.no_grammar(way.asked)
            if reason is not None:
                raise UnmaskError(reason)
            convention = replace(base.convention, whole_blocks=False)
            base = replace(base, rule=replace(base.rule, convention=convention))
        requests = [self._request(base, row, max_new_tokens, seed + number) for number, row in enumerate(rows)]
        if grammars:
            for grammar in grammars:
                grammar.check(max_new_tokens)
            requests = [replace(request, grammar=grammar) for request, grammar in zip(requests, grammars, strict=True)]
        if stops and decode is not None:
            requests = [replace(request, stop=Stops(stops, decode)) for request in requests]
        ends = self.ends(way.asked.options)
        return Prepared(requests, self._layout_of(way, base), ends, base.cache != "none", stops)

    def fill(
        self, template: Template, seed: int | None, options: dict[str, Any]
    ) -> Callable[[list[list[int]]], Prepared]:
        """Checks a template and options; gives what makes requests of lists of gap lengths."""
        self._check_fits(template.length(template.longest), "the template with its longest gaps")
        for name, off in (("block_length", None), ("buffer_size", 1)):
            if options.get(name) not in (None, off):
                raise UnmaskError(f"option '{name}' changes nothing here; a template is filled as a whole")
        way = choose(self.name, self.config, self.defaults, None, options)
        base = way.request(secrets.randbits(31) if seed is None else seed)
        layout = self._layout_of(way, base)
        base = replace(base, block_length=None, ends=False)

        def prepare(candidates: list[list[int]]) -> Prepared:
            canvases = [template.canvas(lengths, 0) for lengths in candidates]
            requests = [replace(base, ids=self._noised(ids, given, base.seed), given=given) for ids, given in canvases]
            return Prepared(requests, layout)

        return prepare

    def read(self, canvases: Sequence[Canvas]) -> Prepared:
        """Requests to read canvases without writing, one for each."""
        self._check_fits(max(len(canvas.ids) for canvas in canvases), "the state, its questions and their labels")
        defaults = self.defaults
        layout = self.layout(None if defaults.layout == "auto" else defaults.layout, defaults.block_length)
        convention = convention_of(defaults.convention)
        base = Request([], [], ends=False, block_length=layout.block_length, rule=RuleOptions(convention=convention))
        requests = [
            replace(
                base, ids=canvas.ids, given=canvas.given, method=read.Options(wanted=canvas.wanted, begin=canvas.begin)
            )
            for canvas in canvases
        ]
        return Prepared(requests, layout, self.ends(defaults))

    def room(self, tokens: int) -> int:
        """How many new tokens fit behind a prompt; whole canvases, of a model that writes those."""
        room = self.config.max_length - tokens
        way = choose(self.name, self.config, self.defaults, None, {})
        block = way.request(0).block_length or 1
        return room // block * block if way.method.whole_canvases else room

    def ends(self, options: DecodingDefaults) -> frozenset[int]:
        """Tokens that end a text."""
        own = () if self.config.eos_token_id is None else (self.config.eos_token_id,)
        usual = () if options.ignore_eos else (*own, *options.eos_token_ids)
        return frozenset((*usual, *options.stop_token_ids))

    def layout(self, layout: str | None, block_length: int | None) -> Layout:
        """A layout that the model can be read in, its own where none is named."""
        kind = layout or self.config.layout
        canvas = self.config.layout == "canvas"
        known = ("causal", "canvas") if canvas else ("bidirectional", "causal", "block_causal")
        if layout is not None and layout not in known:
            raise UnmaskError(f"layout '{kind}' is not one of model '{self.name}'; use {', '.join(known)}")
        if self.config.recurrent and kind != self.config.layout:
            raise UnmaskError(
                f"model '{self.name}' has mixers {', '.join(self.config.mixers)} and is read in its own layout, "
                f"'{self.config.layout}'; leave out layout"
            )
        block = block_length or self.config.block_length or BLOCK
        if block < 1:
            raise UnmaskError(f"block_length must be at least 1, got {block}")
        return Layout(cast(LayoutKind, kind), block if kind in ("block_causal", "canvas") else 1)

    def _layout_of(self, way: Way, request: Request) -> Layout:
        asked = way.asked.options.layout
        return self.layout(None if asked == "auto" else asked, request.block_length)

    def _request(self, base: Request, row: list[int], max_new_tokens: int, seed: int) -> Request:
        """A request to write after a prompt; whole canvases, and whole blocks where asked for and there is room."""
        count = max_new_tokens
        block = base.block_length or 1
        if base.method.whole_canvases:
            count = -(-count // block) * block
        elif base.convention.whole_blocks:
            whole = count + -(count if base.convention.blocks_from_prompt else len(row) + count) % block
            count = whole if len(row) + whole <= self.config.max_length else count
        self._check_fits(len(row) + count, f"a prompt of {len(row)} tokens and {count} new ones")
        given = [True] * len(row) + [False] * count
        ids = self._noised(row + [0] * count, given, seed)
        return replace(base, ids=ids, given=given, seed=seed, wanted=max_new_tokens)

    def _check_fits(self, length: int, what: str) -> None:
        room = self.config.max_length
        if length > room:
            raise UnmaskError(f"{what} do not fit the canvas of {room} tokens: {length - room} too many; shorten one")

    def _noised(self, ids: list[int], given: list[bool], seed: int) -> list[int]:
        """The canvas to begin with: masks, or random tokens of the seed, where nothing is given."""
        mask = self.config.mask_token_id
        place = np.arange(len(ids))
        start = noise(seed, 0, place, self.config.vocab_size) if mask is None else np.full(len(ids), mask)
        out: list[int] = np.where(given, ids, start).tolist()
        return out
