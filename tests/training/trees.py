"""Recipes as trees, with single fields changed."""

from __future__ import annotations

from typing import Any

Tree = dict[str, Any]


def change(tree: Tree, changes: Tree) -> Tree:
    """The tree with fields set in place: training__steps=3 sets tree["training"]["steps"]."""
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            tree[section][field] = value
        else:
            tree[section] = value
    return tree
