"""A report as people read it: one row a family, then rules and objectives, then all that asks for words."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from conformance.checks.outcome import Kind, Outcome
from conformance.checks.run import Report

MODEL_KINDS: tuple[Kind, ...] = ("forward", "block-causal", "training pass", "padded", "save", "generation")
HEADS = {"block-causal": "block-\ncausal", "training pass": "training\npass", "generation": "gener-\nation"}
NOTHING, GOOD, BAD, OPEN = "-", "green", "bold red", "yellow"
LEGEND = (
    "Numbers are the greatest difference of logits in float32 (at most 1e-04 holds), counts are recorded runs "
    "decoded again to the id, canvas by canvas; forwards are ours / theirs where they differ. "
    "-: none is recorded. ?: recorded, not checked."
)


def render(report: Report) -> RenderableType:
    parts: list[RenderableType] = []
    if report.families or any(o.kind == "load" for o in report.outcomes):
        parts += [families(report), Text(LEGEND, style="dim"), ""]
    if any(_is_model_free(o) for o in report.outcomes):
        parts += [model_free(report), ""]
    for title, lines in (
        ("Fails", _named(o for o in report.outcomes if o.holds is False)),
        ("Differs on purpose", _deviations(report.outcomes)),
        ("Not checked", _open(report.outcomes)),
        ("Not a fixture", [(name, "has neither recorded numbers nor cases") for name in report.skipped]),
    ):
        if lines:
            parts += [Text(title, style="bold"), Padding(_listed(lines), (0, 0, 1, 2))]
    parts += [Text(families_sentence(report))] if report.families else []
    return Group(*parts, summary(report))


def families(report: Report) -> Table:
    """The table of checkpoints: a row for every fixture that has one."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("family", no_wrap=True, vertical="bottom")
    for kind in MODEL_KINDS:
        table.add_column(HEADS.get(kind, kind), justify="right", no_wrap=True, vertical="bottom")
    table.add_column("for-\nwards", justify="right", no_wrap=True, vertical="bottom")
    table.add_column("remarks", vertical="bottom")
    for name in dict.fromkeys(o.family for o in report.outcomes if not _is_model_free(o)):
        own = [o for o in report.outcomes if o.family == name and not _is_model_free(o)]
        cells = [cell([o for o in own if o.kind == kind]) for kind in MODEL_KINDS]
        table.add_row(name, *cells, _forwards(own), _remarks(own))
    return table


def cell(found: list[Outcome]) -> Text:
    """What checks of one kind found: the greatest difference or how many hold; only what failed if some did."""
    done, kind = [o for o in found if o.holds is not None], found[0].kind if found else ""
    if not done:
        return Text("?" if found else NOTHING, style=OPEN if found else "dim")
    right = sum(bool(o.holds) for o in done)
    if kind == "generation":
        return Text(f"{right}/{len(done)}", style=GOOD if right == len(done) else BAD)
    if right < len(done):
        return Text("differs" if kind == "save" else f"{len(done) - right} of {len(done)} fail", style=BAD)
    differences = [o.difference for o in done if o.difference is not None]
    return Text(f"{max(differences):.0e}" if differences else "equal", style=GOOD)


def _forwards(own: list[Outcome]) -> str:
    pairs = [o.forwards for o in own if o.forwards is not None]
    ours, theirs = sum(p[0] for p in pairs), sum(p[1] for p in pairs)
    return (str(ours) if ours == theirs else f"{ours} / {theirs}") if pairs else NOTHING


def _remarks(own: list[Outcome]) -> Text:
    if any(o.kind == "load" for o in own):
        return Text("does not load", style=BAD)
    deviations, unchecked = sum(bool(o.deviation) for o in own), sum(o.holds is None for o in own)
    said = [f"{deviations} on purpose"] if deviations else []
    return Text(
        ", ".join([*said, *([f"{unchecked} not checked"] if unchecked else [])]), style=OPEN if unchecked else ""
    )


def model_free(report: Report) -> Table:
    """Rules, schedules, filters, objectives: a row for every group of cases."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("rule or objective", no_wrap=True)
    table.add_column("holds", justify="right")
    table.add_column("difference", justify="right")
    table.add_column("remarks")
    groups: dict[str, list[Outcome]] = {}
    for outcome in filter(_is_model_free, report.outcomes):
        groups.setdefault(_group(outcome), []).append(outcome)
    for name, found in groups.items():
        done, unchecked = [o for o in found if o.holds is not None], [o for o in found if o.holds is None]
        right = sum(bool(o.holds) for o in done)
        differences = [o.difference for o in done if o.difference is not None]
        table.add_row(
            name,
            Text(f"{right}/{len(done)}", style=GOOD if right == len(done) else BAD) if done else NOTHING,
            f"{max(differences):.0e}" if differences else NOTHING,
            Text(f"{len(unchecked)} not checked" if done else "not checked", style=OPEN) if unchecked else "",
        )
    return table


def _is_model_free(outcome: Outcome) -> bool:
    return outcome.kind in ("rule", "objective")


def _group(outcome: Outcome) -> str:
    """Cases of a rule by its name; losses by whose they are."""
    name = outcome.name.partition("[")[0]
    return f"{outcome.family}: {name.partition('.')[0] if outcome.kind == 'objective' else name}"


def _named(outcomes: Iterator[Outcome]) -> list[tuple[str, str]]:
    return [(f"{o.family}: {o.name}", o.detail) for o in outcomes]


def _deviations(outcomes: list[Outcome]) -> list[tuple[str, str]]:
    """A line for every reason, with the cases that it is the reason of."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.deviation:
            reasons.setdefault((outcome.family, outcome.deviation), []).append(outcome.name)
    return [(f"{family}: {', '.join(names)}", reason) for (family, reason), names in reasons.items()]


def _open(outcomes: list[Outcome]) -> list[tuple[str, str]]:
    """A paragraph for every family, a line in it for every reason."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for outcome in outcomes:
        if outcome.holds is None:
            reasons.setdefault(outcome.family, {}).setdefault(outcome.detail, []).append(outcome.name)
    return [
        (family, "\n".join(f"{reason}: {', '.join(names)}" for reason, names in own.items()))
        for family, own in reasons.items()
    ]


def _listed(lines: list[tuple[str, str]]) -> Group:
    """Names, and under each what is to be said of them."""
    parts: list[RenderableType] = []
    for name, words in lines:
        parts += [Text(name, style="cyan"), Padding(Text(words), (0, 0, 0, 2))]
    return Group(*parts)


def families_sentence(report: Report) -> str:
    held = ", ".join(report.checked) or "none"
    loads = ", ".join(report.only_load) or "none"
    return f"Held against a reference here: {held}.\nRead, with nothing here to hold it against: {loads}."


def summary(report: Report) -> Text:
    outcomes = report.outcomes
    right, wrong = sum(o.holds is True for o in outcomes), sum(o.holds is False for o in outcomes)
    purpose, unchecked = sum(bool(o.deviation) for o in outcomes), sum(o.holds is None for o in outcomes)
    seconds = sum(o.seconds for o in outcomes)
    words = f"{right} checks hold, {purpose} of them by differing on purpose; {wrong} fail; "
    words += f"{unchecked} not checked; {seconds:.1f} s"
    return Text(words, style=GOOD if report.holds else BAD)
