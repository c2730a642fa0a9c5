"""Episodes of a batch of images, shared by the single and the vector environment.

The dynamics are those of a `skipnet_rl.process.DecisionProcess`. This module stores the state of the episodes
(position, images, routes so far) and builds the info at their end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
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


def without_gradients(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate a method to compute without gradients but outside inference mode.

    Tensors made in inference mode cannot be modified or differentiated through outside it, and the caller may
    enter or leave it between two steps.
    """

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return call


class Lockstep:
    """B episodes that start and end together.

    The network is in evaluation mode, set again before each block if it is being trained: with batch
    statistics an observation would depend on the other images of the batch.

    Args:
        mdp: the decision process.
        images: images to draw from; moved to the network's device.
        size: B.
        obs_mode: `"feature+block"` (pooled feature and one-hot of the decision) or `"feature"`.
        augment: crop and flip images at random, as in training.
    """

    @without_gradients
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
        _ = mdp.whole_macs  # counted now, not in the step that ends the first episode
        self.state: Any = None
        self.logits = self.loss = torch.empty(0, device=self.device)  # [B, K] and [B] at the end
        self.index = np.zeros(size, np.int64)
        self.routes = torch.zeros(size, 0, dtype=torch.bool, device=self.device)
        self.returns = torch.zeros(size, device=self.device)

    @property
    def terminal(self) -> bool:
        """Whether the episodes have ended."""
        return self.state is not None and self.mdp.terminal(self.state)

    @without_gradients
    def reset(self, rng: Generators, options: dict[str, Any] | None) -> None:
        """Start episodes with images drawn by `rng`, or with images `options["index"]`.

        Args:
            rng: one generator for all episodes, or one for each, B.
            options: options of the environments' `reset`.
        """
        given = (options or {}).get("index")
        size = len(self.images)
        rngs = [rng] if isinstance(rng, np.random.Generator) else list(rng)
        share = self.size // len(rngs)  # images per generator
        if given is None:
            self.index = np.concatenate([each.integers(size, size=share) for each in rngs])
        else:
            self.index = check_index(given, self.size, size)
        index = torch.from_numpy(self.index)
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
        """Copy the episodes so that they continue independently, over the same images.

        The network is shared if it is frozen, else copied.
        """
        memo[id(self.images)] = self.images
        net = self.mdp.net
        if not any(weight.requires_grad for weight in net.parameters()):
            memo[id(net)] = net
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @without_gradients
    def step(self, action: Tensor) -> Tensor:
        """Take actions, bool [B]; return rewards [B] float32."""
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

    @without_gradients
    def observation(self) -> Tensor:
        """Observations [B, D] float32, in new memory."""
        assert self.state is not None
        return self.mdp.observation(self.state)[:, : self.observation_size].contiguous()

    def start_info(self) -> dict[str, NDArray]:
        """Number and label of the images, [B] each."""
        assert self.state is not None
        return {"index": self.index.copy(), "label": self.state.y.cpu().numpy().copy()}

    @without_gradients
    def end_info(self) -> dict[str, NDArray]:
        """Info at the end, arrays with B rows; see the docstring of `SkipNetEnv`."""
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
    """Convert to an array; what NumPy cannot represent (ragged lists, bf16) becomes an object array."""
    try:
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # the last two: tensors of a type that NumPy lacks
        return np.empty((), dtype=object)


def check_options(options: dict[str, Any] | None, known: tuple[str, ...] = RESET_OPTIONS) -> None:
    """Raise a ValueError for an unknown option of reset(), or for something else than a dict."""
    if not isinstance(options, Mapping | None):
        raise ValueError(f'options is {options!r}; expected a dict such as {{"index": 0}}, or None')
    for name in options or {}:
        if name not in known:
            raise unknown_name("reset option", name, known)


def check_index(index: Any, count: int, size: int) -> NDArray[np.int64]:
    """Convert image numbers to an int64 array [count].

    Raises:
        ValueError: not `count` integers between 0 and size - 1.
    """
    array = as_array(index)
    if array.dtype.kind not in "iu" or array.shape not in ((count,), () if count == 1 else (count,)):
        wanted = "an integer" if count == 1 else f"{count} integers, one per sub-environment"
        raise ValueError(f"options['index'] is {index!r}; expected {wanted}")
    if array.min() < 0 or array.max() >= size:
        raise ValueError(f"options['index'] is {index!r}; this split has images 0 … {size - 1}")
    return array.reshape(count).astype(np.int64)
