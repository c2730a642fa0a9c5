"""Every learner finds the best route of a toy where it is known, and earns more than before."""

import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecMonitor
from toys import greedy, toy_mdp, two_colours

from agents import a2c, act, blockdrop, dqn, gumbel, ppo, reinforce
from agents.common.sb3 import episode_length
from agents.common.sb3_policies import ModelPolicy
from envs.sb3 import SB3VecEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.rollout import rollout

BEST = [1.0, 0.0]


def sampled_return(mdp, policy, data) -> float:
    """Mean return of sampled episodes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        images, labels = data.batch(torch.arange(len(data)))
        return rollout(mdp, policy, images, labels, "sample", generator).returns.mean().item()


@pytest.fixture
def data():
    return two_colours()


@pytest.fixture
def mdp(data):
    """The toy; its four routes' returns say that [1, 0] is the best one."""
    mdp = toy_mdp(data)
    images, labels = data.batch(torch.arange(len(data)))
    with torch.no_grad():
        returns = {
            (first, second): rollout(
                mdp, NoOpinion(), images, labels, routes=torch.tensor([[first, second]]).bool().expand(64, 2)
            )
            .returns.mean()
            .item()
            for first in (0, 1)
            for second in (0, 1)
        }
    assert max(returns, key=returns.get) == (1, 0)
    assert sorted(returns.values())[-1] - sorted(returns.values())[-2] > 0.05
    return mdp


class NoOpinion:
    """No opinion: the routes are given."""

    def __call__(self, mdp, state, hidden):
        return torch.zeros(len(state.y)), None


MODELS = {
    "PPO": (ppo, ppo.Args(), {"lr": 3e-3, "epochs": 4, "minibatches": 4, "entropy": 0.0}, 4_000),
    "RecurrentPPO": (
        ppo,
        ppo.Args(recurrent=True),
        {"lr": 3e-3, "epochs": 4, "minibatches": 4, "entropy": 0.0},
        4_000,
    ),
    "A2C": (a2c, a2c.Args(), {"lr": 3e-3, "entropy": 0.0}, 8_000),
    "DQN": (dqn, dqn.Args(), {"lr": 3e-3, "buffer": 10_000, "updates": 2, "episodes": 4_000}, 8_000),
}
SLOW = ("RecurrentPPO", "DQN")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS],
)
def test_stable_baselines3_learns_the_toy(name, data, mdp):
    module, args, numbers, steps = MODELS[name]
    env = VecMonitor(SB3VecEnv(SkipNetVectorEnv(mdp, data, 32, autoreset_mode=AutoresetMode.SAME_STEP)))
    assert episode_length(env) == 2
    model = module.make_model(env, args, numbers)
    assert model.gamma == 1.0
    if name != "DQN":  # rollouts that end with their episodes
        assert model.n_steps == 2 and model.gae_lambda == 1.0
    policy = ModelPolicy(model.policy, mdp.num_decisions)
    before = sampled_return(mdp, policy, data)
    model.learn(steps)
    after = greedy(mdp, policy, data)
    assert after.actions.mean(dim=0).tolist() == BEST
    assert after.correct.all()
    assert after.returns.mean() > before + 0.02


def test_reinforce_learns_the_toy(data, mdp):
    args = reinforce.Args(batch_size=32, routes=4, lr=0.1, precision="fp32")
    learner = reinforce.Learner(args, mdp, "fp32")
    weights = {name: value.clone() for name, value in mdp.net.state_dict().items()}
    before = sampled_return(mdp, learner.policy, data)
    for step in range(60):
        reinforce.train_step(learner, data, step, "train", args)
    assert greedy(mdp, learner.policy, data).actions.mean(dim=0).tolist() == BEST
    assert sampled_return(mdp, learner.policy, data) > before + 0.02
    assert all(torch.equal(weights[name], value) for name, value in mdp.net.state_dict().items())


def test_gumbel_gates_keep_the_block_that_is_needed(data, mdp):
    """Half of the blocks on average: which half, only the loss can say."""
    args = gumbel.Args(
        warmup_iterations=0, batch_size=32, iterations=80, target=0.5, lr=1e-6, gate_lr=0.1, precision="fp32"
    )
    learner = gumbel.Learner(args, mdp, "fp32")
    before = sampled_return(mdp, learner.policy, data)
    for step in range(args.iterations):
        gumbel.train_step(learner, data, step, "train", args)
    assert greedy(mdp, learner.policy, data).actions.mean(dim=0).tolist() == BEST
    assert sampled_return(mdp, learner.policy, data) > before + 0.02


