"""The playground's files as they are served, and what /v1/models offers it. In a browser: test_playground."""

from __future__ import annotations

import http.client
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from live_server import Live

from unmask.serving.api.access import local_hosts
from unmask.serving.api.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "src" / "unmask" / "serving" / "playground"
FILES = {file.name for file in FOLDER.iterdir()}
BASE = "/playground/"


def fetch(live: Live, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_page_and_its_files_have_the_right_headers(live: Live) -> None:
    paths = {"/": "index.html", **{BASE + name: name for name in FILES}}
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for path, name in paths.items():
        answer, body = fetch(live, path)
        assert (answer.status, body) == (200, (FOLDER / name).read_bytes())
        assert answer.headers["Content-Type"].partition(";")[0] == kinds[name.rpartition(".")[2]]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["Cache-Control"] == "no-cache"
        head, nothing = fetch(live, path, "HEAD")
        assert (head.status, nothing, head.headers["Content-Length"]) == (200, b"", str(len(body)))
        for tag in (answer.headers["ETag"], f'"other", W/{answer.headers["ETag"]}'):
            again, nothing = fetch(live, path, **{"If-None-Match": tag})
            assert (again.status, nothing) == (304, b"")
        assert fetch(live, path, **{"If-None-Match": '"other"'})[0].status == 200


@pytest.mark.parametrize(
    "path",
    ["/playground", "/playground/", "/playground/none.js", "/playground/../app.py", "/playground/%2e%2e/app.py", "/x"],
)
def test_unknown_paths_are_404(live: Live, path: str) -> None:
    assert fetch(live, path)[0].status == 404


def test_the_page_needs_no_key_and_shows_nothing_without(start: Any) -> None:
    guarded = start(settings=Settings(keys=("open-sesame",), hosts=local_hosts("127.0.0.1")))
    for path in ("/", "/playground/main.js", "/health", "/docs", "/openapi.json", "/version"):
        assert fetch(guarded, path)[0].status == 200
    for path in ("/v1/models", "/metrics", "/nothing", "//"):
        assert fetch(guarded, path)[0].status == 401
    assert fetch(guarded, "/", "POST")[0].status == 401
    assert fetch(guarded, "/", Host="evil.example")[0].status == 421


def test_every_file_is_packaged_and_nothing_is_loaded_from_elsewhere() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert {file.name for file in files} == FILES
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["unmask"]
    for file in files:
        path = file.relative_to(ROOT / "src" / "unmask").as_posix()
        assert any(fnmatch(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns), path
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|@import|url\(|//[a-z]+\.", text), path
        for name in re.findall(r'(?:from|src=|href=) ?"(?:\./|playground/)([^"]+)"', text):
            assert name in FILES
    index = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|<style| style=| on[a-z]+=", index)  # the policy forbids them


TRIED: dict[str, Any] = {  # a value of each field that is fine wherever the field is read at all
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 8,
    "seed": 1,
    "block_length": 4,
    "max_denoising_steps": 2,
    "threshold": 0.5,
    "editing_threshold": 0.5,
    "factor": 1.0,
    "entropy_bound": 0.1,
    "remask_budget": 1,
}


def test_models_offer_what_they_take_and_refuse_the_rest(live: Live) -> None:
    for card in live.send("/v1/models")[1]["data"]:
        assert {offer["mode"] for offer in card["offers"] if not offer["fill"]} == set(card["modes"])
        assert any(offer["fill"] for offer in card["offers"]) == card["can_fill"]
        for offer in card["offers"]:
            if offer["sampler"] is not None:
                continue
            what = {"segments": ["a ", {"mask": 2}]} if offer["fill"] else {"prompt": "a cat", "max_tokens": 2}
            chosen = {name: offer[name] for name in ("mode", "rule") if offer[name] is not None} | offer["options"]
            path = "/v1/infill" if offer["fill"] else "/v1/completions"
            body = {"model": card["id"], **what, **chosen}
            read = {name: value for name, value in TRIED.items() if name in offer["fields"]}
            status, reply = live.send(path, {**body, **read})
            assert status == 200, (offer, reply)
            for name in set(TRIED) - set(read) - set(offer["options"]):
                assert live.send(path, {**body, name: TRIED[name]})[0] == 400, (offer, name)
