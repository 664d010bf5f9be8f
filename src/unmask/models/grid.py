"""Attention bias by the relations of a grid's cells, in place of positions in a line."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))  # rows and columns to the right, left, below, above


def relations(rows: int, columns: int, box_rows: int, box_columns: int) -> Tensor:
    """Which cells are in which relation, bool [R, L, L], L cells row by row: self, row, column, and then box; or, where
    box sizes are 0, the neighbour on each side."""
    cell = torch.arange(rows * columns)
    row = cell // columns
    column = cell % columns
    groups = [cell, row, column]
    if box_rows:
        groups.append(row // box_rows * (columns // box_columns) + column // box_columns)
    found = [group[:, None] == group[None] for group in groups]
    if not box_rows:
        down = row[None] - row[:, None]
        right = column[None] - column[:, None]
        found += [(down == rows_down) & (right == columns_right) for rows_down, columns_right in NEIGHBOURS]
    return torch.stack(found)


@cache
def relation_features(grid: tuple[int, ...], device: torch.device) -> Tensor:
    """`relations` as numbers, float [R, L, L], kept for each device."""
    return relations(*grid).float().to(device)


class GridBias(nn.Module):
    """What a head adds to a score for every relation that two cells are in, learned for each head.

    Args:
        grid: rows, columns, and rows and columns of a box (0, 0 for none: neighbours then).
    """

    def __init__(self, grid: tuple[int, ...], heads: int) -> None:
        super().__init__()
        rows, columns, box_rows, _ = grid
        self.grid = grid
        self.size = rows * columns
        self.weight = nn.Parameter(torch.zeros(heads, 4 if box_rows else 3 + len(NEIGHBOURS)))

    @torch.no_grad()
    def initialise(self, strength: float = 3.0) -> None:
        """Starts every head on one relation, the ones between different cells first."""
        count = self.weight.shape[1]
        for head in range(self.weight.shape[0]):
            self.weight[head, (head + 1) % count] = strength

    def forward(self, dtype: torch.dtype) -> Tensor:
        """Bias [1, H, L, L]."""
        found_RLL = relation_features(self.grid, self.weight.device).to(self.weight.dtype)
        return torch.einsum("hr,rij->hij", self.weight, found_RLL)[None].to(dtype)
