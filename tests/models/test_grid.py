"""Looped networks and attention biased by a grid's relations."""

from __future__ import annotations

import pytest
import torch

from unmask import DiffusionLM
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.grid import relations
from unmask.models.mixers import Context
from unmask.models.transformer import Transformer

SIZES = {
    "vocab_size": 12,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 4,
    "intermediate_size": 32,
    "mask_token_id": 1,
}


def network(**options: object) -> Transformer:
    made = Transformer(ModelConfig(**{**SIZES, "rope_fraction": 0.0, **options})).initialise(0)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def test_relations_of_a_sudoku() -> None:
    own, row, column, box = relations(9, 9, 3, 3)
    assert own.equal(torch.eye(81, dtype=torch.bool))
    assert row.sum(1).tolist() == column.sum(1).tolist() == box.sum(1).tolist() == [9] * 81
    assert box[0].nonzero().flatten().tolist() == [0, 1, 2, 9, 10, 11, 18, 19, 20]


def test_relations_of_a_grid_without_boxes() -> None:
    """Neighbours on each side: of cell 8 of a grid of 4 x 6, whose row is 1 and column 2."""
    found = relations(4, 6, 0, 0)
    assert [group[8].nonzero().flatten().tolist() for group in found[3:]] == [[9], [7], [14], [2]]
    assert [int(group.sum()) for group in found[3:]] == [20, 20, 18, 18]


def test_loops_share_weights_and_add_the_embeddings_again() -> None:
    torch.manual_seed(0)
    ids = torch.randint(2, 12, (2, 8))
    once, thrice = network(loops=1), network(loops=3)
    thrice.load_state_dict(once.state_dict())
    assert sum(p.numel() for p in once.parameters()) == sum(p.numel() for p in thrice.parameters())
    given = once.embedding(ids)
    context = Context((once.rope_cos[None, :8], once.rope_sin[None, :8]), None, None, None)
    x = once.blocks[0](given, context, None)
    for _ in range(2):
        x = once.blocks[0](x + given, context, None)
    torch.testing.assert_close(thrice.hidden(ids), once.norm(x))
    every = thrice.hidden(ids, every_loop=True)
    torch.testing.assert_close(every[:2], once.hidden(ids))
    torch.testing.assert_close(every[4:], thrice.hidden(ids))


def test_cells_that_are_alike_to_the_grid_are_alike_to_the_network() -> None:
    """Swapping two rows of one band only swaps the answers: no position but the relations is known."""
    torch.manual_seed(1)
    made = network(grid=(4, 4, 2, 2), max_length=16, loops=2)
    ids = torch.randint(1, 12, (1, 16))
    swapped = ids.view(4, 4)[[1, 0, 2, 3]].reshape(1, 16)
    out = made(ids).view(4, 4, -1)
    torch.testing.assert_close(made(swapped).view(4, 4, -1), out[[1, 0, 2, 3]])
    assert not torch.allclose(made(ids.view(4, 4)[[2, 1, 0, 3]].reshape(1, 16)).view(4, 4, -1), out[[2, 1, 0, 3]])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"loops": 0}, "loops must be at least 1"),
        ({"grid": (9, 9, 3, 3)}, "grid"),
        ({"grid": (4, 4, 3, 2), "max_length": 16}, "grid"),
        ({"grid": (4, 4), "max_length": 16}, "grid"),
    ],
)
def test_impossible_grids_and_loops_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(UnmaskError, match=named):
        network(**options)


def test_another_canvas_than_the_grid_is_refused() -> None:
    with pytest.raises(UnmaskError, match="whole canvases of 16 cells, not 9"):
        network(grid=(4, 4, 2, 2), max_length=16)(torch.ones(1, 9, dtype=torch.long))


@pytest.mark.parametrize("backend", ["torch", "native-f32"])
def test_a_network_of_a_grid_reads_whole_grids_only(backend: str) -> None:
    lm = DiffusionLM.from_pretrained("sudoku", backend=backend)
    with pytest.raises(UnmaskError, match="whole canvases of 81 cells, not 9"):
        lm.fill("[[mask:9]]")
