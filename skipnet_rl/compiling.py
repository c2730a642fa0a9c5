"""Blocks compiled by PyTorch for training.

Each kind of block is compiled once, for batches of any size ("regional compilation" in PyTorch's guides): a
ResNet-110 has 54 blocks of five kinds. Which blocks run differs between images, so a whole network cannot be
compiled in HRL.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from functools import wraps
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from skipnet_rl.device import autocast
from skipnet_rl.errors import CompilationError, first_line, one_line
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.network import Network
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.rollout import rollout

NEEDS = {
    "cpu": "a C++ compiler, such as g++ or clang",
    "cuda": "Triton (pip install triton) and a C compiler",
}

Kinds = dict[tuple[Hashable, str], Callable[..., Tensor]]


def compile_blocks(
    net: nn.Module,
    batch_size: int,
    precision: str = "fp32",
    *,
    training: bool = True,
    backend: str | Callable[..., Any] = "inductor",
) -> int:
    """Let blocks run compiled code wherever gradients are recorded.

    Anything else (evaluation, batch norm statistics, export, copies for inference) runs as before, and so
    does a batch of one image. Names of parameters do not change. A deep copy is compiled, too; an unpickled
    one is not. Results differ by rounding; layers that draw random numbers draw different ones.

    First, one step on a copy compiles every kind, so that a missing compiler is noticed at once.
    PyTorch compiles a kind again if another batch size or memory layout needs other code.

    Args:
        net: a network, or a chain of them, on its device.
        batch_size: number of images in that step, best that of the training to come.
        precision: precision of the convolutions in training, `"bf16"` or `"fp32"`.
        training: whether batch norms are in training mode in that step.
        backend: see `torch.compile`.

    Returns:
        The number of kinds of blocks.

    Raises:
        CompilationError: PyTorch cannot compile on this machine, or not these blocks; the network is
            unchanged.
    """
    device = next(net.parameters()).device
    size: Any = net.image_size
    images = torch.zeros(max(batch_size, 2), 3, size, size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    drawn = [device] if device.type == "cuda" else []  # its random state is restored
    kinds: Kinds = {}
    tried = copy.deepcopy(net).train(training)
    try:
        _bind(tried, kinds, backend)
        with torch.random.fork_rng(drawn), torch.enable_grad(), autocast(precision, device):
            for network in _networks(tried):
                _take(network, images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch.compile and the compilers behind it may raise anything
        raise CompilationError(_why(error, str(net.name), device)) from error
    _bind(net, kinds, backend)
    return len({kind for kind, _ in kinds})


def _networks(net: nn.Module) -> list[Network]:
    """The network itself, or those of a chain."""
    return [each for each in net.modules() if isinstance(each, Network)]


def _take(network: Network, images: Tensor) -> None:
    """Run forward and backward passes through every block, as the network does and as an episode does."""
    network(images).sum().backward()
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    rollout(RoutingMDP(network), AlwaysExecute(), images, labels).loss.sum().backward()


def _bind(net: nn.Module, kinds: Kinds, backend: str | Callable[..., Any]) -> None:
    """Replace the methods of each block that compute; a kind that is not known yet is added to `kinds`."""
    for network in _networks(net):
        for block in network.blocks:
            for name in block.computing:
                key = (block.kind, name)
                if key not in kinds:
                    kinds[key] = _compiled(getattr(type(block), name), len(kinds), backend)
                setattr(block, name, MethodType(kinds[key], block))  # which a copy binds to the copied block


def _compiled(method: Any, number: int, backend: str | Callable[..., Any]) -> Callable[..., Tensor]:
    """A method of a class of blocks, compiled where gradients are recorded."""
    # PyTorch gives up after eight compilations of a code object, so each kind has its own
    code = method.__code__.replace(co_name=f"{method.__name__}_{number}")
    own = FunctionType(code, method.__globals__, code.co_name, method.__defaults__, method.__closure__)
    # within a kind only the batch size varies
    compiled = torch.compile(own, fullgraph=True, dynamic=False, backend=backend)

    @wraps(method)
    def run(block: Any, *inputs: Tensor) -> Tensor:
        """Run compiled code if gradients of several images are recorded, else the method itself."""
        if not torch.is_grad_enabled() or len(inputs[0]) < 2 or torch.compiler.is_compiling():
            return method(block, *inputs)
        for each in inputs:
            torch._dynamo.mark_dynamic(each, 0)
        return compiled(block, *inputs)

    return run


def _why(error: BaseException, name: str, device: torch.device) -> str:
    """What is missing, and what to do."""
    cause = getattr(error, "inner_exception", error)
    return one_line(
        f"PyTorch cannot compile the blocks of {name} on this machine: {type(cause).__name__}: "
        f"{first_line(cause)}. It needs {NEEDS.get(device.type, 'a compiler')}; install what is missing, or "
        "train without compiling"
    )
