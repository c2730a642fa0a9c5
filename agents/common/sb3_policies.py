"""stable-baselines3 models as policies: played like any other, restored from a run's files or a .zip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from skipnet_rl.errors import unknown_name
from skipnet_rl.policy_networks import OnObservations

WEIGHTS = "policy.safetensors"
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "ppo": PPO,
    "a2c": A2C,
    "dqn": DQN,
    "recurrent_ppo": RecurrentPPO,
}


class ModelPolicy(OnObservations):
    """A stable-baselines3 model as a `skipnet_rl.policies.Policy`, on its own device.

    The log-odds are those of its distribution over the two actions (PPO, A2C, RecurrentPPO), or the
    difference of its two action values (DQN): their sign is its greedy choice in both cases.

    Args:
        policy: the model's `policy`.
        num_decisions: N, for its cost.

    Raises:
        ValueError: a policy for other actions, or of another algorithm.
    """

    def __init__(self, policy: Any, num_decisions: int) -> None:
        if not (isinstance(policy.action_space, spaces.Discrete) and policy.action_space.n == 2):
            raise ValueError(f"the model's actions are {policy.action_space}; expected Discrete(2)")
        if not any(hasattr(policy, name) for name in ("q_net", "lstm_actor", "get_distribution")):
            raise ValueError(
                f"{type(policy).__name__} has neither a distribution over actions nor their values"
            )
        (width,) = policy.observation_space.shape
        super().__init__(width, num_decisions)
        self.policy = policy

    def decide(self, observation: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        """Log-odds of "execute" [B], and the memory of a recurrent model."""
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


def load_model(path: Path, algorithm: str, num_decisions: int) -> ModelPolicy:
    """Load the policy of a stable-baselines3 .zip that was saved elsewhere.

    Such a file holds pickled objects, which can execute code: open only what you trust.
    It lacks the statistics of `VecNormalize`, so observations reach the policy as they are.

    Args:
        path: of the .zip.
        algorithm: `"ppo"`, `"a2c"`, `"dqn"` or `"recurrent_ppo"`.
        num_decisions: N.

    Raises:
        ValueError: an unknown algorithm, or a model of another one.
        FileNotFoundError: no such file.
    """
    if algorithm not in ALGORITHMS:
        raise unknown_name("algorithm", algorithm, ALGORITHMS)
    if not path.is_file():
        raise FileNotFoundError(f"no model {path}")
    try:
        policy = ALGORITHMS[algorithm].load(path, device="cpu").policy
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is not a model of {algorithm}: {error}") from error
    return ModelPolicy(policy, num_decisions)
