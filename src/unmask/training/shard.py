"""Training whose tensors are split over the processes (FSDP2): each holds a share of the rows of every tensor.

A split tensor is a DTensor; the functions here take plain tensors too, so that one path of code serves both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from unmask.models.transformer import Transformer


def shard(scored: nn.Module, network: Transformer, processes: int, device: torch.device) -> None:
    """Splits the network's parameters over all processes; they are whole on a device while their block computes.

    scored: the module around the network whose forward pass is a training step's; what is in no block is split as its
    own. Parameters move to the device block by block.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(scored, mesh=mesh, reshard_after_forward=True)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process must ask for the same ones in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a tensor that is split, or is to be split, as `like`, which has its shape."""
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return local(tensor)
    parts = tensor.chunk(like.device_mesh.size(), 0)
    rank = like.device_mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else tensor[:0]


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, split if `like` is, which has its shape."""
    if not isinstance(like, DTensor):
        return tensor
    rows = own_rows(tensor, like).to(like.to_local().device, copy=True)
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
