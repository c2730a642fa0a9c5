"""A batch of images on its way through the network: what the single and the vector env share.

The dynamics are `skipnet_rl.mdp.RoutingMDP`'s. This keeps what an episode needs to remember (where
it stands, which images, the route so far) and turns the end of an episode into an info.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from skipnet_rl.data import Images
from skipnet_rl.errors import unknown_name
from skipnet_rl.flops import compute_blocks
from skipnet_rl.mdp import RoutingMDP, State

OBS_MODES = ("feature+block", "feature")
RESET_OPTIONS = ("index",)


class Lockstep:
    """B episodes that start and end together.

    The network is put into evaluation mode, anew before each block where something else trains it
    meanwhile: with batch statistics an observation would depend on its neighbours in the batch.

    Args:
        mdp: the decision process.
        images: what to draw from; moved to the network's device.
        size: B.
        obs_mode: `"feature+block"` (pooled feature and one-hot of the block) or `"feature"`.
        augment: crop and flip the images at random, as in training.
    """

    def __init__(self, mdp: RoutingMDP, images: Images, size: int, obs_mode: str, augment: bool) -> None:
        if obs_mode not in OBS_MODES:
            raise unknown_name("obs_mode", obs_mode, OBS_MODES)
        images.check_not_empty()
        if len(images.classes) > mdp.net.num_classes:
            raise ValueError(
                f"{images.name} has {len(images.classes)} classes and the network {mdp.net.num_classes}; "
                "build it with num_classes=len(images.classes)"
            )
        self.mdp = mdp
        self.device = next(mdp.net.parameters()).device
        self.images = images.to(self.device)
        self.size = size
        self.augment = augment
        whole = mdp.observation_size
        self.observation_size = whole if obs_mode == "feature+block" else mdp.feature_width
        self.macs = mdp.macs  # counted here, not in the step that ends the first episode
        self.state: State | None = None
        self.index = np.zeros(size, np.int64)
        self.routes = torch.zeros(size, 0, dtype=torch.bool, device=self.device)
        self.returns = torch.zeros(size, device=self.device)

    @property
    def terminal(self) -> bool:
        """Whether the episodes have ended."""
        return self.state is not None and self.mdp.terminal(self.state)

    @torch.no_grad()
    def reset(self, rng: np.random.Generator, options: dict[str, Any] | None) -> None:
        """Start with images drawn by `rng`, or with those of `options["index"]`."""
        given = (options or {}).get("index")
        size = len(self.images)
        self.index = (
            rng.integers(size, size=self.size) if given is None else check_index(given, self.size, size)
        )
        index = torch.from_numpy(self.index).to(self.device)
        if self.augment:
            draws = torch.Generator(self.device).manual_seed(int(rng.integers(2**63)))
            images, labels = self.images.training_batch(index, draws)
        else:
            images, labels = self.images.batch(index)
        self.mdp.net.eval()
        self.state = self.mdp.initial(images, labels)
        self.routes = torch.zeros(self.size, self.mdp.num_decisions, dtype=torch.bool, device=self.device)
        self.returns = torch.zeros(self.size, device=self.device)

    @torch.no_grad()
    def step(self, action: Tensor) -> Tensor:
        """Take an action, bool [B]; rewards [B] float32."""
        if self.state is None:
            raise ResetNeeded("step() before the first reset(); call reset() to start an episode")
        if self.terminal:
            raise ResetNeeded("step() after the end of the episode; call reset() to start the next one")
        if self.mdp.net.training:
            self.mdp.net.eval()
        state, self.state = self.state, self.mdp.transition(self.state, action, inplace=True)
        self.routes[:, state.t] = action
        reward = self.mdp.reward(state, action, self.state)
        self.returns = self.returns + reward
        return reward

    @torch.no_grad()
    def observation(self) -> Tensor:
        """[B, D] float32, fresh."""
        assert self.state is not None
        return self.mdp.observation(self.state)[:, : self.observation_size].contiguous()

    def start_info(self) -> dict[str, NDArray]:
        """Which images are being played: index and label, [B] each."""
        assert self.state is not None
        return {"index": self.index.copy(), "label": self.state.y.cpu().numpy().copy()}

    @torch.no_grad()
    def end_info(self) -> dict[str, NDArray]:
        """What came of it: arrays with B rows; see the environment's docstring."""
        assert self.state is not None and self.terminal
        logits, labels = self.mdp.logits(self.state), self.state.y
        prediction = logits.argmax(dim=1)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        routes = self.routes.cpu()
        correct = (prediction == labels).cpu().numpy()
        return {
            **self.start_info(),
            "prediction": prediction.cpu().numpy(),
            "correct": correct,
            "is_success": correct.copy(),
            "loss": loss.double().cpu().numpy(),
            "executed_blocks": routes.sum(dim=1).numpy(),
            "compute_blocks": compute_blocks(routes).numpy(),
            "compute_flops": (self.macs.of_routes(routes) / self.macs.total).numpy(),
            "route": routes.to(torch.int8).numpy(),
        }


def as_array(value: Any) -> NDArray:
    """Anything as an array, from any device; what is none, ragged lists or bf16, becomes one of objects."""
    try:
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # the last two: tensors that NumPy has no type for
        return np.empty((), dtype=object)


def check_options(options: dict[str, Any] | None, known: tuple[str, ...] = RESET_OPTIONS) -> None:
    """Raise a ValueError for an option that reset() does not know."""
    for name in options or {}:
        if name not in known:
            raise unknown_name("reset option", name, known)


def check_index(index: Any, count: int, size: int) -> NDArray[np.int64]:
    """Image numbers as an int64 array [count].

    Raises:
        ValueError: not integers, not `count` of them, or not all between 0 and size - 1.
    """
    array = as_array(index)
    if array.dtype.kind not in "iu" or array.shape not in ((count,), () if count == 1 else (count,)):
        wanted = "an integer" if count == 1 else f"{count} integers, one per sub-environment"
        raise ValueError(f"options['index'] is {index!r}; expected {wanted}")
    if array.min() < 0 or array.max() >= size:
        raise ValueError(f"options['index'] is {index!r}; this split has images 0 … {size - 1}")
    return array.reshape(count).astype(np.int64)
