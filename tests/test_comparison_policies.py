"""Policies and bounds to compare with, against brute force and the papers' equations by hand."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecMonitor
from stable_baselines3.dqn.policies import DQNPolicy

from agents import a2c, blockdrop, dqn, gumbel, oracle, ppo, static
from agents.common.sb3 import preset
from agents.common.sb3_policies import ModelPolicy
from envs.sb3 import SB3VecEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.checkpoint import load_weights, save_weights
from skipnet_rl.evaluate import evaluate, load_records, save_evaluations
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, Biased, Exploring, FixedRoute, first_memory
from skipnet_rl.policy_networks import ObservationPolicy, PolicyNetwork
from skipnet_rl.rollout import choose, rollout
from skipnet_rl.weights import open_weights


@pytest.fixture
def mdp(tiny_net):
    return RoutingMDP(tiny_net, alpha=0.5)


def test_the_greedy_order_drops_what_costs_least(mdp, tiny_images):
    order = static.greedy_order(mdp, tiny_images)
    assert sorted(order) == list(range(8))
    dropped = []
    for chosen in order[:-1]:  # by brute force, one step after the other
        returns = {}
        for block in set(range(8)) - set(dropped):
            route = torch.ones(12, 8, dtype=torch.bool)
            route[:, [*dropped, block]] = False
            images, labels = tiny_images.batch(torch.arange(12))
            with torch.no_grad():
                done = rollout(mdp, AlwaysExecute(), images, labels, routes=route)
            returns[block] = done.returns.mean().item()
        assert returns[chosen] == pytest.approx(max(returns.values()), abs=1e-5)
        dropped.append(chosen)


@pytest.fixture
def batch(tiny_images):
    return tiny_images.batch(torch.arange(12))


def brute_force(mdp, images, labels):
    """Executed blocks of each image's cheapest right route; 9 where there is none."""
    fewest = torch.full((12,), 9)
    for route in itertools.product((0, 1), repeat=8):
        routes = torch.tensor(route).bool().expand(12, 8)
        with torch.no_grad():
            correct = rollout(mdp, AlwaysExecute(), images, labels, routes=routes).correct
        fewest = torch.where(correct, fewest.minimum(torch.tensor(sum(route))), fewest)
    return fewest


def test_the_bound_is_exact_and_its_routes_are_right(mdp, batch):
    expected = brute_force(mdp, *batch)
    assert len(set(expected.tolist())) > 2 and (expected < 9).any()  # a case that tells something
    routes = oracle.every_route(mdp, *batch)
    found = routes.sum(dim=1)
    with torch.no_grad():
        correct = rollout(mdp, AlwaysExecute(), *batch, routes=routes).correct
    solvable = expected < 9
    assert torch.equal(correct, solvable)
    assert torch.equal(found[solvable], expected[solvable])
    assert not routes[~solvable].any()


def test_searched_routes_are_right_and_not_below_the_bound(mdp, batch):
    routes = oracle.search(mdp, *batch, torch.Generator().manual_seed(0), restarts=8)
    bound = brute_force(mdp, *batch)
    with torch.no_grad():
        correct = rollout(mdp, AlwaysExecute(), *batch, routes=routes).correct
        full = rollout(mdp, AlwaysExecute(), *batch).correct
    assert correct[full].all()  # what the whole network gets right is kept right
    assert (routes.sum(dim=1)[correct] >= bound[correct]).all()
    assert (routes.sum(dim=1)[full] < 8).any()  # and something was dropped


def test_blockdrops_reward_and_bound_by_hand():
    routes = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    got = blockdrop.reward(routes, torch.tensor([True, True, False]), penalty=5.0)
    assert got.tolist() == [0.75, 0.0, -5.0]  # 1 - (2/4)², 1 - 1, -γ
    logits = torch.tensor([-100.0, 0.0, 100.0])
    assert blockdrop.bounded(logits, 0.8).tolist() == pytest.approx([0.2, 0.5, 0.8])


def test_missing_the_target_rate_by_hand():
    actions = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])  # rates 1 and 1/4
    assert gumbel.rate_penalty(actions, 0.5, "block").item() == pytest.approx((0.25 + 0.0625) / 2)
    assert gumbel.rate_penalty(actions, 0.5, "network").item() == pytest.approx(0.125**2)


def test_gumbel_draws_have_their_probability_and_the_relaxed_gradient():
    logit = torch.full((20_000,), 0.7, requires_grad=True)
    drawn = choose(logit, "gumbel", torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0.0, 1.0}
    p = torch.sigmoid(torch.tensor(0.7)).item()
    assert drawn.mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / 20_000) ** 0.5)
    drawn.sum().backward()
    noise = torch.logit(torch.rand(20_000, generator=torch.Generator().manual_seed(0)), eps=1e-6).double()
    step = 1e-5
    relaxed = [torch.sigmoid(0.7 + sign * step + noise) for sign in (1, -1)]
    torch.testing.assert_close(
        logit.grad.double(), (relaxed[0] - relaxed[1]) / (2 * step), rtol=1e-3, atol=1e-5
    )


