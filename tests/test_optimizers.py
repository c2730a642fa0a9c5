"""Fused optimizers: the plain ones' steps, whatever blocks had a gradient, whatever the memory layout."""

import copy

import pytest
import torch

from agents.common.optimizers import OPTIMIZERS, resume
from skipnet_rl.resnet import ResNet

PLAIN = {
    "adam": lambda net: torch.optim.Adam(net.parameters(), 1e-2, fused=False, foreach=False),
    "sgd": lambda net: torch.optim.SGD(
        [
            {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 5e-4},
            {"params": [p for p in net.parameters() if p.ndim <= 1]},
        ],
        lr=1e-2,
        momentum=0.9,
        nesterov=True,
        fused=False,
        foreach=False,
    ),
}


def network() -> ResNet:
    torch.manual_seed(0)
    return ResNet(14).to(memory_format=torch.channels_last)


def step(net: ResNet, optimizer: torch.optim.Optimizer, number: int, dropped: int | None = None) -> None:
    """Descend along given gradients; those of one block are missing, as where no image executed it."""
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(number)
    for name, weight in net.named_parameters():
        gradient = torch.randn(weight.shape, generator=generator)
        if not name.startswith(f"blocks.{dropped}."):
            weight.grad = torch.empty_like(weight).copy_(gradient)
    optimizer.step()


@pytest.mark.parametrize("name", PLAIN)
def test_fused_steps_are_the_plain_ones(name):
    """A block without gradients in the first step moves like the others from then on."""
    plain, fused = network(), network()
    steps = [PLAIN[name](plain), OPTIMIZERS[name](fused, 1e-2)]
    for number, dropped in enumerate([3, None, 1, None]):
        for net, optimizer in zip((plain, fused), steps, strict=True):
            step(net, optimizer, number, dropped)
    start = network()
    for before, expected, found in zip(
        start.parameters(), plain.parameters(), fused.parameters(), strict=True
    ):
        assert not torch.equal(before, found)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_a_resumed_optimizer_goes_on_exactly(name):
    """Its state comes from a file, where every tensor is contiguous."""
    net = network()
    optimizer = OPTIMIZERS[name](net, 1e-2)
    step(net, optimizer, 0, dropped=2)
    state = copy.deepcopy(optimizer.state_dict())
    for moments in state["state"].values():
        moments.update({key: moment.contiguous() for key, moment in moments.items()})
    other = copy.deepcopy(net)
    resumed = OPTIMIZERS[name](other, 1e-2)
    resume(resumed, state)
    step(net, optimizer, 1)
    step(other, resumed, 1)
    for expected, found in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, found)
