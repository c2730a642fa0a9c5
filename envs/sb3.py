"""SB3VecEnv: adapter from a Gymnasium VectorEnv to a stable-baselines3 VecEnv.

Both step many environments at once but differ in conventions: SB3 resets within the step that ends an
episode, returns one info dict per environment, and stores the last observation of an episode in
`infos[i]["terminal_observation"]`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

Indices = int | Iterable[int] | None


class SB3VecEnv(VecEnv):
    """Any Gymnasium `VectorEnv` in same-step autoreset mode, for stable-baselines3.

        env = VecMonitor(SB3VecEnv(gym.make_vec("SkipResNet20-v0", num_envs=64)))
        PPO("MlpPolicy", env, n_steps=8, gamma=1.0).learn(100_000)

    Args:
        env: the vector environment; tensors become arrays.

    Raises:
        TypeError: `env` is not a `VectorEnv`.
        ValueError: another autoreset mode; SB3 would learn from a step whose action was ignored.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(env, VectorEnv):
            raise TypeError(f"{env!r} is not a Gymnasium VectorEnv; make one with gymnasium.make_vec(...)")
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode is {mode}; stable-baselines3 needs AutoresetMode.SAME_STEP, pass it as "
                "autoreset_mode to the vector environment"
            )
        self.env = env
        self._listed = DictInfoToList(env)
        self._actions: NDArray[Any] | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Start all episodes, with seeds and options set before; return observations [num_envs, …]."""
        first, *others = map(private, self._options)
        if not all(data_equivalence(first, options, exact=True) for options in others):
            raise ValueError("options differ between environments; a VectorEnv takes one dict for all")
        observations, infos = self._listed.reset(seed=self._seeds[0], options=self._options[0] or None)
        self.reset_infos = list(infos)
        self._reset_seeds()
        self._reset_options()
        return private(observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions [num_envs, …] for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Observations, rewards, dones, infos; where done, the observation starts the next episode."""
        observations, rewards, terminated, truncated, listed = self._listed.step(self._actions)
        terminated, truncated = private(terminated), private(truncated)
        dones = terminated | truncated
        infos = [self._info(row, info, bool(dones[row])) for row, info in enumerate(listed)]
        for info, ended, cut in zip(infos, terminated.tolist(), truncated.tolist(), strict=True):
            info["TimeLimit.truncated"] = cut and not ended
        return private(observations), private(rewards).astype(np.float32), dones, infos

    def _info(self, row: int, info: dict[str, Any], done: bool) -> dict[str, Any]:
        """Info of one environment in SB3's form; stores the next episode's in `reset_infos`."""
        if not done:
            return info
        last, final = info.pop("final_obs"), info.pop("final_info", {})
        self.reset_infos[row] = info
        return {**final, "terminal_observation": private(last)}

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A picture of each environment."""
        pictures: Any = self.env.render()
        return pictures or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of each environment; a native vector environment's own is repeated."""
        many = getattr(self.env.unwrapped, "get_attr", None)
        values = many(attr_name) if many else [getattr(self.env, attr_name)] * self.num_envs
        return [values[row] for row in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of all environments.

        Raises:
            NotImplementedError: only some environments; they may share one object.
        """
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise NotImplementedError("set_attr() sets all environments at once; leave out `indices`")
        many = getattr(self.env.unwrapped, "set_attr", None)
        if many:
            many(attr_name, [value] * self.num_envs)  # a list or tuple would be distributed
        else:
            setattr(self.env.unwrapped, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment; a native vector environment's own is called once."""
        many = getattr(self.env.unwrapped, "call", None)
        if many:
            results = many(method_name, *method_args, **method_kwargs)
        else:
            method = getattr(self.env, method_name)
            results = [method(*method_args, **method_kwargs)] * self.num_envs
        return [results[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Indices = None) -> list[bool]:
        """False for each: wrappers of sub-environments are not visible here."""
        return [False for _ in self._get_indices(indices)]


def private(value: Any) -> Any:
    """Copy to NumPy arrays: SB3 keeps observations for one more step and writes into rewards."""
    if isinstance(value, dict):
        return {key: private(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(private(item) for item in value)
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy().copy()
    return copy.deepcopy(value)
