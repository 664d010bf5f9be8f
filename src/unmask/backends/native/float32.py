"""The compiled forward with float32 weights, keys and values: as near to torch as sums of float32 are to each other."""

from functools import partial

from unmask.backends.native import IMPLEMENTS, unavailable
from unmask.backends.native import create as of_bits

create = partial(of_bits, bits=32)
__all__ = ["IMPLEMENTS", "create", "unavailable"]
