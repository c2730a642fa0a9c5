"""SkipNetVectorEnv: a batch of images through one network, one block per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from envs.lockstep import Lockstep, as_array, check_options, without_gradients
from envs.rendering import Frame
from envs.seeds import as_seed, check_seeds, generators, is_list
from envs.skipnet import RENDER_MODES, SkipNetEnv
from envs.specs import WithPlainSpec
from skipnet_rl.data import Images
from skipnet_rl.errors import unknown_name
from skipnet_rl.process import DecisionProcess

ARRAYS = ("numpy", "torch")


class SkipNetVectorEnv(WithPlainSpec, VectorEnv[Any, Any, Any]):
    """`SkipNetEnv` for `num_envs` images at once, natively batched.

    All episodes have N decisions, so all sub-environments are at the same block and end on the same step. A
    step runs one block on the images whose action is "execute".

    One generator, seeded by `reset(seed=…)`, draws the images of all sub-environments; with `num_envs=1` it
    draws the same images as `SkipNetEnv`. (Gymnasium's own vector environments seed sub-environment i with
    seed + i, so that runs with neighbouring seeds would play almost the same images.) `reset(seed=[...])`,
    with one seed or None per sub-environment, gives each its own generator, which draws what `SkipNetEnv`
    draws with that seed. `reset(options={"index": [...]})` plays given images, one per sub-environment.

    With `array="torch"` observations, rewards and terminations are tensors on the network's device, and
    actions may be tensors, too; infos are always NumPy.

    Args:
        mdp: the decision process over a network, which is put into evaluation mode.
        images: images to draw from.
        num_envs: B.
        obs_mode: `"feature+block"` or `"feature"`.
        augment: crop and flip images at random.
        autoreset_mode: `SAME_STEP` (default: the step that ends the episodes returns the first observation of
            the next ones, with `final_obs` and `final_info`), `NEXT_STEP` (the next call of `step` ignores
            its actions, returns reward 0 and starts the next episodes) or `DISABLED`; the enum or its value.
        array: `"numpy"` or `"torch"`.
        render_mode: None, `"rgb_array"` or `"ansi"`.
    """

    def __init__(
        self,
        mdp: DecisionProcess,
        images: Images,
        num_envs: int = 1,
        *,
        obs_mode: str = "feature+block",
        augment: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        array: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(num_envs, (int, np.integer)) or isinstance(num_envs, bool) or num_envs < 1:
            raise ValueError(f"num_envs is {num_envs!r}; expected an integer >= 1")
        if array not in ARRAYS:
            raise unknown_name("array", array, ARRAYS)
        if render_mode not in (None, *RENDER_MODES):
            raise unknown_name("render_mode", render_mode, RENDER_MODES)
        self.num_envs, self.array, self.render_mode = int(num_envs), array, render_mode
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**SkipNetEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self._rngs: list[np.random.Generator] | None = None  # set by a list of seeds
        self.lockstep = Lockstep(mdp, images, self.num_envs, obs_mode, augment)
        shape = (self.lockstep.observation_size,)
        self.single_observation_space = Box(-np.inf, np.inf, shape, np.float32)
        self.single_action_space = Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start all episodes, with images `options["index"]` if given.

        Raises:
            ValueError: an unknown option, a list of seeds of the wrong length, or a `reset_mask` that
                excludes a sub-environment: all start together.
        """
        check_options(options, ("index", "reset_mask"))
        mask = (options or {}).get("reset_mask")
        if mask is not None and not _all_true(mask, self.num_envs):
            raise ValueError("options['reset_mask'] must be all True: the sub-environments move in lockstep")
        if is_list(seed):
            self._rngs = generators(check_seeds(seed, self.num_envs), self._rngs, self.np_random)
        elif seed is not None:
            super().reset(seed=as_seed(seed))
            self._rngs = None
        self.lockstep.reset(self._rngs or self.np_random, options)
        return self._observations(), self._masked(self.lockstep.start_info())

    @without_gradients
    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Skip (0) or execute (1) the current block in each sub-environment.

        Args:
            actions: [num_envs] integers or bools, an array or, with `array="torch"`, a tensor.

        Raises:
            ValueError: actions of another shape, type or value.
            gymnasium.error.ResetNeeded: no episode is running.
        """
        if self.lockstep.terminal and self.autoreset_mode == AutoresetMode.NEXT_STEP:
            observations, infos = self.reset()  # whatever the actions are
            nothing = torch.zeros(self.num_envs, device=self.lockstep.device)
            return observations, *self._outcome(nothing), infos
        if self.lockstep.terminal:
            raise ResetNeeded("step() after the end of the episodes; autoreset is disabled: call reset()")
        rewards = self.lockstep.step(self._check_actions(actions))
        ended = self.lockstep.terminal
        outcome = self._outcome(rewards)
        if not ended:
            return self._observations(), *outcome, {}
        infos = self.lockstep.end_info()
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            return self._observations(), *outcome, self._masked(infos)
        final = {"final_obs": self._final_observations(), "final_info": self._masked(infos)}
        observations, start = self.reset()
        return observations, *outcome, {**self._masked(final), **start}

    def render(self) -> tuple[Any, ...] | None:
        """One picture or line per sub-environment."""
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode; pass render_mode='rgb_array' or 'ansi'")
            return None
        frames = [Frame.of(self.lockstep, row) for row in range(self.num_envs)]
        return tuple(frame.line() if self.render_mode == "ansi" else frame.picture() for frame in frames)

    def _observations(self) -> Any:
        observations = self.lockstep.observation()
        return observations if self.array == "torch" else observations.cpu().numpy()

    def _final_observations(self) -> NDArray[np.object_]:
        rows = np.empty(self.num_envs, dtype=object)
        for row, last in enumerate(self._observations()):  # one by one: NumPy would convert GPU tensors
            rows[row] = last
        return rows

    def _outcome(self, rewards: Tensor) -> tuple[Any, Any, Any]:
        """Rewards, terminations and truncations; all episodes end together."""
        if self.array == "torch":
            device = self.lockstep.device
            done = torch.full((self.num_envs,), self.lockstep.terminal, device=device)
            return rewards.to(device), done, torch.zeros_like(done)
        ended = np.full(self.num_envs, self.lockstep.terminal)
        return rewards.double().cpu().numpy(), ended, np.zeros_like(ended)

    def _masked(self, info: dict[str, Any]) -> dict[str, Any]:
        """Add the mask of each key: every entry is valid for all sub-environments."""
        masks = {f"_{key}": np.ones(self.num_envs, dtype=np.bool_) for key in info}
        return {**info, **masks}

    def _check_actions(self, actions: Any) -> Tensor:
        device = self.lockstep.device
        given = actions if isinstance(actions, Tensor) else torch.from_numpy(_integers(actions))
        if given.is_floating_point() or given.is_complex() or given.shape != (self.num_envs,):
            raise ValueError(
                f"actions are {given.dtype} of shape {tuple(given.shape)}; expected integers or bools of "
                f"shape ({self.num_envs},), 0 (skip) or 1 (execute)"
            )
        execute = given.to(device).bool()
        # on a GPU this check waits for the device; bool tensors do not need it
        if given.dtype != torch.bool and not bool((given.to(device) == execute).all()):
            wrong = sorted(set(given.tolist()) - {0, 1})
            raise ValueError(f"actions contain {wrong[0]}; expected 0 (skip) or 1 (execute)")
        return execute


def _integers(actions: Any) -> NDArray:
    array = as_array(actions)
    if array.dtype.kind not in "biu":
        raise ValueError(
            f"actions are {array.dtype} of shape {array.shape}; expected integers or bools of shape "
            "(num_envs,), 0 (skip) or 1 (execute)"
        )
    return array.copy() if array.dtype.kind == "b" else array.astype(np.int64)


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    for known in AutoresetMode:
        if mode in (known, known.value):
            return known
    raise unknown_name("autoreset_mode", mode, [known.value for known in AutoresetMode])


def _all_true(mask: Any, count: int) -> bool:
    array = as_array(mask)
    return array.dtype.kind in "biu" and array.shape == (count,) and bool(array.all())
