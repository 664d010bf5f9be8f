"""The playground in a real Chromium, with the shipped austen pair and with small networks."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from live_server import Live

from unmask.canvas import Frame
from unmask.evaluation.sudoku import read_grid, solutions
from unmask.lm import DiffusionLM
from unmask.serving.api.access import local_hosts
from unmask.serving.api.settings import Settings

pytestmark = pytest.mark.browser
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
DRAWN = "() => new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)))"
DONE = "n => [...document.querySelectorAll('.state')].filter(s => s.dataset.state === 'done').length >= n"

FRAMES = "n => [...document.querySelectorAll('[data-part=time]')].every(slider => Number(slider.max) >= n)"
IN_SIGHT = """() => {
    const composer = document.querySelector(".composer").getBoundingClientRect();
    const canvases = [...document.querySelectorAll(".canvas")].map((canvas) => canvas.getBoundingClientRect());
    const between = ({ top, bottom }) => top >= 0 && bottom <= composer.top;
    return composer.bottom <= innerHeight + 1 && canvases.every(between);
}"""
WRITTEN = "n => document.querySelectorAll('.canvas .written').length >= n"


@dataclass
class Opened:
    """A page, the origin that it came from, and what went wrong on it."""

    page: Any
    origin: str
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()  # parts of errors that the test provokes

    def run(self, sides: int = 2) -> None:
        self.page.click("#run")
        self.done(sides)

    def done(self, sides: int = 2) -> None:
        self.page.wait_for_function(DONE, arg=sides)
        self.page.wait_for_function("() => document.querySelector('#run').ariaDisabled === 'false'")

    def side(self, name: str) -> Any:
        """The side as it is drawn: what was pressed before is on the page with the next frame, not at once."""
        self.page.evaluate(DRAWN)
        return self.page.locator(f"article[aria-label='Side {name}']")

    def text(self, name: str) -> str:
        return str(self.side(name).locator("[data-part=canvas]").text_content())

    def count(self, name: str, selector: str) -> int:
        return int(self.side(name).locator(f"[data-part=canvas] {selector}").count())

    def drag(self, name: str, to: int) -> None:
        """Moves the timeline as a person's drag does."""
        slider = self.side(name).locator("[data-part=time]")
        box, last = slider.bounding_box(), int(slider.get_attribute("max"))
        y = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + box["width"] - 8, y)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + 8 + (box["width"] - 16) * to / last, y, steps=6)
        self.page.mouse.up()

    def scrolls_sideways(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install 'unmask[browser]'"
    )
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium; on Debian: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Opens the page of a server; afterwards no script may have failed and nothing been asked of anybody else."""
    made: list[tuple[Any, Opened]] = []

    def opening(live: Live, connected: bool = True, expected: tuple[str, ...] = (), **options: Any) -> Opened:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        origin = f"http://127.0.0.1:{live.port}"
        opened = Opened(context.new_page(), origin, expected=expected)
        opened.page.set_default_timeout(60_000)
        opened.page.on("console", lambda m: opened.errors.append(m.text) if m.type in ("error", "warning") else None)
        opened.page.on("pageerror", lambda e: opened.errors.append(str(e)))
        outside = opened.strangers
        opened.page.on("request", lambda r: None if r.url.startswith(f"{origin}/") else outside.append(r.url))
        opened.page.goto(f"{origin}/")
        if connected:
            opened.page.wait_for_selector("#run[aria-disabled=false]")
        made.append((context, opened))
        return opened

    yield opening
    for context, opened in made:
        context.close()
        assert not opened.strangers
        assert not [text for text in opened.errors if not any(part in text for part in opened.expected)]


@pytest.fixture(scope="module")
def pair(start: Any) -> Live:
    live: Live = start(models={name: DiffusionLM.from_pretrained(name) for name in ("austen", "austen-ar")})
    return live


@pytest.fixture(scope="module")
def sudoku(start: Any) -> Live:
    live: Live = start(models={"sudoku": DiffusionLM.from_pretrained("sudoku")})
    return live


def copied(page: Any, button: str) -> str:
    """What a button puts on the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(button)
    page.wait_for_function("b => document.querySelector(b).textContent === 'Copied'", arg=button)
    return str(page.evaluate("navigator.clipboard.readText()"))


