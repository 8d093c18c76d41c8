"""Tensors of which each process holds some rows (torch's DTensor, sharded on dimension 0).

Plain tensors pass through every function here, so callers need no branch. Nothing imports DTensor,
because that takes seconds: a tensor that has it came with it.
"""

import torch
import torch.distributed as dist


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether processes hold this tensor in parts."""
    return hasattr(tensor, "to_local")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a tensor that this process holds, in its own storage; a plain tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All rows of a tensor; all processes must call this at the same point."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shard_group(tensor: torch.Tensor) -> dist.ProcessGroup:
    """The processes that hold the rows of a sharded tensor; each replica has its own group."""
    mesh = tensor.device_mesh
    return mesh.get_group(mesh.ndim - 1)


def rows_of_each(tensor: torch.Tensor) -> int:
    """The rows of a sharded tensor that a process holds at most, as torch.chunk divides them."""
    return -(-tensor.size(0) // shard_group(tensor).size())


@torch.no_grad()
def place(target: torch.Tensor, values: torch.Tensor) -> None:
    """Copy a whole tensor into `target`; of a sharded one, the rows that this process holds.

    values: a tensor, or one that is read when it is needed (a StoredTensor of a checkpoint).
    """
    if is_sharded(target):
        own = local(target)
        start = shard_group(target).rank() * rows_of_each(target)
        own.copy_(values[start : start + own.size(0)])
    else:
        target.copy_(values if isinstance(values, torch.Tensor) else values.whole())


def total_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The norm of all values of these tensors together, equal on all processes that share them."""
    plain = [tensor for tensor in tensors if not is_sharded(tensor)]
    sharded = [tensor for tensor in tensors if is_sharded(tensor)]
    total = torch.nn.utils.get_total_norm(plain)
    if not sharded:
        return total
    squares = torch.nn.utils.get_total_norm([local(tensor) for tensor in sharded]).square()
    dist.all_reduce(squares, group=shard_group(sharded[0]))
    return (squares + total.square()).sqrt()
