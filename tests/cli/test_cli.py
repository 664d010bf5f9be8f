"""The command line: JSON where a program reads it, one clear line and exit status 2 on bad input."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from benchmarks.speed import command as speed

from unmask.backends.native import network
from unmask.canvas import Canvas, Frame
from unmask.cli import bench
from unmask.cli.batch import batch
from unmask.cli.eval import evaluate
from unmask.cli.generate import generate
from unmask.cli.race import race
from unmask.cli.report import table_rows
from unmask.cli.serve import serve
from unmask.cli.solve import solve
from unmask.decoding.methods import DecodingDefaults
from unmask.lm import DiffusionLM
from unmask.models.transformer import Transformer
from unmask.training.tokenizer import train_tokenizer

TEXT = "the cat sat on the mat. the dog sat on the log. a cat and a dog sat. " * 4
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Transformer]) -> dict[str, str]:
    """A diffusion model and an AR one on disk."""
    tokenizer = train_tokenizer("bpe", [TEXT], 300)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "mask_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
    out = {}
    for name, options in {"toy": {}, "toy-ar": {"layout": "causal", "shift": True}}.items():
        folder = tmp_path_factory.mktemp("models") / name
        lm = DiffusionLM(tiny(pad_token_id=0, **sizes, **options), tokenizer, DecodingDefaults(rule="quota"), name)
        lm.save_pretrained(folder)
        out[name] = str(folder)
    return out


def test_generate_in_a_pipe_prints_text_only(run: Run, folders: dict[str, str]) -> None:
    code, out, err = run("generate", "the cat", "-m", folders["toy"], "-n", "12", "--steps", "4", "--seed", "1")
    assert code == 0
    assert "░" not in out
    assert "tokens/s" in err


def test_generate_json_and_trace(run: Run, folders: dict[str, str], tmp_path: Path) -> None:
    trace, strip = tmp_path / "trace.jsonl", tmp_path / "strip.svg"
    code, out, _ = run(
        "generate", "the cat", "-m", folders["toy"], "-n", "12", "--steps", "4", "--seed", "1", "--json",
        "--trace", str(trace), "--picture", str(strip),
    )  # fmt: skip
    record = json.loads(out)
    assert code == 0
    assert record["steps"] <= 4
    assert record["tokens"] == len(record["token_ids"])
    first, *frames = (json.loads(line) for line in trace.read_text().splitlines())
    canvas = Canvas.of([first["canvas"]], mask_id=1, pad_id=0)
    last = canvas.replay(Frame(**{k: tuple(v) if isinstance(v, list) else v for k, v in f.items()}) for f in frames)
    assert last.ids[0].tolist()[-12:][: record["tokens"]] == record["token_ids"]
    assert strip.read_text().startswith("<svg")


def test_generate_with_caches_guidance_and_schedules(run: Run, folders: dict[str, str]) -> None:
    common = ("generate", "the cat", "-m", folders["toy"], "-n", "12", "--steps", "3", "--seed", "1", "--json")
    plain = json.loads(run(*common)[1])
    assert plain["steps"] == 3
    for options in (
        ("--guidance", "4"),
        ("--cache", "dual", "--cache-refresh", "2", "--block-length", "6"),
        ("--schedule", "cosine", "--rule", "entropy"),
    ):
        code, out, _ = run(*common, *options)
        assert code == 0
        assert json.loads(out)["token_ids"] != plain["token_ids"], options


def test_an_installed_package_says_where_benches_are(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "OUR_BENCHES", tmp_path / "benchmarks")
    code, _, err = run("bench", "speed")
    assert code == 2
    assert "checkout" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in bench.OUR_BENCHES.glob("*.py")))
def test_every_bench_imports_what_there_is(name: str) -> None:
    import_module(f"benchmarks.{name}")


def test_bench_cache(run: Run) -> None:
    sizes = ("--hidden", "32", "--layers", "2", "--heads", "4", "--vocabulary", "50", "-n", "24", "--prompt", "5")
    code, out, _ = run("bench", "cache", *sizes, "--block-length", "8", "--rounds", "2", "--json")
    results = {(r["model"], r["cache"]): r for r in json.loads(out)}
    assert code == 0
    assert [cache for _, cache in results] == ["none", "prefix", "dual", "none", "exact"]
    assert {r["steps"] for (model, _), r in results.items() if model == "full canvas"} == {12}
    assert results["blocks", "exact"]["agreement"] == 1.0
    for (_, cache), r in results.items():
        assert r["seconds"] > 0
        assert (r["speedup"], r["agreement"]) == (1.0, 1.0) if cache == "none" else 0 < r["agreement"] <= 1
    code, out, _ = run("bench", "cache", *sizes, "--rounds", "1")
    assert code == 0
    assert "ids as without" in out


def test_packed_weights_are_listed_and_cleared(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if network.library() is None:
        pytest.skip("installed without a C compiler")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path))
    for quantize in ("q8", "q4"):
        code, _, _ = run("generate", "Emma", "-m", "austen", "-n", "4", "--quantize", quantize, "--json")
        assert code == 0
    kept = json.loads(run("cache", "list", "--json")[1])
    assert kept["folder"] == str(tmp_path / "compiled")
    assert [name.rpartition("-")[0] for name in kept["bytes"]] == ["austen-native", "austen-native-q4"]
    assert min(kept["bytes"].values()) > 0
    assert run("cache", "clear", "austen-native-q4")[0] == 0
    assert len(json.loads(run("cache", "list", "--json")[1])["bytes"]) == 1
    assert "nothing is kept of 'austen-native-q4'" in run("cache", "clear", "austen-native-q4")[2]
    assert len(json.loads(run("cache", "clear", "--json")[1])) == 1


def test_fill_json(run: Run, folders: dict[str, str]) -> None:
    code, out, _ = run("fill", "the [[mask:2]] sat[[mask:1-2]]", "-m", folders["toy"], "--json", "--seed", "2")
    record = json.loads(out)
    assert code == 0
    assert len(record["gaps"]) == 2


def test_race_bench_and_eval(run: Run, folders: dict[str, str], tmp_path: Path) -> None:
    pair = ("--diffusion", folders["toy"], "--ar", folders["toy-ar"])
    code, out, _ = run("race", "the cat", *pair, "-n", "10", "--steps", "3", "--json")
    assert code == 0
    assert [lap["steps"] for lap in json.loads(out)][1] == 3
    code, out, _ = run("race", "the cat", *pair, "-n", "10", "--steps", "3", "--plain")
    assert code == 0
    assert "toy-ar" in out
    picture = tmp_path / "p.png"
    short = ("--lengths", "5,9", "--steps", "2,4", "--rounds", "1", "--prompt", "the cat", "--json")
    code, out, _ = run("bench", "length", *pair, *short, "--picture", str(picture))
    results = json.loads(out)["results"]
    assert code == 0
    assert [(r["tokens"], r["steps"]) for r in results if r["name"] == "toy"] == [(5, 2), (5, 4), (9, 2), (9, 4)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("bench", "rules", *pair, "-n", "5", "--steps", "2", "--texts", "2", "--json")
    assert code == 0
    assert {r["rule"] for r in json.loads(out)} >= {"quota", "random", "threshold"}
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    code, out, _ = run("eval", folders["toy"], str(text), "--samples", "4", "--json")
    bound = json.loads(out)[0]
    assert code == 0
    assert bound["method"] == "nelbo"
    assert bound["bits_per_character"] > 0
    code, out, _ = run("eval", folders["toy-ar"], str(text))
    assert code == 0
    assert "exact" in out


def test_every_command_helps_with_an_example(run: Run) -> None:
    for command in (
        "generate",
        "fill",
        "race",
        "train",
        "eval",
        "models",
        "models inspect",
        "bench load",
        "bench length",
        "bench rules",
        "bench training",
        "bench speed",
        "bench verify",
        "bench cache",
        "bench cpu",
        "bench multi_block",
        "chat",
        "adapt",
        "pull",
    ):
        code, out, _ = run(*command.split(), "--help")
        assert code == 0
        assert "Example" in out


def test_models_lists_and_inspects(run: Run, folders: dict[str, str], tmp_path: Path) -> None:
    code, out, _ = run("models")
    assert code == 0
    assert "austen-ar" in out
    code, out, _ = run("models", "--json")
    sizes = {record["name"]: record["bytes"] for record in json.loads(out)}
    assert sizes.keys() >= {"default", "austen"}
    assert sizes["default"] > 2e7  # of two files
    code, out, _ = run("models", "inspect", folders["toy"])
    assert code == 0
    assert "unmask, class A (full canvas)" in out
    code, out, err = run("models", "inspect", folders["toy-ar"], "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["class"] == "AR"
    broken = Path(shutil.copytree(folders["toy"], tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"")
    code, out, err = run("models", "inspect", str(broken), "--json")
    assert code == 2
    assert json.loads(out)["fits"] is False
    assert len(err.strip().splitlines()) == 1


SUDOKU = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


def bad(folder: str, missing: str) -> list[list[str]]:
    return [
        ["generate", "x", "-m", missing],
        ["generate", "x", "-m", folder, "-n", "0"],
        ["generate", "x", "-m", folder, "-n", "500"],
        ["generate", "x", "-m", folder, "--rule", "best", "-n", "8"],
        ["generate", "x", "-m", folder, "--threshold", "2", "-n", "8"],
        ["generate", "x", "-m", folder, "--mode", "verify", "-n", "8"],
        ["generate", "x", "-m", folder, "--cache", "exact", "-n", "8"],
        ["generate", "x", "-m", folder, "--cache", "best", "-n", "8"],
        ["generate", "x", "-m", folder, "--guidance", "-1", "-n", "8"],
        ["generate", "x", "-m", folder, "--schedule", "late", "-n", "8"],
        ["bench", "cache", "--hidden", "33"],
        ["bench", "cache", "--rounds", "0"],
        ["bench", "cache", "--dtype", "int8"],
        ["bench", "cache", "--hidden", "32", "--heads", "2", "--layers", "1", "--device", "warp"],
        ["generate", "x", "-m", folder, "--dtype", "int3"],
        ["generate", "x", "-m", folder, "--device", "warp"],
        ["generate", "x", "-m", folder, "-n", "8", "--trace", "/proc/nowhere/trace"],
        ["fill", "no gap", "-m", folder],
        ["fill", "[[mask:700]]", "-m", folder],
        ["eval", folder, missing],
        ["eval", folder, "/dev/null"],
        ["train", missing],
        ["bench", "length", "--diffusion", folder, "--ar", folder, "--lengths", "5,-1"],
        ["race", "--diffusion", missing],
        ["chat", "-m", folder],
        ["generate", "x", "-m", folder, "--backend", "no such backend"],
        ["bench", "speed", folder, "--thresholds", "0.5,2"],
        ["bench", "verify", folder, "--prompts", "0"],
        ["eval", folder, "--limit", "0"],
        ["eval", folder, "--thresholds", "2"],
        ["eval", folder, "--generate", "2", "--judge", folder, "-n", "4"],
        ["pull", "no such model"],
        ["models", "inspect", missing],
        ["bench", "load", "--shape", "no such shape"],
        ["bench", "mixers", "--rounds", "0"],
        ["solve", "sudoku", "53..7"],
        ["solve", "sudoku", "55" + SUDOKU[2:]],
        ["solve", "sudoku", "." * 81],
        ["solve", "sudoku", SUDOKU, "--attempts", "0"],
        ["solve", "sudoku", SUDOKU, "-m", folder],
        ["solve", "futoshiki", SUDOKU],
    ]


@pytest.mark.parametrize("number", range(len(bad("", ""))))
def test_bad_input_is_one_line_and_status_2(run: Run, folders: dict[str, str], number: int) -> None:
    code, out, err = run(*bad(folders["toy"], "no/such/thing")[number])
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("unmask: ")


def test_a_schema_from_a_file_and_a_regular_expression(run: Run, folders: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
    code, out, _ = run("generate", "the", "-m", folders["toy"], "-n", "24", "-t", "1", "--json-schema", str(path))
    assert code == 0
    assert isinstance(json.loads(out)["a"], int)
    code, out, _ = run("generate", "the", "-m", folders["toy-ar"], "-n", "9", "--regex", "(cat|dog)s?")
    assert code == 0
    assert re.fullmatch("(cat|dog)s?\n", out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--json-schema", "gone.json"), "gone.json cannot be read"),
        (("--regex", "(a"), "never closed"),
        (("--regex", "[a-z]{99}"), "12 new tokens are too few"),
    ],
)
def test_a_grammar_that_cannot_be_held(
    run: Run, folders: dict[str, str], arguments: tuple[str, str], says: str
) -> None:
    code, out, err = run("generate", "the", "-m", folders["toy"], "-n", "12", *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_bench_schema(run: Run, folders: dict[str, str]) -> None:
    code, out, _ = run("bench", "schema", folders["toy"], "--requests", "1", "-n", "40", "--json")
    assert code == 0
    assert json.loads(out)["all"]["valid"] == 1


def test_rows_generated_texts_and_tables(run: Run, folders: dict[str, str], tmp_path: Path) -> None:
    """Every kind of row and model, JSON and CSV; several thresholds have an area under their curve."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "the cat", "response": " sat"}\n{"text": "a dog sat"}\n')
    for name in ("toy", "toy-ar"):
        code, out, _ = run("eval", folders[name], str(rows), "--samples", "2", "-n", "8", "--json")
        record = json.loads(out)[0]
        assert code == 0
        assert record["answers"][0]["rows"] == 1
        assert record["perplexity_low"] <= record["perplexity"] <= record["perplexity_high"]
    thresholds = ("--thresholds", "0.1,0.9", "--rule", "threshold", "--samples", "2", "-n", "8")
    code, out, _ = run("eval", folders["toy"], str(rows), *thresholds, "--csv")
    table = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["way"] for row in table] == ["0.1", "0.9"]
    assert float(table[0]["aup"]) == 0.0
    judge = ("--generate", "2", "--judge", folders["toy-ar"], "-n", "8")
    code, out, _ = run("eval", folders["toy"], str(rows), *judge, "--json")
    assert code == 0
    assert {"perplexity_low", "entropy", "distinct_2", "tokens_per_step"} <= json.loads(out)[0].keys()
    code, out, _ = run("generate", "the cat", "-m", folders["toy"], "-n", "4", "--seed", "1", "--csv")
    assert next(csv.DictReader(io.StringIO(out)))["tokens"] == "4"


