"""Models of torchvision and timm by name: `"torchvision/convnext_tiny"`, `"timm/deit_tiny_patch16_224"`.

A torchvision name is that of a function, or of a class (`"torchvision/VisionTransformer"`) that takes all its
sizes as arguments. Arguments are JSON: ConvNeXt's stages are lists `[channels, channels after it, blocks]`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skipnet_rl.adaptation import IMAGE_SIZE, adapt
from skipnet_rl.adapted import AdaptedNetwork
from skipnet_rl.checkpoint import fill
from skipnet_rl.data.images import Statistics
from skipnet_rl.errors import WeightsError, check_count, one_line
from skipnet_rl.foreign import unwrapped
from skipnet_rl.libraries import (
    check_model,
    model_builder,
    parted,
    prepared,
    size_argument,
    timm_config,
    weights_of,
)

PRETRAINED = "DEFAULT"  # weights that the library recommends, as torchvision calls them
ELSEWHERE = {  # arguments of models that do not belong in model_kwargs
    "num_classes": "leave it out, and give the number as num_classes (default: the data set's)",
    "weights": f"leave it out, and give weights: {PRETRAINED!r} or the path of a file",
    "pretrained": f"leave it out, and give weights: {PRETRAINED!r} or the path of a file",
}
# what the code of a model raises if its arguments do not fit together
REFUSALS = (TypeError, ValueError, AssertionError, ArithmeticError, LookupError, AttributeError, RuntimeError)
EMBEDDINGS = {"pos_embed", "encoder.pos_embedding"}  # position embeddings, in timm and torchvision
PREFIXES = ("", "net.", "module.", "model.")  # that a state_dict's names may have


class ModelName(NamedTuple):
    """A model as it is built: its name, arguments and image size.

    Attributes:
        model: library and name.
        arguments: those of the function or class, without the number of classes and the size of images.
        image_size: side of the images, in pixels.
    """

    model: str
    arguments: Mapping[str, Any]
    image_size: int

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> ModelName | None:
        """The model that the header of a file names; None if it names none."""
        if "model" not in header:
            return None
        arguments = header.get("model_kwargs", {})
        size = header.get("image_size") or usual_image_size(header["model"], arguments)
        return cls(header["model"], arguments, size)

    def about(self) -> dict[str, Any]:
        """The entries for the header of a file."""
        return {"model": self.model, "model_kwargs": dict(self.arguments), "image_size": self.image_size}

    def build(self, num_classes: int, weights: str | None = None, seed: int | None = 0) -> AdaptedNetwork:
        """Build the network, in evaluation mode, on the CPU, in channels-last memory.

        Args:
            num_classes: K.
            weights: `"DEFAULT"` for the library's own weights, downloaded if they are not cached; None for
                random ones. If the library's are for another number of classes, the classifier is new; if
                they are for images of another size, position embeddings are interpolated; both with a
                warning.
            seed: seed of the random weights; None draws from PyTorch's global generator.

        Raises:
            ValueError: an unknown library or model, or arguments that it does not take.
            WeightsError: weights that the library does not have, that cannot be fetched, or that only fit
                images of another size.
        """
        with torch.inference_mode(False), torch.device("cpu"):
            with torch.random.fork_rng(devices=[], enabled=seed is not None):
                if seed is not None:
                    torch.default_generator.manual_seed(seed)
                model = self._made(num_classes)
            if weights is not None:
                take_over(model, self._pretrained(weights, model), f"{self.model} ({weights})")
            net = adapt(model, self.image_size)
        net.origin = self.about()
        return net.to(memory_format=torch.channels_last).eval()

    def outline(self, num_classes: int) -> AdaptedNetwork:
        """Build the network without values, on the `meta` device: fast, for its shapes and MACs.

        Raises:
            ValueError: see `build`.
        """
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                return adapt(self._made(num_classes), self.image_size)
        except ValueError:  # some models, such as RegNet, compute their widths with tensors
            return self.build(num_classes)

    def _made(self, num_classes: int) -> nn.Module:
        check_model(self.model)
        for given in self.arguments.keys() & ELSEWHERE.keys():
            raise ValueError(f"model_kwargs has {given} {self.arguments[given]!r}; {ELSEWHERE[given]}")
        try:
            return self._called(num_classes=num_classes)
        except REFUSALS as error:
            raise ValueError(
                f"{self.model} does not take model_kwargs {json.dumps(dict(self.arguments))} for images of "
                f"{self.image_size} pixels: {one_line(f'{type(error).__name__}: {error}')}"
            ) from error

    def _called(self, **more: Any) -> nn.Module:
        """Call the library's function or class, with the size of the images if it takes one."""
        library, name = parted(self.model)
        build, size = model_builder(library, name), size_argument(library, name)
        arguments = {**prepared(name, self.arguments), **more}
        if size is None or size in arguments:
            return build(**arguments)
        square = (self.image_size, self.image_size)
        try:
            return build(**arguments, **{size: square if size == "input_size" else self.image_size})
        except TypeError as error:
            if library != "timm" or size not in str(error):
                raise
            return build(**arguments)  # a model of timm for images of any size

    def _pretrained(self, weights: str, model: Any) -> Mapping[str, Tensor]:
        """The library's own weights, fitted to this size of images, for which `model` was built."""
        library, name = parted(self.model)
        size = self.image_size
        try:
            if library == "timm":
                size = model.pretrained_cfg.get("input_size", [size])[-1]
                tensors = self._called(pretrained=True).state_dict()  # which interpolates them
            else:
                entry = weights_of(name, weights)
                size = entry.meta["min_size"][-1]
                tensors = entry.get_state_dict(progress=False)
                if "encoder.pos_embedding" in tensors:
                    from torchvision.models.vision_transformer import interpolate_embeddings  # slow to import

                    tensors = interpolate_embeddings(self.image_size, model.patch_size, tensors)
        except (OSError, RuntimeError) as error:
            unlike = [line for line in str(error).splitlines() if "size mismatch" in line]  # PyTorch's words
            if unlike and size != self.image_size:
                raise WeightsError(
                    f"the weights of {self.model} are for images of {size} pixels and do not fit those of "
                    f"{self.image_size}; use image_size {size}: {unlike[0]}"
                ) from error
            raise WeightsError(f"the weights of {self.model} could not be fetched: {error}") from error
        if size != self.image_size and EMBEDDINGS & tensors.keys():
            warnings.warn(
                f"{self.model} ({weights}): its position embeddings are for images of {size} pixels and are "
                f"interpolated for those of {self.image_size}",
                stacklevel=3,
            )
        return tensors


