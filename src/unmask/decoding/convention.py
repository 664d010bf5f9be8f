"""How the projects that publish diffusion models differ in detail: one named preset each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from unmask.decoding.options import check_ranges, option
from unmask.errors import UnmaskError
from unmask.models.config import build


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Details of decoding in which a model's own project differs from others; the defaults are ours."""

    strict: bool = False  # thresholds: keep what is above only; entropy_bound: keep while the sum with it is below
    due_is: Literal["least", "most"] = "least"  # most: what a schedule holds back stays due, beyond the last step too
    empty_steps: bool = False  # rules that rank pay for steps that are due nothing
    confidence_dtype: Literal["float64", "native"] = "float64"  # native: scores in the network's own precision
    schedule_eps: float = option(1e-3, gt=0, lt=1)  # the last time of schedule `timesteps`
    num_to_transfer: int = option(1, ge=1)  # masks that a step of a rule that judges fills at the least
    zero_edits: bool = True  # an editing_threshold of 0 replaces all that differs; false: nothing
    # a block's first step: one: with an approximate cache its first token alone; text: the text's own next token, of a
    # block behind causal text
    first_step: Literal["rule", "one", "text"] = "rule"
    tempered: bool = True  # scores of a drawn token are those at its temperature; false: at temperature 1
    blocks_from_prompt: bool = False  # blocks of a block-causal model count from the first mask, not from position 0
    whole_blocks: bool = False  # the last block of a block-causal model is as long as the others, and cut afterwards
    ending: Literal["text", "block"] = "text"  # stop once all before an end of text is written, or with its block


CONVENTIONS: dict[str, Convention] = {
    "unmask": Convention(),
    "llada": Convention(confidence_dtype="native", empty_steps=True),
    "dream": Convention(confidence_dtype="native", empty_steps=True, first_step="one"),
    "fast-dllm": Convention(confidence_dtype="native", strict=True, whole_blocks=True),  # version 2; 1 is ours
    "dllm": Convention(confidence_dtype="native", blocks_from_prompt=True),
    "sdar": Convention(confidence_dtype="native", strict=True, whole_blocks=True),
    "nemotron": Convention(tempered=False, blocks_from_prompt=True, whole_blocks=True),  # as in vLLM
    "nemotron-hf": Convention(tempered=False, blocks_from_prompt=True, whole_blocks=True, first_step="text"),
    "sdlm": Convention(confidence_dtype="native", strict=True),
    "wedlm": Convention(strict=True, tempered=False),
    "llada2": Convention(confidence_dtype="native", strict=True, whole_blocks=True),
}
NAMES = frozenset(field.name for field in fields(Convention))


def convention_of(value: Any) -> Convention:
    """The convention of a preset's name, of a dict of fields (over the preset named `like`) or of itself.

    Raises UnmaskError for an unknown name and for fields that are unknown or out of range.
    """
    if isinstance(value, Convention):
        return value
    if isinstance(value, dict):
        own = dict(value)
        made = replace(convention_of(own.pop("like", "unmask")))
        made = build(Convention, {**asdict(made), **own}, "convention")
        check_ranges(made)
        return made
    if not isinstance(value, str) or value not in CONVENTIONS:
        raise UnmaskError(f"convention {value!r:.60} is unknown; use one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[value]


def with_convention(values: dict[str, Any]) -> dict[str, Any]:
    """Decoding options of a file in which the convention's fields stand on their own, as older checkpoints have it."""
    own = {name: value for name, value in values.items() if name in NAMES}
    if not own:
        return values
    like = {"like": values["convention"]} if "convention" in values else {}
    made = convention_of({**like, **own})
    preset = next((name for name, known in CONVENTIONS.items() if known == made), None)
    rest = {name: value for name, value in values.items() if name not in NAMES}
    return {**rest, "convention": preset or made}
