"""A generation under way and what it gives: the objects behind generate, stream and fill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.canvas import Array, Frame
from unmask.decoding.detokenize import text_after
from unmask.decoding.loop import Decoder
from unmask.decoding.stops import cut

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor


@dataclass(frozen=True)
class Output:
    """What a request gave."""

    text: str  # generated part up to end of text or a stop string
    token_ids: list[int]  # generated part up to end of text
    written: Array  # whole canvas after the last step, prompt included, int64 [L]
    first: Array  # the canvas before the first step
    steps: int  # forward passes (NFE)
    frames: list[Frame]
    seed: int
    accepted: tuple[int, ...] = ()  # in mode verify: drafts that held, at each step

    @property
    def canvas(self) -> Tensor:
        """The whole canvas, prompt included, LongTensor [L]."""
        import torch

        return torch.from_numpy(self.written)

    @property
    def first_canvas(self) -> Tensor:
        """The canvas before the first step, LongTensor [L]."""
        import torch

        return torch.from_numpy(self.first)

    @property
    def tokens_per_step(self) -> float:
        return len(self.token_ids) / max(1, self.steps)


@dataclass(frozen=True)
class Filled(Output):
    """A filled template: `text` is all of it, `gaps` what was written into each gap."""

    gaps: tuple[str, ...] = ()


def up_to_end(written: list[int], eos_ids: frozenset[int], mask_id: int) -> list[int]:
    """What counts of written tokens: nothing from an end of text on; masks are left only behind one, or where a
    stop string cut in."""
    ends = (i for i, token in enumerate(written) if token in eos_ids or token == mask_id)
    return written[: next(ends, len(written))]


class Run:
    """Requests being decoded. Iterate `frames`, then ask for `outputs`."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer | None, stops: list[str]) -> None:
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.stops = stops
        self.first = decoder.canvas
        self.seen: list[list[Frame]] = [[] for _ in decoder.requests]
        self.done = False

    @property
    def first_canvas(self) -> list[int]:
        """Ids of the first request before any step."""
        return self.first.ids[0].tolist()

    def frames(self) -> Iterator[Frame]:
        """Decodes, giving each frame as it is made."""
        for step in self.decoder.run():
            for frame in step:
                self.seen[frame.row].append(frame)
                yield frame
        self.done = True

    def text_so_far(self) -> str:
        """What the first request has written from the left without a gap; nothing without a tokenizer."""
        return self._text(0, self._written(0))

    def _text(self, number: int, ids: list[int]) -> str:
        """The text of what a request has written, as it stands behind its prompt."""
        row = self.decoder.rows[number]
        prompt = row.canvas.ids[0, : row.request.given.index(False)].tolist()
        return "" if self.tokenizer is None else text_after(self.tokenizer, prompt, ids)

    def _written(self, number: int) -> list[int]:
        """What a request has written from the left, up to end of text and to what was asked for."""
        row = self.decoder.rows[number]
        written = row.canvas.ids[0, row.request.given.index(False) : row.edge].tolist()
        ends = [i for i, token in enumerate(written) if token in self.decoder.eos_ids]
        return written[: min([*ends, row.request.wanted or len(written)])]

    def outputs(self) -> list[Output]:
        """Decodes what is not decoded yet and returns every request's result."""
        for _ in self.frames():
            pass
        return [self._output(row) for row in range(len(self.decoder.requests))]

    def _output(self, row: int) -> Output:
        decoded = self.decoder.rows[row]
        canvas = decoded.canvas.ids[0]
        ids = self._written(row)  # noise is left only where an end of text or a stop string cut in
        return Output(
            text=cut(self._text(row, ids), self.stops),
            token_ids=ids,
            written=canvas.copy(),
            first=self.first.ids[row, : len(canvas)].copy(),
            steps=decoded.forwards,
            frames=self.seen[row],
            seed=decoded.request.seed,
            accepted=tuple(decoded.accepted),
        )
