"""What the stable-baselines3 agents share: their environment, their progress, their models as policies.

The backbone is frozen; the agent sees the environment's observations and rewards and nothing else.
Discount 1, as in SkipNet: with SB3's 0.99 the loss at the end of 53 decisions would count for 0.59 at
the first of them.

`--resume` goes on with the weights, the optimizer and the count of episodes of the last evaluation. What
stable-baselines3 keeps to itself is begun anew: DQN's replay memory, the state of its random numbers. A
resumed run is therefore not the run that was interrupted, bit by bit, as it is with the other agents here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn

from agents.loop import progress, progress_bar
from agents.setting import CommonArgs, Setting, val_metrics
from agents.watch import check_finite
from envs.sb3 import SB3VecEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.checkpoint import load_weights, save_weights
from skipnet_rl.errors import unknown_name
from skipnet_rl.flops import count_macs
from skipnet_rl.gates import INITIAL_RATE
from skipnet_rl.inference import for_inference
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.runs import Run

WEIGHTS = "policy.safetensors"
ALGORITHMS = {"ppo": PPO, "a2c": A2C, "dqn": DQN, "recurrent_ppo": RecurrentPPO}
POLICIES = {"actor-critic": ActorCriticPolicy, "dqn": DQNPolicy, "recurrent": RecurrentActorCriticPolicy}


@dataclass(frozen=True)
class SB3Args(CommonArgs):
    """Flags of every stable-baselines3 agent; None stands for the preset of the id."""

    episodes: int | None = None
    """images to train on, one episode each"""
    num_envs: int | None = None
    """images at once"""
    lr: float | None = None
    """Adam's learning rate"""
    width: int = 64
    """of the two hidden layers"""
    eval_every: int = 5_000
    """episodes between evaluations on validation images"""
    eval_images: int = 1_000
    """validation images in each of them"""
    resume: bool = False
    """go on from the checkpoint in --run-dir, with the replay memory empty"""