def models(mdp, images):
    """Each algorithm's model, untrained, with layers that see the observation."""
    numbers = {
        "lr": 1e-3,
        "epochs": 1,
        "minibatches": 1,
        "entropy": 0.0,
        "buffer": 100,
        "updates": 1,
        "episodes": 64,
    }
    for module, args in (
        (ppo, ppo.Args()),
        (ppo, ppo.Args(recurrent=True)),
        (a2c, a2c.Args()),
        (dqn, dqn.Args()),
    ):
        env = VecMonitor(SB3VecEnv(SkipNetVectorEnv(mdp, images, 12)))
        model = module.make_model(env, args, numbers)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.policy.parameters():
            if parameter.ndim > 1:
                parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        for layer in ("action_net", "q_net"):
            if hasattr(model.policy, layer):
                bias = list(getattr(model.policy, layer).parameters())[-1]
                bias.data.zero_()
        yield model, env


def test_a_models_log_odds_have_the_sign_of_its_choice(mdp, tiny_images):
    for model, env in models(mdp, tiny_images):
        policy = ModelPolicy(model.policy, 8)
        env.set_options({"index": list(range(12))})
        observations, memory, routes = env.reset(), None, []
        starts = np.ones(12, dtype=bool)
        for _ in range(8):
            actions, memory = model.predict(observations, memory, starts, deterministic=True)
            starts[:] = False
            routes.append(actions)
            observations, *_ = env.step(actions)
        chosen = torch.from_numpy(np.stack(routes, axis=1)).bool()
        assert 0 < chosen.float().mean() < 1, type(model).__name__
        done = evaluate(mdp, policy, tiny_images)
        assert torch.equal(done.routes, chosen), type(model).__name__
        assert done.policy_flops > 0


@pytest.mark.parametrize(
    ("kind", "more", "once"),
    [
        (ActorCriticPolicy, {}, 72 * 32 + 32 * 16 + 16 * 2),
        (DQNPolicy, {}, 72 * 32 + 32 * 16 + 16 * 2),
        (
            RecurrentActorCriticPolicy,
            {"lstm_hidden_size": 24},
            4 * 24 * (72 + 24) + 24 * 32 + 32 * 16 + 16 * 2,
        ),
    ],
)
def test_macs_of_a_model(kind, more, once):
    """Count the layers of the actor by hand, without those of the critic."""
    box = spaces.Box(-1, 1, (72,))
    policy = kind(box, spaces.Discrete(2), lambda _: 0.0, net_arch=[32, 16], **more)
    assert ModelPolicy(policy, 8).macs() == 8 * once
    assert ObservationPolicy.of_sb3(policy.state_dict(), 8).macs() == 8 * once


@pytest.mark.parametrize(
    ("size", "decisions", "sides"),  # of the maps of each stage
    [
        (32, 8, (32, 16, 8)),
        (224, 15, (32, 16, 8)),  # a seventh of the image's side
        (48, 8, (48, 24, 12)),  # as the image is
        (100, 8, (33, 17, 9)),  # a third of it, rounded down
    ],
)
def test_macs_of_blockdrops_policy(size, decisions, sides):
    """ResNet-8: stem, three blocks (two begin a stage), their shortcuts and the output layer."""
    first, second, third = (side**2 for side in sides)
    blocks = 9 * (2 * 16 * 16 * first + (16 + 32) * 32 * second + (32 + 64) * 64 * third)
    layers = 9 * 3 * 16 * first + blocks + 16 * 32 * second + 32 * 64 * third + 64 * decisions
    assert PolicyNetwork(decisions, image_size=size).macs() == layers


def test_models_load_without_pickle(mdp, tiny_images, tmp_path):
    for number, (model, _) in enumerate(models(mdp, tiny_images)):
        file = tmp_path / f"{number}.safetensors"
        save_weights(file, model.policy, {})
        load_weights(file, model.policy)  # rounded to half precision, as a run's final evaluation is
        opened = open_weights(file, network=mdp.net.state_dict())
        assert opened.header["kind"] == "sb3"  # which its tensors show
        both = ModelPolicy(model.policy, 8), opened.policy
        first, second = (evaluate(mdp, policy, tiny_images) for policy in both)
        assert torch.equal(first.routes, second.routes)
        assert torch.equal(first.returns, second.returns) and first.policy_flops == second.policy_flops


