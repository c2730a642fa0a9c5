"""The models of torchvision and timm by name, and what these libraries state about them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from skipnet_rl.errors import WeightsError, unknown_name

LIBRARIES = ("torchvision", "timm")
LISTED = 8  # names in an error
SIZED = {
    "vit": "image_size",
    "VisionTransformer": "image_size",
    "maxvit": "input_size",
    "MaxVit": "input_size",
}


def parted(model: str) -> tuple[str, str]:
    """Split the name of a model into library and name.

    Raises:
        ValueError: an unknown library, or no name.
    """
    library, _, name = str(model).partition("/")
    if library not in LIBRARIES or not name:
        raise ValueError(
            f"model is {model!r}; expected a library and a name, such as torchvision/convnext_tiny or "
            "timm/deit_tiny_patch16_224"
        )
    return library, name


def check_model(model: str) -> None:
    """Raise a ValueError unless a library has a model of that name, such as `"torchvision/convnext_tiny"`."""
    model_builder(*parted(model))


def model_builder(library: str, name: str) -> Any:
    """The function or class that makes a model.

    Raises:
        ValueError: no such model, with the nearest names, or timm is not installed.
    """
    if library == "timm":
        timm = _timm()
        if not timm.is_model(name):
            raise _unknown(library, name, timm.list_models())
        return lambda **arguments: timm.create_model(name, **arguments)
    models = import_module("torchvision.models")
    kind = getattr(models, name, None)
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return kind
    known = models.list_models(module=models)
    if name not in known:
        classes = [
            each
            for each, kind in vars(models).items()
            if isinstance(kind, type) and issubclass(kind, nn.Module)
        ]
        raise _unknown(library, name, [*known, *classes])
    return models.get_model_builder(name)


def weights_of(name: str, weights: str) -> Any:
    """torchvision's entry for the weights of a model.

    Raises:
        WeightsError: it has none of that name.
    """
    is_class = isinstance(model_builder("torchvision", name), type)
    models = import_module("torchvision.models")
    try:
        return models.get_model_weights(name)[weights]
    except (KeyError, ValueError) as error:
        why = ": only functions, such as vit_b_16, have weights, and this is a class" if is_class else ""
        raise WeightsError(
            f"torchvision has no weights {weights!r} of {name}{why}; expected the path of a file, or None"
        ) from error


def _timm() -> Any:
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError(
            'models of timm need timm, which is not installed: pip install -e ".[timm]"'
        ) from error


def _unknown(library: str, name: str, known: Sequence[str]) -> ValueError:
    """An error that lists the nearest of a library's many names."""
    near = difflib.get_close_matches(name, known, n=LISTED, cutoff=0.5)
    if not near:
        return ValueError(
            f"unknown model of {library} {name!r}, and none of its {len(known)} names is near; see the list: "
            f"{'timm.list_models()' if library == 'timm' else 'torchvision.models.list_models()'}"
        )
    return unknown_name(f"model of {library}", name, near)


def timm_config(name: str) -> Mapping[str, Any]:
    """What timm states about a model: input size, mean and std of the images.

    Raises:
        ValueError: no such model, with the nearest names, or timm is not installed.
    """
    config = _timm().get_pretrained_cfg(name)
    if config is None:
        raise _unknown("timm", name, _timm().list_models())
    return config.to_dict()


def size_argument(library: str, name: str) -> str | None:
    """The argument in which a model takes the size of images; None if it takes any size."""
    if library == "timm":
        return "img_size"
    return next((argument for start, argument in SIZED.items() if name.startswith(start)), None)


def prepared(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert JSON arguments to what the library expects: a ConvNeXt's stages become its objects."""
    made = dict(arguments)
    if name == "ConvNeXt" and "block_setting" in made:
        config = import_module("torchvision.models.convnext").CNBlockConfig
        made["block_setting"] = [config(*each) for each in made["block_setting"]]
    return made