def select(page: Any, canvas: str, word: str) -> None:
    """Marks a word of a result as a person's double click does."""
    page.evaluate(
        """([canvas, word]) => {
            const parts = [...document.querySelectorAll(`${canvas} i`)].map((part) => part.firstChild).filter(Boolean);
            const node = parts.find((part) => part.data === word);
            getSelection().setBaseAndExtent(node, 0, node, word.length);
        }""",
        [canvas, word],
    )


def test_the_page_opens_on_what_diffusion_is(pair: Live, visit: Any) -> None:
    opened = visit(pair)
    page = opened.page
    assert (opened.count("A", ".mask"), opened.count("B", ".mask")) == (1, 96)
    assert opened.text("A") == opened.text("B") == "Emma was"
    assert "A writes one token after another; B begins with a canvas of masks" in page.text_content("#standing")
    assert page.locator("#examples button").all_text_contents() == ["Go on with a novel", "Fill gaps", "Begin a letter"]
    page.fill("#set-max_tokens", "40")
    assert opened.count("B", ".mask") == 40
    page.click("text=Fill gaps")
    assert opened.count("A", ".mask") == 6
    assert opened.text("A") == "Mr. Darcy was , and Elizabeth ."
    assert page.locator("#marks mark").all_text_contents() == ["[[mask:2-6]]", "[[mask:4]]"]


def test_colours_fade_when_a_text_is_done(pair: Live, visit: Any) -> None:
    opened = visit(pair)
    page = opened.page
    page.fill("#set-max_tokens", "24")
    page.fill("#set-seed", "7")
    opened.run()
    coloured = """() => [...document.querySelectorAll('article:nth-child(2) .canvas i')].some((part) => {
        const {backgroundColor, outlineColor} = getComputedStyle(part);
        const clear = (colour) => colour.endsWith(', 0)');
        return !clear(backgroundColor) || (part.closest('.fresh') && !clear(outlineColor));
    })"""
    page.mouse.move(5, 5)
    page.wait_for_function(f"() => !({coloured})()")
    opened.side("B").locator(".canvas").hover()
    page.wait_for_function(coloured)
    page.mouse.move(5, 5)
    page.wait_for_function(f"() => !({coloured})()")
    opened.side("B").locator("[data-part=time]").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(coloured)


def test_drawing_is_held_to_twenty_pictures_a_second(pair: Live, visit: Any) -> None:
    opened = visit(pair)
    page = opened.page
    page.fill("#set-max_tokens", "120")
    page.fill("#set-seed", "7")
    page.evaluate(
        """() => {
            window.times = [];
            const seen = new MutationObserver(() => times.push(performance.now()));
            seen.observe(document.querySelector('[data-part=place]'), {childList: true});
        }"""
    )
    with pair.gated(pause=0.01):
        opened.run()
    times = page.evaluate("times")
    assert len(times) > 4
    assert len(times) <= (times[-1] - times[0]) / 50 + 5  # the first and the last do not wait


def test_a_request_as_a_program_does_what_the_page_did(pair: Live, visit: Any, capsys: Any) -> None:
    opened = visit(pair)
    page = opened.page
    page.fill("#set-max_tokens", "12")
    page.fill("#set-seed", "3")
    page.fill("#set-temperature", "0.5")
    for prompt, sides in (('It\'s "Emma"', 2), ("Mr. Darcy's [[mask:2]] was", 1)):
        page.fill("#prompt", prompt)
        if sides == 2:
            opened.side("B").locator("[data-part=code] summary").click()
        opened.run(sides)
        wanted = opened.text("B").removeprefix(prompt)
        curl, python = opened.side("B").locator("[data-part=code] pre").all_text_contents()
        answer = subprocess.run(["sh", "-c", curl], capture_output=True, check=True, timeout=300).stdout
        assert json.loads(answer)["choices"][0]["text"] == wanted
        exec(compile(python, "shown", "exec"), {})
        assert capsys.readouterr().out.rstrip("\n") == wanted.rstrip("\n")


