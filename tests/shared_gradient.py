"""Take one training step and write its gradients; run in one process, or in several by torchrun."""

from __future__ import annotations

import sys

import torch

from agents import hybrid_reinforce, pretrain
from agents.common.setting import Setting
from skipnet_rl.distributed import leads, together
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet

BATCH = 16


def gradients(case: str) -> dict[str, torch.Tensor]:
    """Gradients of one step, and the weights after it, by name."""
    torch.manual_seed(1)
    net = ResNet(14)
    if case == "pretrain":
        # in evaluation mode: with batch statistics each process would see its share alone
        args = pretrain.Args(
            depth=14, dataset="rendered-digits", batch_size=BATCH, survival=0.5, device="cpu"
        )
        data = Setting.of(args, lambda *_: net).train
        learner = pretrain.Learner(args, net.eval(), "fp32")
        pretrain.train_step(learner, data, 3, args)
        model = net
    else:
        args = hybrid_reinforce.Args(
            env="SkipResNet14-v0", dataset="rendered-digits", weights="none", batch_size=BATCH, routes=4,
            bn="frozen", device="cpu", warmup_iterations=1, sp_iterations=1, iterations=1, tune_iterations=1,
        )  # fmt: skip
        data = Setting.of(args).train
        costs = torch.linspace(0, 1, len(net.blocks) - 1)
        learner = hybrid_reinforce.Learner(args, RoutingMDP(net, 1.0), "fp32", costs=costs)
        if case == "unvisited":  # a threshold far from every image: nobody executes any block
            torch.nn.init.constant_(learner.gate.head.bias, -50.0)
        stage = "tune" if case == "unvisited" else case
        hybrid_reinforce.train_step(learner, data, args.plan().index(stage), stage, args)
        model = learner.model
    found = {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, **{f"weight {name}": p.detach() for name, p in model.named_parameters()}}


if __name__ == "__main__":
    with together():
        for name in sys.argv[2:]:
            made = gradients(name)
            if leads():
                torch.save(made, f"{sys.argv[1]}/{name}.pt")