def test_models_for_other_spaces_are_refused(mdp, batch):
    box = spaces.Box(-1, 1, (72,))
    with pytest.raises(ValueError, match="expected Discrete\\(2\\)"):
        ModelPolicy(ActorCriticPolicy(box, spaces.Discrete(3), lambda _: 0.0), 8)
    short = ModelPolicy(ActorCriticPolicy(spaces.Box(-1, 1, (7,)), spaces.Discrete(2), lambda _: 0.0), 8)
    with pytest.raises(ValueError, match="of length 7; this network has 72, or 64 with obs_mode"):
        rollout(mdp, short, *batch)


def test_a_model_decides_on_its_own_device(mdp, batch):
    """The model may be on another device than the network: observations go there, log-odds come back."""
    policy = ModelPolicy(DQNPolicy(spaces.Box(-1, 1, (72,)), spaces.Discrete(2), lambda _: 0.0), 8)
    seen = []
    policy.decide = lambda observation, hidden: (
        seen.append(observation.device.type) or torch.zeros(len(observation)),
        hidden,
    )
    policy.policy.to("meta")
    assert rollout(mdp, policy, *batch).gate_logits.device.type == "cpu" and seen == ["meta"] * 8
    del policy.decide
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # on the way back
        rollout(mdp, policy, *batch)


def test_flags_override_presets():
    presets = {"default": {"lr": 0.1, "num_envs": 4}, "SkipResNet20-v0": {"num_envs": 8}}
    assert preset(ppo.Args(env="SkipResNet20-v0"), presets) == {"lr": 0.1, "num_envs": 8}
    assert preset(ppo.Args(env="SkipResNet56-v0", lr=0.5), presets) == {"lr": 0.5, "num_envs": 4}


def test_a_policy_that_sees_the_image_keeps_its_memory_inside_others(mdp, batch):
    torch.manual_seed(0)
    policy = PolicyNetwork(8).eval()
    torch.nn.init.normal_(policy.net.fc.weight)
    torch.nn.init.zeros_(policy.net.fc.bias)
    with torch.no_grad():
        logits = policy.start(batch[0])
        assert logits.shape == (12, 8)
        plain = rollout(mdp, policy, *batch)
        assert torch.equal(plain.gate_logits, logits)
        assert 0 < plain.actions.mean() < 1
        assert torch.equal(rollout(mdp, Biased(policy, 0.5), *batch).gate_logits, logits + 0.5)
        kept = rollout(mdp, Exploring(policy, 0.1), *batch).gate_logits.sigmoid()
        torch.testing.assert_close(kept, 0.1 + 0.8 * logits.sigmoid())
    assert first_memory(AlwaysExecute(), batch[0]) is None


def test_a_fixed_route_is_the_same_for_all_images(mdp, batch):
    route = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])
    with torch.no_grad():
        assert torch.equal(rollout(mdp, FixedRoute(route), *batch).actions, route.expand(12, 8).float())


def test_stored_routes_round_trip_and_replay(mdp, tiny_images, tmp_path):
    generator = torch.Generator().manual_seed(0)
    routes = torch.rand(12, 8, generator=generator) < 0.5
    done = evaluate(mdp, AlwaysExecute(), tiny_images, routes=routes, batch_size=5)
    assert torch.equal(done.routes, routes)
    save_evaluations(tmp_path / "routes.npz", {"some policy": done})
    record = load_records(tmp_path / "routes.npz")["some policy"]
    np.testing.assert_array_equal(record.routes, routes.numpy())
    np.testing.assert_array_equal(record.predictions, done.predictions.numpy())
    np.testing.assert_array_equal(record.correct, done.correct.numpy())
    with pytest.raises(ValueError, match=r"routes have shape \(3, 8\); expected \(12, 8\)"):
        evaluate(mdp, AlwaysExecute(), tiny_images, routes=routes[:3])
    (tmp_path / "routes.npz").write_bytes((tmp_path / "routes.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="does not hold routes"):
        load_records(tmp_path / "routes.npz")


@pytest.mark.parametrize("rate, target", [(1.0, 0.7), (0.82, 0.7), (0.3, 0.5), (0.0, 0.2), (1.0, 0.0)])
def test_a_missed_target_is_noted(rate, target):
    (note,) = gumbel.missed_target(gumbel.Args(target=target), rate)
    for part in (f"{rate:.1%}", f"{target:.1%}", "--iterations", "--penalty"):
        assert part in note


@pytest.mark.parametrize("rate, target", [(0.7, 0.7), (0.73, 0.7), (0.46, 0.5), (1.0, 1.0), (0.0, 0.0)])
def test_a_met_target_is_not_noted(rate, target):
    assert not gumbel.missed_target(gumbel.Args(target=target), rate)