def test_a_link_carries_what_is_chosen(pair: Live, visit: Any) -> None:
    opened = visit(pair)
    page = opened.page
    page.fill("#prompt", "Emma & [[mask:2-3]] + 100% #é")
    page.fill("#set-temperature", "0.25")
    page.locator(".more summary").click()
    page.select_option("#set-rule", "quota")
    page.select_option("#order", "turn")
    opened.side("A").locator("[data-part=model]").select_option("")
    link = copied(page, "#link")
    other = visit(pair)
    other.page.goto(link)
    other.page.reload()
    other.page.wait_for_selector("#run[aria-disabled=false]")
    shown = [other.page.input_value(f"#{name}") for name in ("prompt", "set-temperature", "set-rule", "order")]
    assert shown == ["Emma & [[mask:2-3]] + 100% #é", "0.25", "quota", "turn"]
    assert other.side("A").locator("[data-part=model]").input_value() == ""
    assert other.side("B").locator("[data-part=model]").input_value() == "austen"


def test_a_gap_is_made_in_a_result(pair: Live, visit: Any) -> None:
    opened = visit(pair)
    page = opened.page
    page.fill("#set-max_tokens", "24")
    page.fill("#set-seed", "7")
    opened.run()
    whole = opened.text("B")
    word = next(
        w for w in opened.side("B").locator(".canvas i").all_text_contents() if len(w) > 2 and whole.count(w) == 1
    )
    select(page, "article:nth-child(2) .canvas", word)
    page.click("#gap")
    assert page.input_value("#prompt") == whole.replace(word, "[[mask:1-4]]")
    assert f"“{word}” is now gap 1" in page.text_content("#said")


def test_code_is_in_monospace(live: Live, visit: Any) -> None:
    got = visit(live).page.evaluate(
        """async (texts) => {
            const {CanvasView} = await import('/playground/canvas.js');
            const {MASK} = await import('/playground/frames.js');
            const view = new CanvasView(document.createElement('div'));
            view.show(texts.map((text) => ({...MASK, text, state: text === null ? 'mask' : 'written'})), 0);
            return view.spans.map((span) => span.classList.contains('code'));
        }""",
        ["See", " `", "x", "`", ":\n", "```", "py\n", None, "\n``", "`", " so"],
    )
    assert got == [False, True, True, True, False, True, True, True, True, True, False]


def test_a_sudoku_is_filled_as_a_grid(sudoku: Live, visit: Any) -> None:
    opened = visit(sudoku)
    page = opened.page
    puzzle = page.input_value("#prompt")
    blanks = puzzle.count(".")
    assert opened.count("A", ".mask") == blanks
    assert page.locator(".canvas.cells span").count() == 81
    opened.run(1)
    assert opened.text("A") == solutions(read_grid(puzzle))[0]
    assert f"Solved: {blanks} cells in" in opened.side("A").locator(".note").text_content()
    opened.side("A").locator("[data-part=time]").focus()
    page.keyboard.press("Home")
    assert opened.count("A", ".mask") == blanks
    for wrong, told in (
        (puzzle.replace("8", "88", 1), "has 81 cells, the prompt 82"),
        (puzzle.replace(".", "x", 1), "not “x”"),
        (puzzle.replace(".", "8", 1), "The givens clash: 8 stands in row 1, column 1 and in row 1, column 6"),
        ("." * 81, "more than one solution"),
        ("12345678." + "........9" + "." * 63, "no solution"),
    ):
        page.fill("#prompt", wrong)
        page.click("#run")
        assert told in page.text_content("#trouble-text")


@pytest.mark.parametrize("size", [PHONE, {"width": 320, "height": 568}, {"width": 390, "height": 844}])
def test_on_a_phone_both_canvases_are_in_sight_while_they_are_written(pair: Live, visit: Any, size: Any) -> None:
    opened = visit(pair, viewport=size, is_mobile=True, has_touch=True)
    page = opened.page
    with pair.gated(steps=3):
        page.locator("#run").tap()
        page.wait_for_function(FRAMES, arg=3)
        assert page.locator("#stop").is_visible()
        page.wait_for_function(IN_SIGHT)  # the page may still be on its way there
    opened.done()


