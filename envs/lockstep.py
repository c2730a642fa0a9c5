"""A batch of images on its way through the network: what the single and the vector env share.

The dynamics are those of a `skipnet_rl.process.DecisionProcess`. This keeps what an episode needs to
remember (where it stands, which images, the route so far) and turns its end into an info.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from skipnet_rl.data import Images
from skipnet_rl.errors import unknown_name
from skipnet_rl.flops import compute_blocks
from skipnet_rl.process import DecisionProcess

OBS_MODES = ("feature+block", "feature")
RESET_OPTIONS = ("index",)
P = ParamSpec("P")
R = TypeVar("R")
Generators = np.random.Generator | Sequence[np.random.Generator]


def ordinary(method: Callable[P, R]) -> Callable[P, R]:
    """Compute without gradients and on ordinary tensors, whatever mode the caller is in.

    What is made in inference mode cannot be written into outside of it, nor be differentiated through, and
    the caller may well enter or leave it between two steps.
    """

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return call


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

    @ordinary
    def __init__(self, mdp: DecisionProcess, images: Images, size: int, obs_mode: str, augment: bool) -> None:
        if obs_mode not in OBS_MODES:
            raise unknown_name("obs_mode", obs_mode, OBS_MODES)
        images.check_not_empty()
        if len(images.classes) > mdp.net.num_classes:
            raise ValueError(
                f"{images.name} has {len(images.classes)} classes and the network {mdp.net.num_classes}; "
                "build it with num_classes=len(images.classes)"
            )
        self.mdp = mdp
        self.device = mdp.device
        self.images = images.to(self.device)
        self.size = size
        self.augment = augment
        whole = mdp.observation_size
        self.observation_size = whole if obs_mode == "feature+block" else mdp.feature_width
        _ = mdp.whole_macs  # counted here, not in the step that ends the first episode
        self.state: Any = None
        self.logits = self.loss = torch.empty(
            0, device=self.device
        )  # at the end of the episodes: [B, K] and [B]
        self.index = np.zeros(size, np.int64)
        self.routes = torch.zeros(size, 0, dtype=torch.bool, device=self.device)
        self.returns = torch.zeros(size, device=self.device)

    @property
    def terminal(self) -> bool:
        """Whether the episodes have ended."""
        return self.state is not None and self.mdp.terminal(self.state)

    @ordinary
    def reset(self, rng: Generators, options: dict[str, Any] | None) -> None:
        """Start with images drawn by `rng`, or with those of `options["index"]`.

        Args:
            rng: draws for all episodes together, or one for each of them, B.
            options: as `reset` of the environments takes them.
        """
        given = (options or {}).get("index")
        size = len(self.images)
        rngs = [rng] if isinstance(rng, np.random.Generator) else list(rng)
        share = self.size // len(rngs)  # images that each draws
        if given is None:
            self.index = np.concatenate([each.integers(size, size=share) for each in rngs])
        else:
            self.index = check_index(given, self.size, size)
        index = torch.from_numpy(self.index).to(self.device)
        if self.augment:
            images, labels = self._augmented(index.split(share), rngs)
        else:
            images, labels = self.images.batch(index)
        self.mdp.net.eval()
        self.state = self.mdp.initial(images, labels)
        self.routes = torch.zeros(self.size, self.mdp.num_decisions, dtype=torch.bool, device=self.device)
        self.returns = torch.zeros(self.size, device=self.device)

    def _augmented(
        self, index: Sequence[Tensor], rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        batches = []
        for part, rng in zip(index, rngs, strict=True):
            draws = torch.Generator(self.device).manual_seed(int(rng.integers(2**63)))
            batches.append(self.images.training_batch(part, draws))
        images, labels = zip(*batches, strict=True)
        if len(images) == 1:
            return images[0], labels[0]
        return torch.cat(images), torch.cat(labels)

    def __deepcopy__(self, memo: dict[int, Any]) -> Lockstep:
        """Episodes that go their own way from here, over the same images.

        They run the same network where it is frozen, else a copy of it.
        """
        memo[id(self.images)] = self.images
        net = self.mdp.net
        if not any(weight.requires_grad for weight in net.parameters()):
            memo[id(net)] = net
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @ordinary
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
        loss = None
        if self.terminal:
            self.logits = self.mdp.logits(self.state)
            self.loss = loss = self.mdp.loss(self.state, self.logits)
        reward = self.mdp.reward(state, action, self.state, loss)
        self.returns = self.returns + reward
        return reward

    @ordinary
    def observation(self) -> Tensor:
        """[B, D] float32, fresh."""
        assert self.state is not None
        return self.mdp.observation(self.state)[:, : self.observation_size].contiguous()

    def start_info(self) -> dict[str, NDArray]:
        """Which images are being played: index and label, [B] each."""
        assert self.state is not None
        return {"index": self.index.copy(), "label": self.state.y.cpu().numpy().copy()}

    @ordinary
    def end_info(self) -> dict[str, NDArray]:
        """What came of it: arrays with B rows; see the environment's docstring."""
        assert self.state is not None and self.terminal
        prediction = self.logits.argmax(dim=1)
        routes = self.routes.cpu()
        correct = (prediction == self.state.y).cpu().numpy()
        return {
            **self.start_info(),
            "prediction": prediction.cpu().numpy(),
            "correct": correct,
            "is_success": correct.copy(),
            "loss": self.loss.double().cpu().numpy(),
            "executed_blocks": routes.sum(dim=1).numpy(),
            "compute_blocks": compute_blocks(routes).numpy(),
            "compute_flops": self.mdp.compute_flops(self.state, self.routes).cpu().numpy(),
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