def preset(args: SB3Args, presets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the id's preset, or of the default one, where no flag gives another."""
    chosen = {**presets["default"], **presets.get(args.env, {})}
    given = {key: getattr(args, key, None) for key in chosen}
    return {key: value if given[key] is None else given[key] for key, value in chosen.items()}


def start_near_execute(model: BaseAlgorithm) -> None:
    """Let an actor begin where SkipNet's gates begin: the backbone breaks down under random routes."""
    policy = model.policy
    assert isinstance(policy, ActorCriticPolicy) and isinstance(policy.action_net, nn.Linear)
    with torch.no_grad():
        policy.action_net.bias.copy_(torch.logit(torch.tensor([1 - INITIAL_RATE, INITIAL_RATE])) / 2)


class ModelPolicy(nn.Module):
    """A stable-baselines3 model as a `skipnet_rl.policies.Policy`, on its own device.

    The log-odds are those of its distribution over the two actions (PPO, A2C, RecurrentPPO), or the
    difference of its two action values (DQN): their sign is its greedy choice in both cases.

    Args:
        policy: the model's `policy`.
        num_decisions: N, for its cost.

    Raises:
        ValueError: a policy for other spaces, or of an algorithm that is none of these.
    """

    def __init__(self, policy: Any, num_decisions: int) -> None:
        super().__init__()
        if not (isinstance(policy.action_space, spaces.Discrete) and policy.action_space.n == 2):
            raise ValueError(f"the model's actions are {policy.action_space}; expected Discrete(2)")
        if not any(hasattr(policy, name) for name in ("q_net", "lstm_actor", "get_distribution")):
            raise ValueError(
                f"{type(policy).__name__} has neither a distribution over actions nor their values"
            )
        self.policy, self.num_decisions = policy, num_decisions
        (self.width,) = policy.observation_space.shape

    def forward(self, mdp: RoutingMDP, state: State, hidden: Any) -> tuple[Tensor, Any]:
        """Log-odds of "execute" [B], and the memory of a recurrent model."""
        if self.width not in (mdp.observation_size, mdp.feature_width):
            expected = f"{mdp.observation_size}, or {mdp.feature_width} of obs_mode='feature'"
            raise ValueError(
                f"the model takes observations of length {self.width}; this network has {expected}"
            )
        place = state.x.device
        observation = mdp.observation(state)[:, : self.width].to(self.policy.device)
        with torch.autocast(place.type, enabled=False):
            logit, hidden = self.decide(observation, hidden)
        return logit.to(place), hidden

    def decide(self, observation: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        """The same from observations [B, D]."""
        policy = self.policy
        if hasattr(policy, "q_net"):
            values = policy.q_net(observation)
            return values[:, 1] - values[:, 0], None
        if hasattr(policy, "lstm_actor"):
            distribution, hidden = self._recur(observation, hidden)
        else:
            distribution = policy.get_distribution(observation)
        logits = distribution.distribution.logits
        return logits[:, 1] - logits[:, 0], hidden

    def _recur(self, observation: Tensor, hidden: Any) -> tuple[Any, Any]:
        policy, batch = self.policy, len(observation)
        if hidden is None:
            layers, _, size = policy.lstm_hidden_state_shape
            hidden = (observation.new_zeros(layers, batch, size), observation.new_zeros(layers, batch, size))
        going_on = observation.new_zeros(batch)
        return policy.get_distribution(observation, hidden, going_on)

    def macs(self) -> int:
        """MACs of all N decisions for one image."""
        observation = torch.zeros(1, self.width, device=self.policy.device)
        with torch.no_grad():
            once, _ = count_macs(self.decide, observation, None)
        return once * self.num_decisions


class Progress(BaseCallback):
    """Bar, metrics, validation and checkpoints, under the names that every agent uses."""

    def __init__(
        self, run: Run, validate: Callable[[], dict[str, Any]], episodes: int, every: int,
        done: int = 0, elapsed: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.run, self.validate, self.episodes, self.every = run, validate, episodes, every
        self.first = self.done = done
        self.next_evaluation = (done // every + 1) * every
        self.before, self.begun = elapsed, time.perf_counter()
        self.due: dict[str, float] | None = None  # metrics of a checkpoint to come

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.before + time.perf_counter() - self.begun

    def _on_training_start(self) -> None:
        self.bar = progress_bar(total=self.episodes, initial=self.done, unit="episode")

    def _on_step(self) -> bool:
        ended = [info for info in self.locals["infos"] if "episode" in info]
        if not ended:
            return True
        self.done += len(ended)
        self.bar.update(len(ended))
        metrics = self._metrics(ended)
        self.bar.set_postfix_str(progress(metrics), refresh=False)
        if self.done >= min(self.next_evaluation, self.episodes):
            self.next_evaluation += self.every
            self.due = metrics
        return True

    def _on_rollout_start(self) -> None:
        self._checkpoint()

    def _on_training_end(self) -> None:
        self._checkpoint()
        self.bar.close()

    def _checkpoint(self) -> None:
        """Where one is due: not before the update on the episodes that it counts as done."""
        if self.due is None:
            return
        self.run.log(self.done, "train", **self.due, **val_metrics(self.validate()))
        self.due = None
        parameters = self.model.get_parameters()
        check_finite(parameters, self.done, "train")
        self.run.save(
            {
                "parameters": parameters, "timesteps": self.num_timesteps, "done": self.done,
                "elapsed": self.elapsed,
            }
        )  # fmt: skip

    def _metrics(self, infos: list[dict[str, Any]]) -> dict[str, float]:
        routes = np.stack([info["route"] for info in infos])
        return {
            "train/loss": float(np.mean([info["loss"] for info in infos])),
            "train/accuracy": float(np.mean([info["correct"] for info in infos])),
            "train/return": float(np.mean([info["episode"]["r"] for info in infos])),
            "train/executed": float(routes.mean()),
            "train/least_executed": float(routes.mean(axis=0).min()),
            "train/images_per_s": (self.done - self.first) / (time.perf_counter() - self.begun),
        }


def training_env(setting: Setting, num_envs: int) -> VecEnv:
    """The native vector environment over the frozen backbone, augmented training images."""
    mdp = RoutingMDP(for_inference(setting.net, setting.precision), setting.args.alpha, setting.args.cost)
    return VecMonitor(SB3VecEnv(SkipNetVectorEnv(mdp, setting.train, num_envs, augment=True)))


def episode_length(env: VecEnv) -> int:
    """N, of the environment that `training_env` made."""
    return env.get_attr("lockstep")[0].mdp.num_decisions


def train_sb3(
    args: SB3Args,
    agent: str,
    name: str,
    presets: Mapping[str, Mapping[str, Any]],
    make_model: Callable[[VecEnv, dict[str, Any]], BaseAlgorithm],
) -> dict[str, Any]:
    """Train a model on the frozen backbone, then the test set once; returns result.json's content.

    Args:
        args: the flags.
        agent: the module's name.
        name: the policy's in the table.
        presets: numbers per id, see `preset`.
        make_model: from the environment and the numbers.
    """
    setting = Setting.of(args)
    numbers = preset(args, presets)
    mdp = setting.mdp()
    env = training_env(setting, numbers["num_envs"])
    model = make_model(env, numbers)
    run = setting.start_run(agent.replace("_", "-"), args.resume)
    state = (run.load() if args.resume else None) or {"timesteps": 0, "done": 0, "elapsed": 0.0}
    if state["done"]:
        model.set_parameters(state["parameters"])
        model.num_timesteps = state["timesteps"]
        model.set_random_seed(args.seed + state["done"])  # not the images of the beginning once more
    model.set_logger(configure(str(run.folder / "sb3"), ["csv", "tensorboard"]))
    policy = ModelPolicy(model.policy, mdp.num_decisions)
    episodes = numbers["episodes"]
    callback = Progress(
        run, lambda: setting.validate(mdp, policy), episodes, args.eval_every, state["done"], state["elapsed"]
    )
    left = episodes * mdp.num_decisions - state["timesteps"]
    if left > 0:
        model.learn(left, callback=callback, reset_num_timesteps=not state["done"])
    wall_time = callback.elapsed
    model.save(run.folder / "model.zip")
    save_weights(run.folder / WEIGHTS, model.policy, {"agent": agent, "env": args.env})
    load_weights(run.folder / WEIGHTS, model.policy)  # what the file does is reported
    learned = setting.evaluate(mdp, policy)
    rows = {**setting.references(learned.rate), name: learned}
    about = {"preset": numbers, "policy": policy_spec(model.policy)}
    return setting.finish(run, agent, rows, wall_time, **about)


def policy_spec(policy: Any) -> dict[str, Any]:
    """What `build_policy` needs to make such a policy again."""
    return {
        "class": next(key for key, known in POLICIES.items() if type(policy) is known),
        "observation_size": policy.observation_space.shape[0],
        "net_arch": list(policy.net_arch),
        **({"lstm_hidden_size": policy.lstm_actor.hidden_size} if hasattr(policy, "lstm_actor") else {}),
    }


def build_policy(spec: Mapping[str, Any], num_decisions: int) -> ModelPolicy:
    """An untrained policy of a `policy_spec`; no pickle is read, unlike by `BaseAlgorithm.load`."""
    spec = dict(spec)
    kind, size = POLICIES[spec.pop("class")], spec.pop("observation_size")
    box = spaces.Box(-np.inf, np.inf, (size,), np.float32)
    return ModelPolicy(kind(box, spaces.Discrete(2), lambda _: 0.0, **spec), num_decisions)


def load_model(path: Path, algorithm: str, num_decisions: int) -> ModelPolicy:
    """The policy of a stable-baselines3 .zip that was saved elsewhere.

    Such a file holds pickled objects, which can execute code: open only what you trust.

    Args:
        path: of the .zip.
        algorithm: `"ppo"`, `"a2c"`, `"dqn"` or `"recurrent_ppo"`.
        num_decisions: N.

    Raises:
        ValueError: an unknown algorithm, or another one's model.
        FileNotFoundError: no such file.
    """
    if algorithm not in ALGORITHMS:
        raise unknown_name("algorithm", algorithm, ALGORITHMS)
    if not path.is_file():
        raise FileNotFoundError(f"no model {path}")
    try:
        policy = ALGORITHMS[algorithm].load(path, device="cpu").policy
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is no model of {algorithm}: {error}") from error
    return ModelPolicy(policy, num_decisions)
