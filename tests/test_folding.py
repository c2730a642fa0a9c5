"""Copies for inference compute the same in fewer operations."""

import pytest
import torch
from torch import nn
from toys import Replay

from skipnet_rl.blocks import Bottleneck
from skipnet_rl.folding import fold_batchnorm, for_inference
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.rollout import rollout

BOTTLENECKS = Architecture(64, (8, 16), (2, 2), Bottleneck, large_stem=True)


def lively(plan: int | Architecture, shortcut: str) -> ResNet:
    """A network in evaluation mode whose batch norms are not the identity."""
    torch.manual_seed(0)
    net = ResNet(plan, shortcut=shortcut)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return net.eval()


@pytest.mark.parametrize(
    ("plan", "shortcut"),
    [
        (20, "projection"),
        (20, "pad"),
        (20, "pool"),
        (BOTTLENECKS, "projection"),
    ],
)
def test_folding_changes_only_rounding(plan, shortcut):
    net = lively(plan, shortcut)
    folded = for_inference(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    images = torch.randn(6, 3, net.image_size, net.image_size)
    torch.testing.assert_close(folded(images), net(images), rtol=1e-4, atol=1e-4)
    decisions = len(net.blocks) - 1
    routes = Replay(torch.randint(0, 2, (6, decisions)))
    played = [rollout(RoutingMDP(n), routes, images, torch.zeros(6, dtype=torch.long)) for n in (folded, net)]
    torch.testing.assert_close(played[0].loss, played[1].loss, rtol=1e-4, atol=1e-4)


class Grouped(nn.Module):
    """A user's module that names its convolutions first and its batch norms after them."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


def test_layers_whose_order_is_unknown_are_not_folded():
    torch.manual_seed(0)
    module = Grouped().eval()
    for norm in (module.bn1, module.bn2):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2.0)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fold_batchnorm(module)(images), module(images))


def test_the_original_is_unchanged(tiny_net):
    before = {name: value.clone() for name, value in tiny_net.state_dict().items()}
    tiny_net.train()
    for_inference(tiny_net, "bf16")
    assert tiny_net.training
    assert all(parameter.requires_grad for parameter in tiny_net.parameters())
    for name, value in tiny_net.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == before[name].dtype


def test_bf16_is_for_the_convolutions(tiny_net):
    half = for_inference(tiny_net, "bf16")
    kinds = {name.split(".")[0]: p.dtype for name, p in half.named_parameters()}
    assert kinds == {"stem": torch.bfloat16, "blocks": torch.bfloat16, "fc": torch.float32}
    images = torch.randn(6, 3, 32, 32)
    assert half(images).dtype == torch.float32
    torch.testing.assert_close(half(images), tiny_net(images), rtol=0.1, atol=0.1)
    observation = RoutingMDP(half).observation(RoutingMDP(half).initial(images, torch.zeros(6).long()))
    assert observation.dtype == torch.float32


def test_gates_fold_too():
    norm = nn.BatchNorm2d(4)
    layers = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, bias=False), norm, nn.ReLU()).eval()
    nn.init.uniform_(norm.weight, 0.5, 1.0)
    norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 3, 8, 8)
    folded = fold_batchnorm(layers)
    assert isinstance(folded[2], nn.Identity)
    torch.testing.assert_close(folded(x), layers(x))


def test_unknown_precision(tiny_net):
    with pytest.raises(ValueError, match="'bf17'.*bf16"):
        for_inference(tiny_net, "bf17")