def test_blockdrop_learns_the_toy_on_a_frozen_backbone(data, mdp):
    args = blockdrop.Args(
        warmup_iterations=0, batch_size=32, curriculum=60, joint=0, penalty=1.0, precision="fp32"
    )
    learner = blockdrop.Learner(args, mdp, "fp32")
    weights = {name: value.clone() for name, value in mdp.net.state_dict().items()}
    learner.policy.eval()
    before = sampled_return(mdp, learner.policy, data)
    for step in range(args.curriculum):
        blockdrop.train_step(learner, data, step, "curriculum", args)
    learner.policy.eval()
    after = greedy(mdp, learner.policy, data)
    assert after.actions.mean(dim=0).tolist() == BEST
    assert after.returns.mean() > before + 0.02
    assert all(torch.equal(weights[name], value) for name, value in mdp.net.state_dict().items())


def test_blockdrop_adds_blocks_from_the_end(data, mdp):
    args = blockdrop.Args(warmup_iterations=0, curriculum=40, joint=4)
    assert [args.decided(step, 8) for step in (0, 2, 3, 5, 10, 19, 20, 39, 43)] == [1, 1, 2, 3, 5, 8, 8, 8, 8]
    learner = blockdrop.Learner(
        blockdrop.Args(warmup_iterations=0, batch_size=32, precision="fp32"), mdp, "fp32"
    )
    episode = blockdrop.train_step(
        learner, data, 0, "curriculum", blockdrop.Args(warmup_iterations=0, batch_size=32)
    )
    assert episode.actions[:, 0].all() and not episode.actions[:, 1].all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blockdrop_trains_the_backbone_in_the_joint_stage_alone(data, mdp, precision):
    args = blockdrop.Args(
        warmup_iterations=0, batch_size=32, curriculum=1, joint=2, joint_lr=1e-3, precision=precision
    )
    learner = blockdrop.Learner(args, mdp, precision)
    weight = mdp.net.blocks[1].conv1.weight
    before = weight.clone()
    blockdrop.train_step(learner, data, 0, "curriculum", args)
    assert torch.equal(weight, before)
    blockdrop.train_step(learner, data, 1, "joint", args)
    assert not torch.equal(weight, before)


@pytest.fixture
def two_units(data):
    """Three stages of two units: the second does nothing, but the last one turns the answer round."""
    torch.manual_seed(0)
    net = ResNet(Architecture(32, (8, 16, 32), (2, 2, 2)), 2)
    for useless in (net.blocks[1].bn2, net.blocks[3].bn2):
        torch.nn.init.zeros_(useless.weight)
        useless.weight.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3)
    images, labels = data.batch(torch.arange(32))
    mdp = RoutingMDP(net, alpha=0.5)
    routes = torch.tensor([1, 1, 1, 1, 0]).bool().expand(32, 5)
    for _ in range(20):
        optimizer.zero_grad()
        whole = rollout(mdp, AlwaysExecute(), images, labels).loss
        without = rollout(mdp, AlwaysExecute(), images, 1 - labels, routes=routes).loss
        (whole + without).mean().backward()
        optimizer.step()
    return mdp


def test_act_halts_before_the_units_that_do_nothing(data, two_units):
    args = act.Args(batch_size=32, iterations=30, lr=1e-6, gate_lr=0.3, precision="fp32")
    learner = act.Learner(args, two_units, "fp32")
    for step in range(args.iterations):
        act.train_step(learner, data, step, "train", args)
    after = greedy(two_units, learner.policy, data)
    assert after.actions.mean(dim=0).tolist() == [0, 1, 0, 1, 1]
    assert after.correct.all()


def test_act_leaves_the_scores_alone_while_it_tunes(data, two_units):
    args = act.Args(batch_size=32, iterations=1, tune_iterations=1, precision="fp32")
    learner = act.Learner(args, two_units, "fp32")
    assert [args.left(step) for step in (0, 1)] == [1, 1] and learner.tau == 0.5 / 5
    scores, weight = learner.policy.scores[0].bias, two_units.net.blocks[0].conv1.weight
    for step, stage in enumerate(args.plan()):
        before = scores.clone(), weight.clone()
        act.train_step(learner, data, step, stage, args)
        assert torch.equal(scores, before[0]) == (stage == "tune"), stage
        assert not torch.equal(weight, before[1])
