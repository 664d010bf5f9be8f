"""Batches: every line answered once, as the server would, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from unmask.cli import serve as cli_serve
from unmask.cli.main import app as cli
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.serving import batch
from unmask.serving.asgi import Asked, whole
from unmask.serving.engine import Limits
from unmask.serving.server import make_app

RUN = CliRunner()


def line(custom_id: str, url: str = "/v1/completions", **body: Any) -> str:
    body = {"model": "canvas", **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


GOOD = [line(f"c{i}", prompt="the cat sat", max_tokens=2 + i % 5) for i in range(6)]
GOOD.append(line("fill", "/v1/infill", template="the [[mask:1-2]] sat"))
TURNS = [{"role": "user", "content": "the dog"}]
GOOD.append(line("talk", "/v1/chat/completions", model="talker", messages=TURNS, max_tokens=6))
BAD = {
    '{"custom_id": "cut"': "not JSON",
    "[1]": "no JSON object",
    json.dumps({"custom_id": "x", "method": "POST", "url": "/v1/completions"}): "field 'body' is missing",
    json.dumps({"custom_id": 3, "method": "POST", "url": "/v1/completions", "body": {}}): "field 'custom_id'",
    json.dumps({"custom_id": "m", "method": "GET", "url": "/v1/models", "body": {}}): "field 'method'",
    json.dumps({"custom_id": "u", "method": "POST", "url": "http://x/", "body": {}}): "field 'url'",
    json.dumps({"custom_id": "e", "method": "POST", "url": "/v1/x", "body": {}, "more": 1}): "'more' is unknown",
    line("s", prompt="a", stream=True): "field 'stream'",
    '{"custom_id": "a", "custom_id": "b"}': "stands twice",
}


@pytest.fixture(scope="module")
def app(served_models: dict[str, DiffusionLM]) -> Iterator[Any]:
    made, engine = make_app(served_models, Limits(slots=4, queue=1 << 20))
    yield made
    engine.close()


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def answered(app: Any, source: Path, target: Path, at_once: int = 8) -> dict[str | None, dict[str, Any]]:
    """Runs a batch; its lines by custom_id."""
    answers = batch.Answers(target, batch.survey(source))
    try:
        asyncio.run(batch.run(app, batch.read(source), answers, at_once))
    finally:
        answers.close()
    records = [json.loads(each) for each in target.read_text().splitlines()]
    assert len({record["id"] for record in records}) == len(records)
    return {record["custom_id"]: record for record in records}


def choices(records: dict[str | None, dict[str, Any]]) -> dict[str | None, Any]:
    return {name: record["response"] and record["response"]["body"].get("choices") for name, record in records.items()}


def test_lines_are_answered_as_the_server_answers(app: Any, tmp_path: Path) -> None:
    records = answered(app, write(tmp_path / "in", *GOOD), tmp_path / "out")
    assert len(records) == len(GOOD)
    for text in GOOD:
        asked = json.loads(text)
        record = records[asked["custom_id"]]
        assert record["error"] is None
        assert record["response"]["status_code"] == 200
        assert record["response"]["request_id"].startswith("req_")
        body = record["response"]["body"]
        alone = json.dumps({**asked["body"], "seed": body["seed"]}).encode()  # and company changes nothing
        own = json.loads(asyncio.run(whole(app, Asked(asked["url"], alone)))[1])
        assert own["choices"] == body["choices"]
        assert own["usage"] == body["usage"]
    assert len({record["response"]["body"]["seed"] for record in records.values()}) == len(GOOD)


def test_company_does_not_change_answers(app: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "in", *GOOD)
    assert choices(answered(app, source, tmp_path / "one", 1)) == choices(answered(app, source, tmp_path / "all", 16))


def test_bad_lines_are_error_lines_and_the_rest_goes_on(app: Any, tmp_path: Path) -> None:
    wrong = line("wrong", prompt="the cat", threshhold=1), line("lost", model="none", prompt="a")
    source = write(tmp_path / "in", *BAD, "", *GOOD[:2], *wrong, line("where", "/v1/nothing"))
    records = answered(app, source, tmp_path / "out")
    written = [json.loads(each) for each in (tmp_path / "out").read_text().splitlines()]
    told = [record["error"]["message"] for record in written if record["error"]]
    assert len(told) == len(BAD)
    for number, expected in enumerate(BAD.values(), 1):
        assert any(message.startswith(f"line {number}: ") and expected in message for message in told)
    assert all(record["response"] is None for record in written if record["error"])
    statuses = {name: records[name]["response"]["status_code"] for name in ("c0", "c1", "wrong", "lost", "where")}
    assert statuses == {"c0": 200, "c1": 200, "wrong": 400, "lost": 404, "where": 404}
    assert records["wrong"]["response"]["body"]["error"]["param"] == "threshhold"
    assert records["wrong"]["error"] is None


def test_killed_runs_go_on_wherever_they_were_cut(app: Any, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in", *GOOD, *list(BAD)[:2], *list(BAD)[:2]), tmp_path / "out"
    first = choices(answered(app, source, target))
    whole_run = target.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole_run) if byte == 10]
    for cut in (0, 1, ends[0] - 1, ends[0], ends[3] + 20, ends[-1] - 1, ends[-1]):
        target.write_bytes(whole_run[:cut])
        assert choices(answered(app, source, target)) == first
        kept = whole_run[: max((end for end in ends if end <= cut), default=0)]
        assert target.read_bytes().startswith(kept)
        assert target.read_text().count("\n") == len(ends)


def test_finished_batch_is_not_touched(app: Any, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in", *GOOD[:2]), tmp_path / "out"
    answered(app, source, target)
    before = target.read_bytes()
    answered(None, source, target)  # nothing is asked
    assert target.read_bytes() == before
    write(source, *GOOD[:3])  # a line more
    assert len(answered(app, source, target)) == 3
    assert target.read_bytes().startswith(before)


def test_same_id_asked_otherwise_and_foreign_files_are_refused(app: Any, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in", *GOOD[:2]), tmp_path / "out"
    answered(app, source, target)
    before = target.read_bytes()
    for lines, words in ((GOOD[1:2], "not asked"), ((line("c0", prompt="a"), GOOD[1]), "otherwise asked")):
        with pytest.raises(UnmaskError, match=words):
            batch.Answers(target, batch.survey(write(tmp_path / "other", *lines)))
    assert target.read_bytes() == before
    for text in ("my notes", "my notes\n", '{"id": 1}\n', '{"id": "batch_req_1", "response": 3}\n'):
        (tmp_path / "notes").write_text(text)
        with pytest.raises(UnmaskError, match="line 1 is no answer"):
            batch.Answers(tmp_path / "notes", batch.survey(source))
        assert (tmp_path / "notes").read_text() == text


def test_duplicates_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnmaskError, match="'c1' stands in line 2 and in line 4"):
        batch.survey(write(tmp_path / "in", *GOOD[:3], line("c1", prompt="b")))
    with pytest.raises(UnmaskError, match="cannot be read"):
        batch.survey(tmp_path / "none")


def test_two_runs_of_one_output_are_refused(tmp_path: Path) -> None:
    asked = batch.survey(write(tmp_path / "in", *GOOD[:2]))
    first = batch.Answers(tmp_path / "out", asked)
    with pytest.raises(UnmaskError, match="another batch"):
        batch.Answers(tmp_path / "out", asked)
    first.close()
    batch.Answers(tmp_path / "out", asked).close()


def test_full_disk_leaves_whole_lines(app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = write(tmp_path / "in", *GOOD), tmp_path / "out"
    real, calls = batch.os.write, []

    def filling(file: int, data: Any) -> int:
        calls.append(1)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return real(file, data[:30] if len(calls) == 3 else data)  # a write may take only a part

    monkeypatch.setattr(batch.os, "write", filling)
    with pytest.raises(UnmaskError, match="No space left"):
        answered(app, source, target, 1)
    assert target.read_text().count("\n") == 2
    assert target.read_bytes().endswith(b"\n")
    monkeypatch.undo()
    assert len(answered(app, source, target)) == len(GOOD)


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([each.encode() for each in [*GOOD, *BAD]]))))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("any") / "in"
    path.write_bytes(b"\n".join(lines))
    named = [entry.custom_id for entry in batch.read(path) if entry.custom_id is not None]
    if len(set(named)) < len(named):
        with pytest.raises(UnmaskError, match="stands in line"):
            batch.survey(path)
        return
    asked = batch.survey(path)
    entries = list(batch.read(path))
    assert [entry.id for entry in entries] == list(asked)
    assert all((entry.line is None) == bool(entry.error) for entry in entries)


def test_command(served_models: dict[str, DiffusionLM], tmp_path: Path) -> None:
    served_models["canvas"].save_pretrained(tmp_path / "canvas")
    source, target = write(tmp_path / "in.jsonl", *GOOD[:3], '{"custom_id"'), tmp_path / "made" / "out.jsonl"
    command = ["batch", str(source), str(target), "-m", f"canvas={tmp_path / 'canvas'}"]
    done = RUN.invoke(cli, [*command, "--json"])
    assert done.exit_code == 1
    figures = json.loads(done.stdout)
    assert (figures["lines"], figures["failed"], figures["answered_before"]) == (4, 1, 0)
    assert figures["completion_tokens"] > 0
    again = RUN.invoke(cli, command)
    assert again.exit_code == 1
    assert again.stdout.startswith("4 lines answered, 4 of them before, 1 of them failed; 0 tokens")
    write(source, *GOOD[:3])
    assert RUN.invoke(cli, [*command[:2], str(tmp_path / "new"), *command[3:]]).exit_code == 0
    for bad, words in (
        (["batch", str(source), str(source)], "holds the requests"),
        ([*command, "--workers", "-1"], "--workers must be 0 to"),
        (["batch", str(tmp_path / "none"), str(target)], "cannot be read"),
        (["batch", str(source), str(tmp_path / "nothing"), "-m", "nonesuch"], "'nonesuch' is neither"),
    ):
        failed = RUN.invoke(cli, bad)
        assert isinstance(failed.exception, UnmaskError)
        assert words in str(failed.exception)
    assert source.read_text().count("\n") == 3
    assert not (tmp_path / "nothing").exists()


def test_without_ray_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_serve, "find_spec", lambda name: None if name == "ray" else True)
    source = write(tmp_path / "in", *GOOD[:1])
    for command in (["batch", str(source), str(tmp_path / "out"), "--workers", "2"], ["serve", "austen", "--ray"]):
        failed = RUN.invoke(cli, command)
        assert "pip install 'unmask[ray]'" in str(failed.exception)
    assert not (tmp_path / "out").exists()
    assert "give --ray too" in str(RUN.invoke(cli, ["serve", "austen", "--max-replicas", "2"]).exception)
