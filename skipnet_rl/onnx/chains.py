"""An episode of a chain as a module that `torch.export` can trace: images in, answer and route out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skipnet_rl.chain import ChainMDP, ChainState, mix_answers
from skipnet_rl.folding import fold_batchnorm
from skipnet_rl.onnx.graphs import BatchedEpisode, Decider, Episode, OneImageEpisode
from skipnet_rl.policies import AlwaysExecute, Policy


class ChainEpisode(nn.Module):
    """The whole episode; subclasses say how the images reach a network.

    Args:
        mdp: the decision process; the graph has copies of its networks, batch norms folded.
        policy: asks the next network where its log-odds are positive.
    """

    episode: type[Episode]  # of the networks that have gates

    def __init__(self, mdp: ChainMDP, policy: Policy) -> None:
        super().__init__()
        self.networks = nn.ModuleList(map(self._network, range(len(mdp.net.members)), mdp.net.members))
        self.mdp, self.weights = mdp, mdp.net.mix.tolist()
        self.decide = Decider(policy)

    def _network(self, number: int, member: Any) -> nn.Module:
        if isinstance(member.policy, AlwaysExecute):
            return fold_batchnorm(member.net).to(memory_format=torch.contiguous_format)
        graph = self.episode(member.mdp, member.policy)
        if number > 0:
            graph.decide = Decider(member.policy)  # torch.export refuses ONNX's own LSTM in a conditional
        return graph

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, H, W] → log-probabilities [B, K], route [B, N] bool."""
        labels, macs = images.new_zeros(images.shape[0], dtype=torch.int64), images.new_zeros(1)
        answers, hidden, route = [self.ask(0, images)], self.decide.start(images), []
        for t in range(self.mdp.num_decisions):
            state = ChainState(images, labels, t, tuple(answers), macs)
            execute, hidden = self.decide(self.mdp, state, hidden)
            answers.append(self.advance(state, execute))
            route.append(execute.reshape(-1, 1))
        return answers[-1].float(), torch.cat(route, dim=1)

    def ask(self, number: int, images: Tensor) -> Tensor:
        """The log-probabilities of one network: [B, K] float64."""
        found = self.networks[number](images)
        logits = found[0] if isinstance(found, tuple) else found  # gated networks return their route, too
        temperature = self.mdp.member(number).temperature
        return (logits.double() if temperature == 1 else logits.double() / temperature).log_softmax(dim=1)

    def mixed(self, t: int, images: Tensor, answer: Tensor) -> Tensor:
        """The answer so far [B, K], mixed with that of network t + 1."""
        return mix_answers(answer, self.ask(t + 1, images), self.weights[t])

    def advance(self, state: ChainState, execute: Tensor) -> Tensor:
        """The answer [B, K] after decision `state.t`, where `execute` [B] is the decision."""
        raise NotImplementedError


class OneImageChain(ChainEpisode):
    """One image at a time; each network but the first is a conditional."""

    episode = OneImageEpisode

    def advance(self, state: ChainState, execute: Tensor) -> Tensor:
        """Ask the network, or keep the answer."""
        return torch.cond(
            execute,
            lambda images, answer: self.mixed(state.t, images, answer),
            lambda images, answer: answer.clone(),
            (state.images, state.answer),
        )


class BatchedChain(ChainEpisode):
    """Any number of images at a time: gather those that the network is asked about, ask, scatter."""

    episode = BatchedEpisode

    def advance(self, state: ChainState, execute: Tensor) -> Tensor:
        """Ask the network about the images that execute it, which may be none."""
        index = execute.nonzero().squeeze(1)
        answer = self.mixed(state.t, state.images.index_select(0, index), state.answer.index_select(0, index))
        return state.answer.index_put((index,), answer)
