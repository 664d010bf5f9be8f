"""Options of decoding as typed fields: each says its range once, where it is declared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, field, fields
from operator import ge, gt, le, lt
from typing import Any, Literal, get_args, get_origin, get_type_hints

from unmask.errors import UnmaskError

_BOUNDS: dict[str, tuple[str, str, Callable[[Any, Any], bool]]] = {
    "ge": ("minimum", "at least", ge),
    "gt": ("exclusiveMinimum", "above", gt),
    "le": ("maximum", "at most", le),
    "lt": ("exclusiveMaximum", "below", lt),
}
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "array", dict: "object"}


def option(default: Any, *, off: Any = MISSING, **bounds: float) -> Any:
    """A field of a dataclass of options.

    Args:
        default: Its value where nobody says another.
        off: The value that changes nothing, which is taken by ways of decoding that do not read the option, too.
        bounds: ge, gt, le, lt: what a number must be at least, above, at most and below; None is always within them.
    """
    return field(default=default, metadata={"bounds": bounds, "off": off})


def check_ranges(chosen: Any) -> None:
    """Raises UnmaskError for the first field of a dataclass of options whose number is out of its range."""
    for declared in fields(chosen):
        value = getattr(chosen, declared.name)
        if value is None or isinstance(value, str):
            continue
        bounds = declared.metadata.get("bounds", {})
        if not all(_BOUNDS[name][2](value, bound) for name, bound in bounds.items()):  # false for NaN
            wanted = " and ".join(f"{_BOUNDS[name][1]} {bound:g}" for name, bound in bounds.items())
            raise UnmaskError(f"option {declared.name} is out of range: {value}; it must be {wanted}")


def is_off(declared: Field[Any], value: Any) -> bool:
    """Whether a value of an option is the one that changes nothing."""
    off = declared.metadata.get("off", MISSING)
    return off is not MISSING and bool((tuple(value) if isinstance(value, list) else value) == off)


def describe(chosen: Any) -> dict[str, dict[str, Any]]:
    """The fields of a dataclass of options as plain data: type, bounds, choices and the value that each has here."""
    hints = get_type_hints(type(chosen))
    described: dict[str, dict[str, Any]] = {}
    for declared in fields(chosen):
        hint = hints[declared.name]
        kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
        out = described[declared.name] = {"default": getattr(chosen, declared.name)}
        if get_origin(hint) is Literal:
            out |= {"type": "string", "choices": kinds}
        else:
            kind = get_origin(hint) if get_origin(hint) in (tuple, dict) else kinds[0]
            out["type"] = _TYPES.get(kind, "object")
        out |= {_BOUNDS[name][0]: bound for name, bound in declared.metadata.get("bounds", {}).items()}
        if declared.metadata.get("off", MISSING) is not MISSING:
            out["off"] = declared.metadata["off"]
    return described
