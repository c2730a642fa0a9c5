"""Batch norm statistics recalibrated for a policy's routes."""

import copy

import torch
from torch import nn

from skipnet_rl.batchnorm import recalibrate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.randomness import Stream, step_generator


class NeverExecute:
    def __call__(self, mdp, state, hidden):
        return torch.full((len(state.y),), -1.0), None


def test_statistics_are_the_mean_over_the_batches(tiny_net, tiny_images):
    """The stem's batch norm sees the first convolution's output, whatever the policy."""
    expected_mean, expected_variance = [], []
    order = torch.randperm(12, generator=step_generator(0, 0, "cpu", Stream.NORM_ORDER))
    for number, index in enumerate(order.split(6)):
        images, _ = tiny_images.training_batch(
            index, step_generator(0, number, "cpu", Stream.NORM_AUGMENTATION)
        )
        with torch.no_grad():
            before = tiny_net.stem[0](images)
        expected_mean.append(before.mean(dim=(0, 2, 3)))
        expected_variance.append(before.var(dim=(0, 2, 3), correction=1))
    tiny_net.train()
    recalibrate(RoutingMDP(tiny_net), AlwaysExecute(), tiny_images, batches=2, batch_size=6)
    norm = tiny_net.stem[1]
    torch.testing.assert_close(norm.running_mean, torch.stack(expected_mean).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(expected_variance).mean(0))
    assert not any(module.training for module in tiny_net.modules())
    assert all(m.momentum == 0.1 for m in tiny_net.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_batch_that_is_not_whole_counts_only_if_there_is_no_other(tiny_net, tiny_images):
    """Of 12 images 5 + 5 + 2, the last two would weigh as much as five."""
    found = []
    for count, batches, size in ((12, 9, 5), (12, 2, 5), (3, 9, 5), (3, 1, 3)):
        net = copy.deepcopy(tiny_net)
        images = tiny_images.first(count)
        recalibrate(RoutingMDP(net), AlwaysExecute(), images, batches=batches, batch_size=size)
        found.append(net.stem[1].running_mean)
    assert torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])
    assert not torch.equal(found[0], found[2])


def test_a_block_that_no_image_executes_keeps_its_statistics(tiny_net, tiny_images):
    block, stem = tiny_net.blocks[2].bn1, tiny_net.stem[1]
    before, stem_before = block.running_mean.clone(), stem.running_mean.clone()
    recalibrate(RoutingMDP(tiny_net), NeverExecute(), tiny_images, batches=1, batch_size=12)
    assert torch.equal(block.running_mean, before)
    assert not torch.equal(stem.running_mean, stem_before)


def test_weights_do_not_change(tiny_net, tiny_images):
    before = [parameter.clone() for parameter in tiny_net.parameters()]
    recalibrate(RoutingMDP(tiny_net), AlwaysExecute(), tiny_images, batches=1, batch_size=12)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_net.parameters(), strict=True))
