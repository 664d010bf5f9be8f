"""The whole suite: everything that the fixtures under a folder record, checked, and what they do not."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conformance.checks import fixture, forward, likelihoods, model_free, objectives
from conformance.checks.checks import Check, not_checked, one_line, perform
from conformance.checks.drivers import DRIVERS
from conformance.checks.fixture import FORWARD, Fixture
from conformance.checks.outcome import Outcome
from unmask.canvas import Array
from unmask.checkpoints.families.registry import FAMILIES
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM


@dataclass(frozen=True)
class Report:
    """What was found under a path. `families` names the family of every fixture that is one's."""

    path: str
    outcomes: list[Outcome]
    families: dict[str, str]
    skipped: list[str]  # folders that are no fixture

    @property
    def holds(self) -> bool:
        """Whether nothing that was checked differs from its reference."""
        return all(outcome.holds is not False for outcome in self.outcomes)

    @property
    def checked(self) -> list[str]:
        """Families with at least one forward or generation held against a reference, in the registry's order."""
        against = {o.family for o in self.outcomes if o.holds is not None and o.kind not in ("load", "save")}
        return [f.name for f in FAMILIES if f.name in {self.families.get(folder) for folder in against}]

    @property
    def only_load(self) -> list[str]:
        """Families that are read, and that nothing under the path holds against a reference."""
        checked = self.checked
        return [f.name for f in FAMILIES if f.name not in checked]

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "holds": self.holds,
            "families": self.families,
            "checked": self.checked,
            "only_load": self.only_load,
            "not_a_fixture": self.skipped,
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
        }


def run(
    path: Path, family: str | None = None, progress: Callable[[str, float], None] = lambda name, share: None
) -> Report:
    """Runs every fixture under a folder, or the one that a folder is.

    family: only fixtures whose folder or family has this name. progress: called with what is being checked
    and the share that is done. Raises UnmaskError where there is nothing to check.
    """
    found, skipped = fixture.find(path)
    chosen = found if family is None else [f for f in found if _is_of(f, family)]
    if not chosen:
        raise UnmaskError(f"{path} holds no fixture of '{family}'; there are {', '.join(f.name for f in found)}")
    outcomes: list[Outcome] = []
    families: dict[str, str] = {}
    for number, one in enumerate(chosen):
        progress(one.name, number / len(chosen))
        try:
            outcomes += check(one, families)
        except UnmaskError as error:  # a file of the fixture itself
            outcomes.append(Outcome(one.name, "load", "files", False, str(error)))
    return Report(str(path), outcomes, families, skipped if family is None else [])


def _is_of(one: Fixture, family: str) -> bool:
    wanted = family.casefold()
    return wanted in (one.name.casefold(), _family_name(one).casefold())


def _family_name(one: Fixture) -> str:
    from unmask.checkpoints.open import Checkpoint

    if not one.has_model:
        return ""
    try:
        found = Checkpoint.open(one.path).family
    except UnmaskError:
        return ""
    return "unmask" if found is None else found.name


def check(one: Fixture, families: dict[str, str]) -> list[Outcome]:
    """All outcomes of one fixture; enters its family's name."""
    out: list[Outcome] = []
    lm = None
    if one.has_model:
        try:
            lm = DiffusionLM.from_pretrained(one.path, dtype="float32", backend="torch")
            _ = lm.model
        except UnmaskError as error:
            out.append(Outcome(one.name, "load", "checkpoint", False, str(error)))
        else:
            families[one.name] = _family_name(one)
            out += forward.outcomes(one.name, lm, one.tensors(FORWARD))
            out.append(perform(one.name, Check("save", "save_pretrained", partial(saved_again, one.path))))
            noise = one.noise()
            for number, case in enumerate(one.cases()):
                out.append(generation(one.name, families[one.name], lm, case, noise, number))
    for stem in one.model_free:
        recorded, tensors = one.json(f"{stem}.json"), one.tensors(f"{stem}.safetensors")
        if stem == "objectives":
            out += objectives.outcomes(one.name, recorded, tensors)
        elif stem != "likelihood":
            out += model_free.outcomes(one.name, stem, recorded, tensors)
        elif lm is not None:
            out += likelihoods.outcomes(one.name, lm, recorded, tensors)
    return out


def saved_again(folder: Path) -> str:
    """A checkpoint read and written must be what it was: tensors to the byte, config.json key by key."""
    with tempfile.TemporaryDirectory() as temporary:
        DiffusionLM.from_pretrained(folder, dtype="auto", backend="torch").save_pretrained(temporary)
        before, after = (weights(path) for path in (folder, Path(temporary)))
        if before.keys() != after.keys():
            return f"tensors {sorted(before.keys() ^ after.keys())} are in one of the files only"
        changed = [n for n in before if before[n].dtype != after[n].dtype or not torch.equal(before[n], after[n])]
        if changed:
            return f"tensors {', '.join(changed)} are not what they were"
        configs = [json.loads((path / "config.json").read_text()) for path in (folder, Path(temporary))]
        return "" if configs[0] == configs[1] else "config.json is not what it was"


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, of one file or of shards."""
    shards = sorted(path.name for path in folder.glob("model*.safetensors"))
    return {name: tensor for shard in shards for name, tensor in Fixture(folder, True, ()).tensors(shard).items()}


def generation(
    folder: str, family: str, lm: DiffusionLM, case: dict[str, Any], noise: dict[str, Array], number: int
) -> Outcome:
    """One recorded generation decoded again: canvases, ids and forwards must be equal."""
    name = str(case.get("name", number))
    decode = DRIVERS.get(family)
    if decode is None:
        return not_checked(folder, "generation", name, f"no driver decodes {family}'s recorded cases")
    began = time.perf_counter()
    try:
        with torch.inference_mode():
            ours, recorded, deviation = decode(lm, case, noise)
        detail = ours.differs_from(recorded)
    except Exception as error:  # one case that fails must not hide the others
        return Outcome(folder, "generation", name, False, one_line(error), "", time.perf_counter() - began)
    seconds, forwards = time.perf_counter() - began, (ours.forwards, recorded.forwards)
    return Outcome(folder, "generation", name, not detail, detail, deviation, seconds, forwards=forwards)
