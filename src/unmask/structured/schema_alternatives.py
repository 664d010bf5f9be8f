"""A schema as alternatives: references followed, `allOf`, `anyOf` and `oneOf` multiplied out."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from unmask.errors import UnmaskError
from unmask.structured.effort import Effort, too_large
from unmask.structured.schema_parts import FAMILIES, Part, member_schema, merge, narrowed, read_keywords

ANYTHING = ("object", "array", "string", "number", "boolean", "null")
MOST_ALTERNATIVES = 256
DRAFTS = ("draft-06", "draft-07", "2019-09", "2020-12")
Path = tuple[str, ...]  # references followed on the way to a schema


def kinds(part: Part) -> list[str]:
    """The types that are written: those named, or those that the keywords are about, or all."""
    named = part.get("type") or [kind for kind, keys in FAMILIES.items() if any(key in part for key in keys)]
    return named or list(ANYTHING)


class Alternatives:
    """Takes the schemas of one document apart. A schema that contains itself is followed `unrolled` times."""

    def __init__(self, root: Any, effort: Effort, unrolled: int) -> None:
        self.root = root
        self.effort = effort
        self.unrolled = unrolled
        self.checked: set[int] = set()  # schemas whose oneOf is known to be exclusive
        self.checking = False  # whether all that is valid is asked for, and not what is written
        said = str(root.get("$schema", DRAFTS[-1])) if isinstance(root, dict) else DRAFTS[-1]
        self.draft = next((draft for draft in DRAFTS if draft in said), None)
        if self.draft is None:
            raise UnmaskError(f"JSON schema: '$schema' is {said[:60]!r}; use one of {', '.join(DRAFTS)}")

    def of(self, schema: Any, path: Path) -> list[tuple[Part, Path]]:
        """A schema as parts of which at least one has to hold, without references and combinations."""
        self.effort.spend(4)
        self.effort.check_time()
        if isinstance(schema, bool):
            return [({}, path)] if schema else []
        own, combined = read_keywords(schema, self.root is schema, self.draft == DRAFTS[-1])
        if "$ref" in combined and len(own or {}) + len(combined) > 1 and self.draft in ("draft-06", "draft-07"):
            raise UnmaskError(f"JSON schema: {self.draft} ignores keywords beside '$ref'; put both into 'allOf'")
        if own is None:
            return []
        out: list[tuple[Part, Path]] = [(own, path)]
        if "$ref" in combined:
            reference = combined["$ref"]
            if path.count(reference) >= self.unrolled:
                return [({}, path)] if self.checking else []
            out = self._cross(out, self.of(self._resolve(reference), (*path, reference)), len(path))
        for sub in combined.get("allOf", []):
            out = self._cross(out, self.of(sub, path), len(path))
        if "anyOf" in combined:
            out = [part for sub in combined["anyOf"] for part in self._cross(out, self.of(sub, path), len(path))]
        if "oneOf" in combined:
            if id(schema) not in self.checked:
                self.checked.add(id(schema))
                self._check_exclusive(out, combined["oneOf"], path)
            choices = [self._cross(out, self.of(sub, path), len(path)) for sub in combined["oneOf"]]
            out = [part for choice in choices for part in choice]
            if not self.checking:  # no other type was compared, and none may come in by what is merged later
                out = [({"type": kinds(part), **part}, inner) for part, inner in out]
        if combined.get("unevaluatedProperties") is False:
            closed = [(narrowed({"additionalProperties": False, **part}), inner) for part, inner in out]
            out = [(part, inner) for part, inner in closed if part is not None]
        return out

    def _cross(
        self, some: list[tuple[Part, Path]], others: list[tuple[Part, Path]], shared: int
    ) -> list[tuple[Part, Path]]:
        """Every one merged with every other; their paths have the first `shared` references in common."""
        out = []
        for one, path in some:
            for other, inner in others:
                self.effort.spend(4)
                self.effort.check_time()  # merging may match names with patterns
                merged = merge(one, other)
                if merged is not None:
                    out.append((merged, path + inner[shared:]))
        if len(out) > MOST_ALTERNATIVES:
            raise too_large(f"the JSON schema combines more than {MOST_ALTERNATIVES} alternatives")
        return out

    def _check_exclusive(self, out: list[tuple[Part, Path]], schemas: list[Any], path: Path) -> None:
        """Refuses oneOf where a value that is written for one schema may be valid under another."""
        before = self.checking
        self.checking = True
        choices = [self._cross(out, self.of(sub, path), len(path)) for sub in schemas]
        for i, one in enumerate(choices):
            written: list[tuple[Part, Path]] = [({"type": kinds(part), **part}, inner) for part, inner in one]
            for j, other in enumerate(choices):
                if i != j and any(self._may_hold(part, inner) for part, inner in self._cross(written, other, 0)):
                    raise UnmaskError(
                        "JSON schema: alternatives of 'oneOf' may hold at once, which is not supported; "
                        "use 'anyOf', or a required member with a different 'const' in each"
                    )
        self.checking = before

    def _may_hold(self, part: Part, path: Path) -> bool:
        """False where a required member of an object, and of nothing else, has no valid value."""
        if part.get("type") != ["object"]:
            return True
        return all(
            any(self._may_hold(inner, way) for inner, way in self.of(member_schema(part, name), path))
            for name in part.get("required", [])
        )

    def _resolve(self, reference: str) -> Any:
        if reference.split("/")[0] != "#":
            raise UnmaskError(f"JSON schema: '$ref' to {reference!r} is not supported; use one like '#/$defs/name'")
        found = self.root
        for step in unquote(reference).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                raise UnmaskError(f"JSON schema: '$ref' to {reference!r} leads nowhere")
        return found
