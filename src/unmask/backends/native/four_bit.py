"""The compiled forward with 4-bit weights, the head in 8 bits: half the memory, and further from the original."""

from functools import partial

from unmask.backends.native import IMPLEMENTS, unavailable, unfit
from unmask.backends.native import create as of_bits

create = partial(of_bits, bits=4)
__all__ = ["IMPLEMENTS", "create", "unavailable", "unfit"]
