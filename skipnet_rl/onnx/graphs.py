"""An episode as a module that `torch.export` can trace: images in, logits and route out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skipnet_rl.folding import fold_batchnorm
from skipnet_rl.gates import Hidden, RecurrentGate
from skipnet_rl.layouts import MAPS
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.policies import Policy, first_memory

FLOAT32 = 1  # in ONNX's numbering of element types


class Episode(nn.Module):
    """The whole episode; subclasses say how the images pass a block.

    Args:
        mdp: the decision process; the graph has a copy of its network, batch norms folded.
        policy: decides by the sign of its log-odds.
    """

    def __init__(self, mdp: RoutingMDP, policy: Policy) -> None:
        super().__init__()
        net = fold_batchnorm(mdp.net).to(memory_format=torch.contiguous_format)  # the only layout in ONNX
        self.net = net
        self.mdp = RoutingMDP(net, mdp.alpha, mdp.cost)
        self.decide = self.decider(policy)

    def decider(self, policy: Policy) -> Any:
        """The policy as a module that gives decisions, and its memory."""
        return Decider(policy)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, H, W] → logits [B, K], route [B, N] bool."""
        state = self.mdp.initial(images, images.new_zeros(images.shape[0], dtype=torch.int64))
        hidden, route = self.decide.start(images), []
        for t in range(self.mdp.num_decisions):
            execute, hidden = self.decide(self.mdp, state, hidden)
            state = self.mdp.arrived(self.advance(state, execute), state.y, t + 1)
            route.append(execute.reshape(-1, 1))
        return self.mdp.logits(state), torch.cat(route, dim=1)

    def advance(self, state: State, execute: Tensor) -> Tensor:
        """The features [B, …] after block `state.t`, where `execute` [B] is the decision."""
        raise NotImplementedError


class OneImageEpisode(Episode):
    """One image at a time; each block is a conditional, of which only the branch taken runs."""

    def decider(self, policy: Policy) -> Any:
        """The policy in the form that exports to the fewest operators."""
        return RecurrentDecider(policy) if isinstance(policy, RecurrentGate) else Decider(policy)

    def advance(self, state: State, execute: Tensor) -> Tensor:
        """Run the block or its shortcut."""
        block, x = self.mdp.block(state.t), state.x
        if (skipped := block.shortcut(x)) is x:
            return torch.cond(execute, lambda x: block.execute(x, x), lambda x: x.clone(), (x,))
        return torch.cond(
            execute, lambda x, skip: block.execute(x, skip), lambda x, skip: skip.clone(), (x, skipped)
        )


class BatchedEpisode(Episode):
    """Any number of images at a time, or none: gather those that execute, run the block, scatter.

    Gates are in plain operators, since onnxruntime's LSTM ends the process on an empty batch.
    """

    def advance(self, state: State, execute: Tensor) -> Tensor:
        """Run the block on the images that execute it, which may be none."""
        block, x = self.mdp.block(state.t), state.x
        skipped = block.shortcut(x)
        index = execute.reshape(-1).nonzero().squeeze(1)
        executed = block.execute(x.index_select(0, index), skipped.index_select(0, index))
        return skipped.index_put((index,), executed)


class Decider(nn.Module):
    """Any policy, its log-odds thresholded."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = fold_batchnorm(policy) if isinstance(policy, nn.Module) else policy

    def start(self, images: Tensor) -> Any:
        """The policy's memory before the first decision."""
        return first_memory(self.policy, images)

    def forward(self, mdp: RoutingMDP, state: State, hidden: Any) -> tuple[Tensor, Any]:
        """Whether to execute, [B] bool, and the policy's memory."""
        logit, hidden = self.policy(mdp, state, hidden)
        return logit > 0, hidden


class RecurrentDecider(nn.Module):
    """`RecurrentGate` in a third of the operators: ONNX's own LSTM, and a threshold in place of the bias.

    For one image, launching its operators is most of what a gate costs.
    """

    def __init__(self, gate: RecurrentGate) -> None:
        super().__init__()
        cell, self.size = gate.lstm, gate.size
        self.projections = gate.projections
        bias = torch.cat([_onnx_order(cell.bias_ih), _onnx_order(cell.bias_hh)], dim=1)
        weights = [_onnx_order(cell.weight_ih), _onnx_order(cell.weight_hh), bias]
        self.weights = nn.ParameterList(weights).requires_grad_(False)
        self.head = nn.Parameter(gate.head.weight.detach().T.clone(), requires_grad=False)
        self.threshold = nn.Parameter(-gate.head.bias.detach(), requires_grad=False)

    def start(self, images: Tensor) -> Hidden:
        """The cell's (h, c) before the first block, [1, B, size] each."""
        zeros = images.new_zeros(1, images.shape[0], self.size)
        return zeros, zeros

    def forward(self, mdp: RoutingMDP, state: State, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Whether to execute, [1, B, 1] bool, and the cell's (h, c)."""
        count, size = state.x.shape[0], self.size
        h, c = hidden
        # one operator for the mean of a map, where `Layout.pool` takes three
        maps = mdp.block(state.t).layout is MAPS
        pooled = state.x.mean(dim=(2, 3)) if maps else mdp.pool(state, torch.float32)
        feature = torch.relu(self.projections[state.t](pooled)).unsqueeze(0)
        _, h, c = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            (feature, *self.weights, None, h, c),
            {"hidden_size": size},
            dtypes=(FLOAT32, FLOAT32, FLOAT32),
            shapes=((1, 1, count, size), (1, count, size), (1, count, size)),
        )
        return h @ self.head > self.threshold, (h, c)


def _onnx_order(weight: Tensor) -> Tensor:
    """Reorder an LSTM's gates from PyTorch's (input, forget, cell, output) to ONNX's (i, o, f, c)."""
    i, f, g, o = weight.detach().chunk(4)
    return torch.cat([i, o, f, g]).unsqueeze(0)