def test_records_as_tables() -> None:
    record = {"a": {"b": 1}, "rows": [{"x": 1}, {"x": 2, "ids": [3]}], "s": "t"}
    assert table_rows(record) == [{"x": 1, "a.b": 1, "s": "t"}, {"x": 2, "ids": "[3]", "a.b": 1, "s": "t"}]
    assert table_rows([{"x": 1}, {"y": 2}]) == [{"x": 1}, {"y": 2}]
    assert table_rows({"gaps": ("a", "b's")}) == [{"gaps": '["a", "b\'s"]'}]
    assert table_rows([{"a": [{"b": [{"c": 1}]}, {"b": []}]}]) == [{"b": '[{"c": 1}]'}, {"b": "[]"}]


NUMBERS: dict[str, list[str]] = {  # options with numbers, of commands with what they need besides
    "generate the": ["--pause", "--max-new-tokens"],
    "race the --diffusion {toy}": ["--slowdown", "--max-new-tokens"],
    f"solve sudoku {'.' * 81}": ["--pause", "--attempts"],
    "eval {toy} {text}": ["--characters", "--samples", "--limit", "--generate", "--max-new-tokens"],
    "bench speed {toy}": ["--quality", "--max-new-tokens"],
    "batch {text} {text}.out": ["--max-concurrent", "--cache-gb", "--workers"],
    "serve": [
        *(
            "--max-concurrent",
            "--queue",
            "--cache-gb",
            "--prefill-chunk",
            "--prefix-mb",
            "--grace",
            "--timeout",
            "--port",
        ),
        *("--max-body", "--max-prompt", "--max-n", "--max-schema", "--max-schema-depth", "--schema-seconds"),
    ],
}