def test_both_sides_are_written_and_the_timeline_goes_back(pair: Live, visit: Any) -> None:
    opened = visit(pair)
    page = opened.page
    assert (page.input_value("#prompt"), page.input_value("#set-max_tokens")) == ("Emma was", "96")
    page.fill("#prompt", "It is a truth")
    page.fill("#set-max_tokens", "40")
    page.fill("#set-seed", "7")
    with pair.gated(steps=1) as gate:  # so that neither side is done while the other has hardly begun
        page.click("#run")
        page.wait_for_function(FRAMES, arg=1)
        gate.steps = 16
        page.wait_for_function(FRAMES, arg=16)
        gate.steps = 40
        opened.done()
    for side, steps in (("A", 40), ("B", 32)):
        slider = opened.side(side).locator("[data-part=time]")
        assert int(slider.get_attribute("max")) == steps
        assert opened.side(side).locator("[data-figure=steps]").text_content() == str(steps)
        assert opened.side(side).locator("[data-figure=tokens]").text_content() == "40"
        assert opened.count(side, ".mask") == 0
        assert opened.count(side, "i") == 40
    lm = pair.models["austen"]
    whole = lm.generate("It is a truth", max_new_tokens=40, seed=7)
    assert opened.text("B") == "It is a truth" + whole.text
    assert "times as fast" in page.text_content("#standing") or "as fast as" in page.text_content("#standing")

    opened.drag("B", 12)
    at = int(opened.side("B").locator("[data-part=time]").input_value())
    assert 9 <= at <= 15
    canvas = lm.prepare([lm.tokenizer.encode("It is a truth").ids], 40, seed=7).requests[0].ids
    for frame in whole.frames[:at]:
        canvas = frame.written(canvas, lm.config.mask_token_id)
    masks = canvas[-40:].count(lm.config.mask_token_id)
    assert masks > 0
    assert opened.count("B", ".mask") == masks
    assert opened.count("B", ".written") == 40 - masks
    assert opened.count("B", ".fresh") == len(set(whole.frames[at - 1].positions))
    assert "positions" in page.text_content("#standing")  # the linked timeline followed
    assert 1 <= int(opened.side("A").locator("[data-part=time]").input_value()) <= 16
    opened.side("B").locator("[data-part=changes] summary").click()
    assert opened.side("B").locator("tbody tr").count() == len(whole.frames[at - 1].positions)
    opened.side("B").locator("[data-part=play]").click()
    page.wait_for_function("() => document.querySelectorAll('[data-part=place]')[1].textContent === 'step 32 of 32'")
    assert opened.text("B") == "It is a truth" + whole.text


def test_frames_are_shown_as_they_come_and_stop_ends_the_run(pair: Live, visit: Any) -> None:
    opened = visit(pair)
    page = opened.page
    page.locator("article").nth(1).locator("[data-part=model]").select_option("")
    page.fill("#set-max_tokens", "480")
    page.fill("#set-seed", "7")
    with pair.gated(steps=5) as gate:
        page.click("#run")
        page.wait_for_function(WRITTEN, arg=5)
        assert opened.side("A").locator(".state").text_content() == "writing"
        assert opened.count("A", ".written") == 5
        gate.steps = 12
        page.wait_for_function(WRITTEN, arg=12)
        page.click("#stop")
        page.wait_for_function("() => document.querySelector('.state').dataset.state === 'stopped'")
        pair.idle()
    kept = opened.count("A", ".written")
    assert kept == 12
    slider = opened.side("A").locator("[data-part=time]")
    slider.focus()
    page.keyboard.press("Home")
    assert opened.count("A", ".written") == 0
    page.keyboard.press("End")
    assert opened.count("A", ".written") == kept


def test_slowly_played_and_replayed(pair: Live, visit: Any) -> None:
    opened = visit(pair)
    page = opened.page
    page.fill("#set-max_tokens", "16")
    page.fill("#set-seed", "7")
    page.select_option("#order", "turn")
    page.select_option("#speed", "0.1")
    with pair.gated(pause=0.05):  # a run of 0.6 s at least, played for 6
        opened.run()
    assert opened.count("B", ".mask") > 2  # held back, though all has come
    page.select_option("#speed", "1")
    page.click("#replay")
    page.wait_for_function("() => document.querySelector('#standing').textContent.includes('tokens/s')")
    assert "shared the machine" not in page.text_content("#standing")
    assert opened.count("A", ".mask") == opened.count("B", ".mask") == 0


