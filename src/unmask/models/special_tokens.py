"""Which token may stand for "not written yet" in a vocabulary that has no mask."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from unmask.errors import UnmaskError

MASK_NAME = re.compile(r"\W*(\w+_)?mask\W*", re.IGNORECASE)  # <mask>, [MASK], <|mask|>, <|mdm_mask|>


def free_token(special: Mapping[int, str], used: Collection[int | None], template: str | None, source: str) -> int:
    """Id of the token to mask with: one named like a mask, else the last control token with no other use.

    special: id to name of the control tokens. used: ids with a meaning (start, end, padding). A token that the
    chat template writes is in use as well. Raises UnmaskError where none is free.
    """
    named = [token for token, name in special.items() if MASK_NAME.fullmatch(name)]
    if named:
        return named[0]
    free = [token for token, name in special.items() if token not in used and not (template and name in template)]
    if not free:
        raise UnmaskError(
            f"{source}: all {len(special)} control tokens are in use, so none can be the mask; "
            "put a config.json with a mask_token_id beside it"
        )
    return max(free)