def test_every_number_of_an_option_is_checked() -> None:
    commands = {"bench speed": speed, "solve": solve, "generate": generate, "race": race, "eval": evaluate}
    commands |= {"batch": batch, "serve": serve}
    of_ray = {"min_replicas", "max_replicas", "replica_cpus", "worker_cpus"}
    for name, command in commands.items():
        hints = get_type_hints(command)
        numbers = (
            {n for n, kind in hints.items() if {int, float} & {kind, *get_args(kind)}} - of_ray - {"seed", "threshold"}
        )
        (tested,) = [options for given, options in NUMBERS.items() if given.startswith(name)]
        assert {f"--{n.replace('_', '-')}" for n in numbers} == set(tested), name


@pytest.mark.parametrize("value", ["-1", "-0.5", "nan", "inf", "1e30"])
@pytest.mark.parametrize(("command", "option"), [(c, option) for c, options in NUMBERS.items() for option in options])
def test_an_impossible_number_is_one_line(
    command: str, option: str, value: str, run: Run, folders: dict[str, str], tmp_path: Path
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the cat sat")
    given = [part.format(**folders, text=text) for part in command.split()]
    given += ["-m", folders["toy"]] if given[0] == "generate" else []
    code, out, err = run(*given, f"{option}={value}")
    assert code == 2
    assert not out
    usage = "Invalid value" in err  # a float where a whole number is asked for: the parser's own words
    assert usage or (err.count("\n") == 1 and option.removeprefix("--").replace("-", "_") in err.replace("-", "_"))
