"""The compiled forward with float32 weights, keys and values: as near to torch as sums of float32 are to each other."""

from unmask.backends.native import IMPLEMENTS, create_exact, unavailable

create = create_exact
__all__ = ["IMPLEMENTS", "create", "unavailable"]
