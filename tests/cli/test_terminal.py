"""The drawing: what is given, written, fresh and masked can be told apart."""

from __future__ import annotations

import io

from rich.console import Console

from unmask.canvas import Frame
from unmask.cli.terminal import AGAIN, FRESH, GIVEN, MASKED, WRITTEN, CanvasView, replay_side_by_side, watch

MASK = 9
FRAMES = [
    Frame(1, (1, 3), (5, 6), (0.9, 0.8), ("unmask", "unmask")),
    Frame(2, (1, 2), (MASK, 7), (0.9, 0.7), ("remask", "unmask")),
    Frame(3, (1,), (8,), (0.9,), ("unmask",)),
]


def styles(view: CanvasView) -> list[str]:
    return [str(span.style) for span in view.text().spans if str(span.style)]


def test_states_have_their_own_styles() -> None:
    view = CanvasView([0, MASK, MASK, MASK], MASK, None)
    assert styles(view) == [GIVEN, MASKED]
    view.advance(FRAMES[0])
    assert styles(view) == [GIVEN, FRESH, MASKED, FRESH]
    view.advance(FRAMES[1])
    assert styles(view) == [GIVEN, AGAIN, FRESH, WRITTEN]
    assert view.masks() == 1
    view.advance(FRAMES[2])
    view.settle()
    assert styles(view) == [GIVEN, WRITTEN]
    assert view.ids == [0, 8, 7, 6]


def test_random_tokens_are_drawn_as_noise() -> None:
    view = CanvasView([0, 4, 4], None, None)
    view.advance(Frame(1, (1, 2), (5, 6), (0.9, 0.0), ("unmask", "renoise")))
    assert styles(view) == [GIVEN, FRESH, MASKED]
    assert view.masks() == 1
    view.advance(Frame(2, (1, 2), (7, 8), (0.0, 0.8), ("renoise", "unmask")))
    assert styles(view) == [GIVEN, MASKED, FRESH]
    view.advance(Frame(3, (1, 2), (7, 8), (0.9, 0.8), ("unmask", "unmask")))
    view.settle()
    assert styles(view) == [GIVEN, WRITTEN]
    assert view.masks() == 0


def test_a_literal_mask_in_the_prompt_is_not_drawn_as_a_hole() -> None:
    view = CanvasView([MASK, MASK], MASK, None)
    view.open[0] = False
    assert view.text().plain.startswith("9 ")


def test_watching_ends_with_the_finished_canvas() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60)
    watch(CanvasView([0, MASK, MASK, MASK], MASK, None), FRAMES, console, "toy")
    assert "done" in out.getvalue()


def test_replay_side_by_side_shows_both() -> None:
    out = io.StringIO()
    moments = [(0.001 * i, frame) for i, frame in enumerate(FRAMES)]
    views = [(name, CanvasView([0, MASK, MASK, MASK], MASK, None), moments) for name in ("left", "right")]
    replay_side_by_side(views, Console(file=out, force_terminal=True, width=80))
    assert "left" in out.getvalue()
    assert "right" in out.getvalue()
