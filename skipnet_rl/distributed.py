"""Several processes that train one network: each takes its share of every batch.

The gradient is that of the whole batch, whatever the number of processes: a process draws the random numbers
of the whole batch and takes those of its share, and gradients are averaged before the optimizer moves. Only
the first process, the leader, validates and writes. Batch norms in training mode see the share of their own
process, as in PyTorch's DistributedDataParallel; the leader's running statistics are the ones that count.

`torchrun` starts the processes (https://docs.pytorch.org/docs/stable/elastic/run.html).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from skipnet_rl.randomness import Stream, step_generator

PATIENCE = timedelta(hours=6)  # the others wait for the leader's evaluations
ResultT = TypeVar("ResultT")


def processes() -> int:
    """Number of processes that train together; 1 outside `together`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def leads() -> bool:
    """Whether this process is the leader, which validates and writes."""
    return rank() == 0


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that `torchrun` started, each with its own GPU if there are GPUs.

    Without `torchrun`, or with one process, nothing happens.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or processes() > 1:
        yield
        return
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def share(values: Tensor) -> Tensor:
    """This process's equal share of the rows of `values` [B, …].

    Raises:
        ValueError: B is not a multiple of the number of processes.
    """
    count, left = divmod(len(values), processes())
    if left or not count:
        raise ValueError(
            f"{processes()} processes cannot share {len(values)} images per step equally; "
            f"expected a multiple of {processes()}"
        )
    return values[rank() * count : (rank() + 1) * count]


def shared_generator(
    seed: int, step: int, device: torch.device | str, stream: Stream = Stream.AUGMENTATION
) -> torch.Generator:
    """`randomness.step_generator` for this process: its share of the whole batch's numbers."""
    return step_generator(seed, step, device, stream, (rank(), processes()))


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes.

    A process without a gradient for a parameter counts as zero, such as when none of its images executed the
    block.
    A parameter that has no gradient in any process keeps none, so that optimizers leave it alone.
    """
    if processes() == 1:
        return
    every = list(parameters)
    given = torch.tensor([p.grad is not None for p in every], dtype=torch.float32, device=every[0].device)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
    flat = torch.cat([given, *(part.flatten() for part in parts)])  # one message, not hundreds
    dist.all_reduce(flat)
    used, means = flat[: len(every)].tolist(), flat[len(every) :] / processes()
    for parameter, part, mean, count in zip(
        every, parts, means.split([p.numel() for p in every]), used, strict=True
    ):
        if count:
            parameter.grad = part.copy_(mean.view(parameter.shape))


def follow(state: Any) -> None:
    """Overwrite the tensors of a nested state_dict with the leader's."""
    if processes() == 1:
        return
    for tensor in _tensors(state):
        dist.broadcast(tensor, src=0)


def from_leader(function: Callable[[], ResultT]) -> ResultT:
    """Call a function in the leader only; return its result, or raise its exception, in every process."""
    if processes() == 1:
        return function()
    found: list[Any] = [None, None]
    if leads():
        try:
            found[0] = function()
        except Exception as error:  # the others would wait forever
            found[1] = error
    dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    if found[1] is not None:
        raise found[1]
    return found[0]


def check_alike(**values: Any) -> None:
    """Raise a ValueError in every process if one of them has another value than the leader."""
    if processes() == 1:
        return
    every: list[Any] = [None] * processes()
    dist.all_gather_object(every, values)
    for number, other in enumerate(every):
        for name, value in every[0].items():
            if other[name] != value:
                raise ValueError(
                    f"process {number} has other {name} than process 0: {other[name]}, not {value}; "
                    "give all of them the same"
                )


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)
