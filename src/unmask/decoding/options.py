"""Options of decoding as typed fields: each says its range once, where it is declared."""

from __future__ import annotations

from dataclasses import MISSING, Field, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from unmask.errors import UnmaskError

_BOUNDS = {
    "ge": ("minimum", "at least"),
    "gt": ("exclusiveMinimum", "above"),
    "le": ("maximum", "at most"),
    "lt": ("exclusiveMaximum", "below"),
}
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "array", dict: "object"}


def option(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    off: Any = MISSING,
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: Its value where nobody says another.
        ge, gt, le, lt: What a number must be at least, above, at most and below; None is always within them.
        off: The value that changes nothing, which is taken by ways of decoding that do not read the option, too.
    """
    bounds = {name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None}
    return field(default=default, metadata={"bounds": bounds, "off": off})


def check_ranges(chosen: Any) -> None:
    """Raises UnmaskError for the first field of a dataclass of options whose number is out of its range."""
    for declared in fields(chosen):
        value = getattr(chosen, declared.name)
        if value is None or isinstance(value, str):
            continue
        bounds = declared.metadata.get("bounds", {})
        if not all(_within(value, name, bound) for name, bound in bounds.items()):
            wanted = " and ".join(f"{_BOUNDS[name][1]} {bound:g}" for name, bound in bounds.items())
            raise UnmaskError(f"option {declared.name} is out of range: {value}; it must be {wanted}")


def _within(value: float, bound: str, limit: float) -> bool:
    """False for NaN."""
    if bound in ("ge", "gt"):
        return value >= limit if bound == "ge" else value > limit
    return value <= limit if bound == "le" else value < limit


def is_off(declared: Field[Any], value: Any) -> bool:
    """Whether a value of an option is the one that changes nothing."""
    off = declared.metadata.get("off", MISSING)
    return off is not MISSING and bool((tuple(value) if isinstance(value, list) else value) == off)


def describe(chosen: Any) -> dict[str, dict[str, Any]]:
    """The fields of a dataclass of options as plain data: type, bounds, choices and the value that each has here."""
    hints = get_type_hints(type(chosen))
    return {declared.name: _described(declared, hints[declared.name], chosen) for declared in fields(chosen)}


def _described(declared: Field[Any], hint: Any, chosen: Any) -> dict[str, Any]:
    options = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    out: dict[str, Any] = {"default": getattr(chosen, declared.name)}
    if get_origin(hint) is Literal:
        out |= {"type": "string", "choices": list(options)}
    else:
        kind = get_origin(hint) if get_origin(hint) in (tuple, dict) else options[0]
        out["type"] = _TYPES.get(kind, "object")
    for name, bound in declared.metadata.get("bounds", {}).items():
        out[_BOUNDS[name][0]] = bound
    if declared.metadata.get("off", MISSING) is not MISSING:
        out["off"] = declared.metadata["off"]
    return out