def usual_image_size(model: str, arguments: Mapping[str, Any]) -> int:
    """Side of the images that a model is built for: from its arguments, else its library's default.

    Raises:
        ValueError: an unknown library or model; arguments that state no number of pixels.
    """
    library, name = parted(model)
    given = next(
        (arguments[each] for each in ("image_size", "input_size", "img_size") if each in arguments), None
    )
    if given is None:
        given = timm_config(name).get("input_size", IMAGE_SIZE) if library == "timm" else IMAGE_SIZE
    side: Any = given[-1] if isinstance(given, (tuple, list)) and given else given
    check_count("image_size", side, "a number of pixels, such as 224")
    return side


def usual_statistics(model: str, weights: str) -> Statistics:
    """Mean and std that the library's weights were trained with."""
    library, name = parted(model)
    if library == "timm":
        config = timm_config(name)
        return Statistics(tuple(config["mean"]), tuple(config["std"]))
    preset = weights_of(name, weights).transforms()
    return Statistics(tuple(preset.mean), tuple(preset.std))


def take_over(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, new_classifier: bool = True
) -> None:
    """Fill a model with tensors whose names may have any of `PREFIXES`.

    Args:
        model: what to fill.
        tensors: by name, as they are or as PyTorch's wrappers name them.
        source: for messages.
        new_classifier: if the classifier among the tensors has another number of classes, keep the model's
            own (its last linear layer, and others of as many classes), with a warning.

    Raises:
        WeightsError: they do not fit.
    """
    own = model.state_dict()
    plain = {unwrapped(name): value for name, value in tensors.items()}
    # the names as they came are tried, too: a model may have a layer that is called like a wrapper
    sources = [plain, tensors] if len(plain) == len(tensors) else [tensors]
    plain.pop("n_averaged", None)  # the count of torch.optim.swa_utils.AveragedModel
    candidates = (_renamed(each, own, prefix) for each in sources for prefix in PREFIXES)
    taken = max(candidates, key=lambda each: len(each.keys() & own))
    linear = {name: each for name, each in model.named_modules() if type(each) is nn.Linear}
    wanted = [each.out_features for each in linear.values()][-1:]
    heads = {  # a distilled DeiT has two
        name: len(came)
        for name, layer in linear.items()
        if (came := taken.get(f"{name}.weight")) is not None
        and [layer.out_features] == wanted
        and came.shape[1:] == layer.weight.shape[1:]
        and len(came) != layer.out_features
    }
    if heads and new_classifier:
        rows = max(heads.values())
        warnings.warn(
            one_line(f"{source}: its classifier has {rows} classes; the new one of {wanted[0]} is untrained"),
            stacklevel=3,
        )
        taken = {**taken, **{name: own[name] for name in own if name.rpartition(".")[0] in heads}}
    fill(model, taken, source)


def _renamed(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Strip a prefix from the names; add the `model.` of an adapted network if they lack it."""
    short = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if any(name in own for name in short):
        return short
    return {f"model.{name}": value for name, value in short.items()}
