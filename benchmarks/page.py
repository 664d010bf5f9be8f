"""`unmask bench page`: what a model keeps of its speed while a browser draws it on the same cores."""

from __future__ import annotations

import http.client
import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer
from benchmarks.own_server import OwnServer, own_server
from benchmarks.speed import PROMPTS
from rich.console import Console

from unmask.cli.options import Json, Served
from unmask.cli.report import report
from unmask.errors import UnmaskError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DONE = "n => [...document.querySelectorAll('.state')].filter(s => s.dataset.state === 'done').length >= n"


def replay(server: OwnServer, sent: tuple[str, str]) -> float:
    """Sends one of the page's requests again and reads the answer to its end; the clock when that came."""
    path, body = sent
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    try:
        client.request("POST", path, body, {"Content-Type": "application/json"})
        client.getresponse().read()
        return time.perf_counter()
    finally:
        client.close()


def run(page: Any, prompt: str) -> tuple[float, list[tuple[str, str]]]:
    """Writes a prompt into the page and runs it: the seconds until the last answer's end, and the requests it sent."""
    sent = list[tuple[str, str]]()
    ended = list[float]()

    def note(request: Any) -> None:
        if request.method == "POST":
            sent.append(("/" + request.url.split("/", 3)[3], request.post_data))

    def finish(request: Any) -> None:
        if request.method == "POST":
            ended.append(time.perf_counter())

    page.on("request", note)
    page.on("requestfinished", finish)
    page.fill("#prompt", prompt)
    began = time.perf_counter()
    page.click("#run")
    page.wait_for_function(DONE, arg=2)
    page.wait_for_function("() => document.querySelector('#run').ariaDisabled === 'false'")
    page.remove_listener("request", note)
    page.remove_listener("requestfinished", finish)
    if not sent or len(ended) < len(sent):
        raise UnmaskError("the page did not answer: its requests did not end")
    return max(ended) - began, sent


def command(
    model: Served = "default",
    rounds: Annotated[int, typer.Option(help="Rounds, each of another prompt, with and without the page.")] = 5,
    as_json: Json = False,
) -> None:
    """Seconds until both sides of the playground are written, drawn by Chromium on the same cores, over the seconds of
    the same requests that nobody draws.

    Example: `unmask bench page default`; needs `pip install 'unmask[browser]'` and Chromium
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UnmaskError("playwright is not installed; pip install 'unmask[browser]'") from error
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise UnmaskError("there is no Chromium; on Debian: apt-get install chromium")
    drawn, alone = list[float](), list[float]()
    options = ["--prefix-mb", "0"]  # the second of two equal requests is read as the first was
    with own_server(model, *options) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(f"http://127.0.0.1:{server.port}/")
        run(page, PROMPTS[0])
        with Console(stderr=True).status("running"), ThreadPoolExecutor(4) as pool:
            for number in range(rounds):
                seconds, sent = run(page, PROMPTS[(number + 1) % len(PROMPTS)])
                drawn.append(seconds)
                began = time.perf_counter()
                alone.append(max(pool.map(lambda one: replay(server, one), sent)) - began)
        browser.close()
    shares = [a / d for a, d in zip(alone, drawn, strict=True)]
    record = {
        "seconds, drawn": round(statistics.median(drawn), 2),
        "seconds, not drawn": round(statistics.median(alone), 2),
        "speed kept": f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})",
    }
    report([record], f"{model}: {rounds} rounds", list(record), [[str(value) for value in record.values()]], as_json)