def test_selected_text_becomes_a_gap_and_is_filled(pair: Live, visit: Any) -> None:
    opened = visit(pair)
    page = opened.page
    page.fill("#prompt", "Mr. Darcy was rich, and Elizabeth walked.")
    for word in ("rich", "walked"):
        page.evaluate(
            "w => { const a = document.querySelector('#prompt'); const i = a.value.indexOf(w);"
            " a.focus(); a.setSelectionRange(i, i + w.length + 0); }",
            word,
        )
        page.click("#gap")
    assert page.input_value("#prompt") == "Mr. Darcy was [[mask:1-4]], and Elizabeth [[mask:1-4]]."
    page.locator("#gaps li").nth(1).locator("input").nth(1).fill("2")
    template = "Mr. Darcy was [[mask:1-4]], and Elizabeth [[mask:1-2]]."
    assert page.input_value("#prompt") == template
    assert page.is_disabled("#set-block_length")
    page.fill("#set-seed", "3")
    assert page.text_content("#run-text") == "Fill"
    opened.run(1)
    filled = pair.models["austen"].fill(template, seed=3)
    assert opened.text("B") == filled.text
    written = opened.side("B").locator(".canvas .written").all_text_contents()
    assert "".join(written).split() == "".join(filled.gaps).split()
    assert "cannot fill" in opened.side("A").locator(".note").text_content()
    opened.side("B").locator("[data-part=time]").focus()
    page.keyboard.press("Home")
    assert opened.count("B", ".mask") == len(filled.token_ids)
    assert opened.text("B").startswith("Mr. Darcy was,")
    page.locator("#gaps button").first.click()
    assert page.input_value("#prompt").startswith("Mr. Darcy was rich, and")


def test_what_a_side_does_not_read_is_disabled_and_not_sent(live: Live, visit: Any) -> None:
    opened = visit(live, expected=("400",))
    page = opened.page
    sent: list[dict[str, Any]] = []
    page.on("request", lambda r: sent.append(json.loads(r.post_data)) if r.method == "POST" else None)
    assert opened.side("A").locator("[data-part=mode]").input_value() == "ar"
    assert not page.is_disabled("#set-threshold")
    page.fill("#set-threshold", "0.5")
    page.fill("#set-block_length", "2")
    page.fill("#set-max_tokens", "8")
    page.fill("#prompt", "the cat sat")
    opened.run()
    by_mode = {body["mode"]: body for body in sent}
    assert by_mode["diffusion"]["threshold"] == 0.5
    assert {"threshold", "block_length"}.isdisjoint(by_mode["ar"])
    assert all("messages" in body for body in sent)
    for name in ("A", "B"):
        opened.side(name).locator("[data-part=mode]").select_option("verify")
    assert page.is_disabled("#set-threshold")
    assert page.is_disabled("#set-max_denoising_steps")
    sent.clear()
    page.uncheck("#chat")
    opened.run()
    assert all("threshold" not in body and body["block_length"] == 2 and "prompt" in body for body in sent)
    page.fill("#set-temperature", "7")
    page.click("#run")
    page.wait_for_selector("#trouble:visible")
    told = page.text_content("#trouble-text")
    assert told.startswith("A and B: ")  # once, although both were refused
    assert told.count("temperature") == 1
    assert page.is_hidden("#again")
    assert page.get_attribute("#set-temperature", "aria-invalid") == "true"
    page.fill("#set-temperature", "")
    opened.run()
    assert page.locator(".trouble:visible").count() == 0


def test_a_gap_brings_a_model_that_fills(live: Live, visit: Any) -> None:
    opened = visit(live)
    page = opened.page
    page.fill("#prompt", "the cat sat")
    page.focus("#prompt")
    page.keyboard.press("End")
    page.keyboard.press("Shift+Control+ArrowLeft")
    page.click("#gap")
    assert page.input_value("#prompt") == "the cat [[mask:1-4]]"
    assert "“sat” is now gap 1" in page.text_content("#said")
    assert "Side B is now canvas" in page.text_content("#said")
    page.focus("#prompt")
    page.keyboard.press("Control+Z")
    assert page.input_value("#prompt") == "the cat sat"
    page.keyboard.press("Control+Shift+Z")
    opened.run(1)
    assert opened.text("B").startswith("the cat")


