"""SkipNetEnv: the forward pass of one image through a residual network as an episode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from envs.lockstep import Lockstep, as_array, check_options
from envs.rendering import Frame
from envs.seeds import as_seed
from envs.specs import WithPlainSpec
from skipnet_rl.data import Images
from skipnet_rl.errors import unknown_name
from skipnet_rl.process import DecisionProcess

RENDER_MODES = ("rgb_array", "ansi")


class SkipNetEnv(WithPlainSpec, gym.Env[NDArray[np.float32], np.int64]):
    """## Description

    A forward pass through a residual network as an episode, after SkipNet (Wang, Yu, Dou, Darrell,
    Gonzalez, "SkipNet: Learning Dynamic Routing in Convolutional Networks", ECCV 2018, arXiv
    1711.09485). An image enters; at each residual block the agent decides whether the image runs
    the block or takes its shortcut; at the end the classifier predicts the class. The agent is rewarded
    for skipping and penalised by the classifier's loss.

    ## Action Space

    `Discrete(2)`: `0` skips the block, `1` executes it (`skipnet_rl.mdp.Action`).

    ## Observation Space

    `Box(-inf, inf, (D,), float32)`, D = W + N, W channels of the widest stage (64 for CIFAR-sized
    networks, 512 for ResNet-34, 2048 for ResNet-50 and -101):

    | Num | Observation | Min | Max |
    |---|---|---|---|
    | 0 … C-1 | global average of the block's input, one per channel | -inf | inf |
    | C … W-1 | zero where the stage is narrower than the widest | 0 | 0 |
    | W … W+N-1 | one-hot of the decision, all zero at the end | 0 | 1 |

    Features can be negative: a skipped projection is not followed by a ReLU. With
    `obs_mode="feature"` the one-hot part is left out.

    ## Rewards

    α/N · C_i for skipping block i, nothing for executing it, and at the end minus the cross-entropy.
    C_i is 1 (`cost="blocks"`, the paper) or the block's share of the mean FLOPs (`cost="flops"`). The
    undiscounted return is minus the paper's loss, L - α/N Σ (1 - a_i) C_i.

    ## Starting State

    The image has passed the stem and the first block, which always runs. `reset(seed=…)` seeds the
    draw of the image; `reset(options={"index": k})` plays image k of the split.

    ## Episode End

    Terminated after N = number of blocks - 1 decisions. Never truncated.

    ## Information

    `reset`: `index`, `label`. At the end: `index`, `label`, `prediction`, `correct`, `is_success`
    (the same, for stable-baselines3), `loss`, `executed_blocks` (of the N), `compute_blocks`
    ((executed + 1) / (N + 1), the first block counted), `compute_flops` (FLOPs over those of the
    plain network, without the policy's, which are not known here), `route` (int8 [N]).

    ## Arguments

    For `gymnasium.make` see `envs.factory.make_env`. This class takes objects:

    Args:
        mdp: the decision process over a network, which is put into evaluation mode.
        images: images to draw from.
        obs_mode: `"feature+block"` or `"feature"`.
        augment: crop and flip images at random.
        render_mode: None, `"rgb_array"` or `"ansi"`; frames are drawn only by `render()`.

    ## Registered ids

    `SkipResNet{14,20,32,38,44,56,74,110,152}-v0` for 32×32 images, `SkipResNet{34,50,101}-v0` for
    224×224; smaller images are interpolated.

    `SkipChain14x38-v0`, `SkipChain20x38-v0`, `SkipChain14x110-v0`, `SkipChain20x110-v0`,
    `SkipChain14x38x110-v0`, and with a gated ResNet-38 as the first network `SkipChain38gx38-v0`,
    `SkipChain38gx110-v0`, `SkipChain38gx38x110-v0`; `SkipChain-v0` takes `networks` and `mix`, see
    `skipnet_rl.chain_problem.ChainProblem`. In a chain, a block is a whole network, and the first one has
    answered at the start; the observation is the belief of the answer so far (three largest
    log-probabilities, log p1 - log p2, entropy, log(1 - p1)) and the one-hot, D = 6 + N; C_i is the
    network's share of the mean FLOPs; FLOPs are over those of the last network; α is 0.05 N by default.

    `SkipNet-v0` takes `model`, a classifier of torchvision or timm, see
    `skipnet_rl.model_problem.ModelProblem`. W is the width of the pooled feature: for a transformer that of
    a token, doubled if the class token is put beside the mean of the image's tokens.

    ## Version History

    * v0: initial version.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}

    def __init__(
        self,
        mdp: DecisionProcess,
        images: Images,
        *,
        obs_mode: str = "feature+block",
        augment: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *RENDER_MODES):
            raise unknown_name("render_mode", render_mode, RENDER_MODES)
        self.render_mode = render_mode
        self.lockstep = Lockstep(mdp, images, 1, obs_mode, augment)
        self.observation_space = Box(-np.inf, np.inf, (self.lockstep.observation_size,), np.float32)
        self.action_space = Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode with a random image, or with image `options["index"]`."""
        check_options(options)
        super().reset(seed=as_seed(seed))
        self.lockstep.reset(self.np_random, options)
        return self._observation(), _single(self.lockstep.start_info())

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Skip (0) or execute (1) the current block.

        Raises:
            ValueError: an action that is neither 0 nor 1.
            gymnasium.error.ResetNeeded: no episode is running.
        """
        execute = torch.tensor([check_action(action)], device=self.lockstep.device)
        reward = self.lockstep.step(execute).item()
        ended = self.lockstep.terminal
        return self._observation(), reward, ended, False, _single(self.lockstep.end_info()) if ended else {}

    def render(self) -> Any:
        """Render the episode so far: a picture [H, W, 3] uint8 (`"rgb_array"`) or a line (`"ansi"`)."""
        if self.render_mode is None:
            gym.logger.warn(
                "render() without a render_mode; pass render_mode='rgb_array' or 'ansi' to make()"
            )
            return None
        frame = Frame.of(self.lockstep, 0)
        return frame.line() if self.render_mode == "ansi" else frame.picture()

    def _observation(self) -> NDArray[np.float32]:
        return self.lockstep.observation()[0].cpu().numpy()


def check_action(action: Any) -> bool:
    """Convert an action, 0 or 1 as an integer, bool or array of one element, to a bool.

    Raises:
        ValueError: anything else.
    """
    array = as_array(action)
    if array.size == 1 and array.dtype.kind in "biu" and array.item() in (0, 1):
        return bool(array.item())
    raise ValueError(f"action is {action!r}; expected 0 (skip) or 1 (execute) as an integer")


def _single(info: dict[str, NDArray]) -> dict[str, Any]:
    """First row of each array; scalars become Python numbers."""
    return {key: value[0].item() if value.ndim == 1 else value[0].copy() for key, value in info.items()}
