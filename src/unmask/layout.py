"""Who may attend to whom: one predicate on coordinates, the same for numpy arrays and torch tensors.

Rendered as a dense mask here, as a FlexAttention block mask in `attention`. Shapes: T queries, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

LayoutKind = Literal[
    "bidirectional", "causal", "block_causal", "block_diffusion", "drafts", "canvas", "causal_blocks", "causal_window"
]
LAYOUT_KINDS: tuple[LayoutKind, ...] = get_args(LayoutKind)
BEHIND_TEXT = ("causal_blocks", "causal_window")  # a block being denoised is a group; of a window, in an order
GROUPED = ("drafts", "canvas", *BEHIND_TEXT)  # text is causal; groups see the text up to their anchor, and themselves
WRITES_BEHIND = ("causal", *GROUPED)  # of models that write after their text, never into it

PADDING = -1  # document id of padding: it attends to padding only, and nothing else attends to it
EMPTY = -2  # document id of a cache slot that holds nothing yet
NOISED, CLEAN = 0, 1  # the two copies of a token in the training row [x_t ; x_0]


class Coordinates(NamedTuple):
    """Where tokens stand: integer arrays or tensors of one shape, [T] or [B, T]."""

    position: Any  # inside its document, from 0
    document: Any  # tokens of different documents never meet
    copy: Any  # NOISED or CLEAN (block diffusion), CLEAN or a group (drafts, canvas); others ignore it

    @staticmethod
    def of(position: Any, document: Any | None = None) -> Coordinates:
        """Coordinates of plain rows: one copy and, unless told, one document."""
        zeros = position * 0
        return Coordinates(position, zeros if document is None else document, zeros)

    @staticmethod
    def drafts(position: Any, anchor: Any, document: Any | None = None) -> Coordinates:
        """Coordinates under the grouped layouts: anchor < 0 marks text, else the token is of the group
        (drafts, or a canvas being denoised) whose last sight of the text is position `anchor`. Under causal_window a
        token of the group with a higher anchor comes later, and sees those with lower ones."""
        text = (anchor < 0) * 1
        copy = text * CLEAN + (1 - text) * (-1 - anchor)
        return Coordinates(position, position * 0 if document is None else document, copy)


@dataclass(frozen=True)
class Layout:
    """An attention pattern. `block_length` is read by the two block layouts only. Under a `window` text sees
    the last `window` positions, its own among them, and a group sees the text that the next position would."""

    kind: LayoutKind
    block_length: int = 1
    window: int = 0  # 0: all

    def __post_init__(self) -> None:
        if self.kind not in LAYOUT_KINDS:
            raise ValueError(f"layout '{self.kind}' is unknown; use one of {', '.join(LAYOUT_KINDS)}")
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")
        if self.window < 0 or (self.window and self.kind not in ("causal", *GROUPED)):
            raise ValueError(f"layout '{self.kind}' takes no window, got {self.window}")

    def allows(self, q: Coordinates, k: Coordinates) -> Any:
        """THE predicate: may q see k? Broadcasts its arguments, bool out."""
        same_document = q.document == k.document
        if self.kind == "bidirectional":
            return same_document
        if self.kind == "causal":
            return same_document & (k.position <= q.position) & self._near(q.position, k)
        if self.kind in GROUPED:
            of_text, to_text = q.copy == CLEAN, k.copy == CLEAN
            reach = of_text * q.position + (~of_text) * (-1 - q.copy)
            text = to_text & (k.position <= reach) & self._near(reach + (~of_text) * 1, k)
            own = ~to_text & (k.copy >= q.copy) if self.kind == "causal_window" else k.copy == q.copy
            return same_document & (text | (~of_text & own))
        q_block = q.position // self.block_length
        k_block = k.position // self.block_length
        if self.kind == "block_causal":
            return same_document & (k_block <= q_block)
        noised_to_itself = (q.copy == k.copy) & (q_block == k_block)
        noised_to_clean = (q.copy == NOISED) & (k.copy == CLEAN) & (k_block < q_block)
        clean_to_clean = (q.copy == CLEAN) & (k.copy == CLEAN) & (k_block <= q_block)
        return same_document & (noised_to_itself | noised_to_clean | clean_to_clean)

    def _near(self, place: Any, k: Coordinates) -> Any:
        """Whether a key is inside the window that ends at a place."""
        return (k.position > place - self.window) | (self.window == 0)

    def dense(self, q: Coordinates, k: Coordinates) -> Any:
        """Bool mask [1 or B, 1, T, S], true where attention is allowed."""
        q = Coordinates(*(field[..., :, None] for field in q))
        k = Coordinates(*(field[..., None, :] for field in k))
        mask = self.allows(q, k)
        return mask[None, None] if mask.ndim == 2 else mask[:, None]
