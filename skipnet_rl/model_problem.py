"""Build a model of torchvision or timm from names, and the images that it is to classify."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipnet_rl.errors import check_count
from skipnet_rl.models import PRETRAINED, ModelName, usual_image_size, usual_statistics
from skipnet_rl.problem import Problem
from skipnet_rl.stored import known_header
from skipnet_rl.weights import open_weights

MODEL = "torchvision/resnet18"  # if neither the caller nor a file of weights names one


@dataclass(frozen=True)
class ModelProblem(Problem):
    """A model of torchvision or timm and the images that it is to classify, by their names.

    Attributes:
        model: library and name, see `models` (default: what the weights' file names, else
            `"torchvision/resnet18"`).
        model_kwargs: arguments of the model, a mapping or its JSON (default: the file's, else none).
        image_size: side of the images, in pixels (default: the file's, else the model's).
        weights: path of a file, `"DEFAULT"` for the library's own weights, None or `"none"` (untrained);
            `"auto"` is untrained with a warning.
        mean, std: see `Problem`; the default with `"DEFAULT"` weights is what they were trained with.
        num_classes: K (default: that of the data set).
    """

    depth: int = 0
    model: str | None = None
    model_kwargs: Mapping[str, Any] | str | None = None
    image_size: int | None = None  # type: ignore[assignment]
    num_classes: int | None = None

    def resolve(self, kinds: Sequence[str] = ("plain",)) -> ModelProblem:
        """Return a copy with every default filled in, see `Problem`; `model_kwargs` becomes JSON.

        Raises:
            ValueError: what `Problem.resolve` raises; arguments that are not a JSON object; an unknown
                library; a size or number of classes below 1; a shortcut or `"torchvision"` weights, which
                are for the built-in ResNets only.
        """
        if self.shortcut is not None:
            raise ValueError(
                f"shortcut is {self.shortcut!r}, which only the built-in ResNets take; other models "
                "have their own: leave it out"
            )
        problem: Any = super().resolve(kinds)
        if problem.weights == "torchvision":
            raise ValueError(
                "weights is 'torchvision', which only the built-in ResNets take; for the weights of a "
                f"model's library give {PRETRAINED!r}"
            )
        header = known_header(problem.weights)
        model = self.model or header.get("model") or MODEL
        same = header.get("model") == model
        given = self.model_kwargs if self.model_kwargs is not None else same and header.get("model_kwargs")
        arguments = parsed(given or {})
        size = self.image_size
        if size is None:
            size = (same and header.get("image_size")) or usual_image_size(model, arguments)
        check_count("image_size", size, "a number of pixels, such as 224")
        if self.num_classes is not None:
            check_count("num_classes", self.num_classes, "a number of classes, such as 10")
        if problem.weights == PRETRAINED and self.mean is None and self.std is None:
            mean, std = usual_statistics(model, PRETRAINED)
            problem = replace(problem, mean=mean, std=std)
        text = json.dumps(arguments, sort_keys=True)
        return replace(problem, model=model, model_kwargs=text, image_size=size)

    def _weights(self, weights: str | None, dataset: str, kinds: Sequence[str]) -> tuple[str | None, str]:
        return weights, "none: no model of another library is shipped" if weights == "auto" else str(weights)

    @property
    def named(self) -> ModelName:
        """The model as it is built; only for a resolved problem."""
        assert self.model is not None and self.image_size is not None, "resolve() comes first"
        return ModelName(self.model, parsed(self.model_kwargs or {}), self.image_size)

    def network(self, num_classes: int, weights: str | Path | None = None) -> Any:
        """The network in evaluation mode, on the device, in channels-last memory; see `Problem.network`.

        Raises:
            ValueError: arguments that the model does not take, or fewer classes than the data set has.
            WeightsError: weights that are missing, damaged or of another model.
        """
        classes = num_classes if self.num_classes is None else self.num_classes
        if classes < num_classes:
            raise ValueError(f"num_classes is {classes}; the data set {self.dataset} has {num_classes}")
        return load_named(weights or self.weights, self.named, classes).to(self.device)


def load_named(
    weights: str | Path | None, named: ModelName, num_classes: int, new_classifier: bool = True
) -> Any:
    """Load the network that weights of a named model stand for, on the CPU; see `ModelProblem`."""
    if weights == "auto":
        warnings.warn(f"no weights of {named.model} are shipped: the network is untrained", stacklevel=3)
    if weights in (None, "none", "auto"):
        return named.build(num_classes)
    if weights == PRETRAINED:
        return named.build(num_classes, PRETRAINED)
    opened = open_weights(weights, model=named, num_classes=num_classes, new_classifier=new_classifier)
    return opened.network


def parsed(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """Arguments from a mapping or its JSON.

    Raises:
        ValueError: something else.
    """
    try:
        value = json.loads(given) if isinstance(given, str) else dict(given)
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model_kwargs is {given!r}; expected a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f'model_kwargs is {given!r}; expected a JSON object, such as {{"num_layers": 6}}')
    return value