@pytest.mark.parametrize("model", ["canvas", "left", "blocks", "talker", "noisy"])
def test_every_kind_of_model_ends_on_the_text_that_was_streamed(live: Live, visit: Any, model: str) -> None:
    opened = visit(live)
    page = opened.page
    opened.side("A").locator("[data-part=model]").select_option(model)
    opened.side("B").locator("[data-part=model]").select_option("")
    page.locator("summary", has_text="More").click()
    page.fill("#prompt", "w1 w2" if model == "noisy" else "the cat")
    page.fill("#set-max_tokens", "24")
    page.fill("#set-seed", "5")
    if model == "blocks":
        page.select_option("#set-rule", "token_edit")
        page.fill("#set-editing_threshold", "0")
    if model == "talker":
        page.uncheck("#chat")
    opened.run(1)
    body: dict[str, Any] = {"model": model, "prompt": page.input_value("#prompt"), "max_tokens": 24, "seed": 5}
    if model == "blocks":
        body |= {"rule": "token_edit", "editing_threshold": 0.0}
        assert opened.side("A").locator(".canvas .edit").count() > 0
    _, reply = live.send("/v1/completions", body)
    assert opened.text("A") == body["prompt"] + reply["choices"][0]["text"]


def test_frames_are_replayed_as_the_library_does(live: Live, visit: Any) -> None:
    draw, length, mask = random.Random(0), 40, 0
    frames = []
    for step in range(1, 90):
        positions = draw.sample(range(length), draw.randint(1, 6))
        kinds = [draw.choice(["unmask", "edit", "remask", "insert", "delete"]) for _ in positions]
        tokens = [mask if kind in ("remask", "insert") else draw.randint(1, 99) for kind in kinds]
        moves = any(kind in ("insert", "delete") for kind in kinds)
        end = max(positions) + 1 if moves else 0
        frames.append(Frame(step, tuple(positions), tuple(tokens), (0.5,) * len(tokens), tuple(kinds), end=end))  # type: ignore[arg-type]
    canvas, wanted = [mask] * length, []
    for frame in frames:
        canvas = frame.written(canvas, mask)
        wanted.append([None if token == mask else str(token) for token in canvas])
    sent = [{**frame.to_dict(), "texts": [str(token) for token in frame.tokens]} for frame in frames]
    got = visit(live).page.evaluate(
        """async ({sent, length}) => {
            const {Recording} = await import('/playground/frames.js');
            const made = new Recording(Array(length).fill(null), false), live = [];
            for (const frame of sent) { made.add(frame, frame.step); live.push(made.last.map((cell) => cell.text)); }
            return [live, sent.map((_, i) => made.at(i + 1).map((cell) => cell.text)), made.countBy(33)];
        }""",
        {"sent": sent, "length": length},
    )
    assert got == [wanted, wanted, 33]


def test_characters_that_tokens_share_come_out_whole(live: Live, visit: Any) -> None:
    cells = [["a", "a"], ["\ufffd", " ☕"], ["\ufffd", ""], [" b", " b"], ["c", " c"], ["\ufffd", "é"]]
    got = visit(live).page.evaluate(
        """async (texts) => {
            const {align} = await import('/playground/frames.js');
            const cells = texts.map((text) => ({text}));
            align(cells, 'a ☕ b cé');
            return cells.map((cell) => cell.text);
        }""",
        [cell[0] for cell in cells],
    )
    assert got == [cell[1] for cell in cells]


def _answer(answer: dict[str, Any] | None, route: Any) -> None:
    route.fulfill(**answer) if answer else route.abort()


def test_trouble_is_told(pair: Live, visit: Any) -> None:
    opened = visit(pair, expected=("ERR_FAILED", "429"))
    page = opened.page
    opened.side("B").locator("[data-part=model]").select_option("")
    canvas = '{"seed": 1, "choices": [{"index": 0, "text": "", "canvas": {"texts": [null, null]}}]}'
    failing = '{"error": {"message": "the model failed", "type": "server_error", "param": null, "code": null}}'
    full = '{"error": {"message": "all slots are taken", "type": "server_busy", "param": null, "code": null}}'
    for answer, told in (
        (None, "cannot be reached"),
        ({"status": 200, "content_type": "text/event-stream", "body": f"data: {canvas}\n\n"}, "connection broke"),
        ({"status": 200, "content_type": "text/event-stream", "body": f"data: {failing}\n\n"}, "the model failed"),
        ({"status": 429, "content_type": "application/json", "body": full}, "all slots are taken"),
    ):
        answering = partial(_answer, answer)
        page.route("**/v1/completions", answering)
        page.click("#run")
        page.wait_for_function("t => document.querySelector('#trouble').textContent.includes(t)", arg=told)
        page.wait_for_function("() => document.querySelector('#run').ariaDisabled === 'false'")
        page.unroute("**/v1/completions", answering)
    page.fill("#set-max_tokens", "4")
    opened.run(1)
    assert page.locator(".trouble:visible").count() == 0


def test_a_key_is_asked_for_and_kept_in_memory_only(start: Any, visit: Any) -> None:
    guarded = start(settings=Settings(keys=("open-sesame",), hosts=local_hosts("127.0.0.1")))
    opened = visit(guarded, connected=False, expected=("401",))
    page = opened.page
    page.wait_for_selector("#trouble:visible")
    assert "API key" in page.text_content("#trouble-text")
    assert page.evaluate("document.activeElement.id") == "key"
    box = page.locator("#key-box").bounding_box()
    assert abs(box["x"] + box["width"] / 2 - DESKTOP["width"] / 2) < 2
    assert abs(box["y"] + box["height"] / 2 - DESKTOP["height"] / 2) < 2
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('#key-box').open && document.querySelector('#key').value === ''"
    )
    page.keyboard.type("open-sesame")
    page.keyboard.press("Enter")
    page.wait_for_selector("#run[aria-disabled=false]")
    page.fill("#set-max_tokens", "4")
    opened.run()
    assert "open-sesame" not in copied(page, "#link")
    opened.side("A").locator("[data-part=code] summary").click()
    assert "UNMASK_API_KEY" in opened.side("A").locator("pre").first.text_content()
    assert "open-sesame" not in page.content()
    kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.search]")
    assert kept == [0, 0, "", ""]


def test_a_phone_has_no_sideways_scroll(pair: Live, visit: Any) -> None:
    opened = visit(pair, viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
    page = opened.page
    assert not opened.scrolls_sideways()
    page.locator("#settings > summary").tap()
    page.fill("#set-max_tokens", "40")
    page.locator(".more summary").tap()
    assert not opened.scrolls_sideways()
    page.locator("#settings > summary").tap()
    page.locator("#run").tap()
    opened.done()
    for summary in page.locator("[data-part=changes] summary").all():
        summary.tap()
    assert not opened.scrolls_sideways()
    page.fill("#prompt", "Emma " + "abcdefghij" * 12 + " [[mask:2]] " + "x" * 80)
    assert not opened.scrolls_sideways()
    page.locator("#key-open").tap()
    assert not opened.scrolls_sideways()


def test_the_keyboard_is_enough_and_the_end_is_announced(pair: Live, visit: Any) -> None:
    opened = visit(pair)
    page = opened.page
    page.evaluate("document.querySelector('#set-seed').value = 7")  # a text that does not end early; the focus stays
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to the prompt
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("Control+A")
    page.keyboard.type("She was")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "run":
            break
    page.keyboard.press("Enter")
    opened.done()
    assert opened.text("A").startswith("She was")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.part") == "time":
            break
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert opened.side("A").locator("[data-part=place]").text_content() == "step 1 of 96"
    told = page.locator("#announced p").all_text_contents()
    assert len(told) == 2
    assert all("96 tokens" in text for text in told)
    page.focus("#prompt")
    with pair.gated(steps=0):
        page.keyboard.press("Control+Enter")
        page.wait_for_function("() => document.querySelector('#announced').textContent === ''")
    opened.done()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(pair: Live, visit: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'unmask[browser]'")
    opened = visit(pair, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    page = opened.page
    page.fill("#set-max_tokens", "24")
    page.fill("#set-seed", "7")
    opened.run()
    page.locator(".more summary").click()
    for summary in page.locator("[data-part=changes] summary").all():
        summary.click()
    opened.side("B").locator("[data-part=time]").focus()
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
