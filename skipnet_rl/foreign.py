"""Translate the names that other projects give to the layers of a ResNet into this project's.

Here all blocks are in one list: `stem.0`, `blocks.7.conv1`, `blocks.7.shortcut.0`, `fc`. Other projects group
them in stages, often under a prefix that a wrapper added. The names of these are known:

- torchvision, timm and most CIFAR repositories (akamaster, kuangliu, chenyaofo, bearpaw): `layer2.0.conv1`,
  with `downsample` or `shortcut`, and `fc`, `linear`, `classifier` or `head.fc`;
- weiaicunzai/pytorch-cifar100: `conv3_x.0.residual_function.0`;
- SkipNet's authors: `group2_layer0.conv1` with `group2_ds0.0`; BlockDrop's: `blocks.1.0.conv1` with `ds.1.0`;
- Hugging Face's transformers: `encoder.stages.1.layers.0.layer.0.convolution`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from skipnet_rl.blocks import Block, Bottleneck
from skipnet_rl.errors import WeightsError
from skipnet_rl.resnet import Architecture, ResNet

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # anywhere in a name
BLOCKDROP = re.compile(r"blocks\.(\d)\.(\d+)\.(.+)")
BLOCKS = (  # stage, position in it, layer; and the number of the first stage
    (re.compile(r"layer(\d)\.(\d+)\.(.+)"), 1),
    (re.compile(r"group(\d)_layer(\d+)\.(.+)"), 1),
    (re.compile(r"conv(\d)_x\.(\d+)\.(.+)"), 2),
    (re.compile(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(.+)"), 0),
    (BLOCKDROP, 0),
)
SHORTCUTS = ((re.compile(r"group(\d)_ds0\.(.+)"), 1), (re.compile(r"ds\.(\d)\.(.+)"), 0))
HERE = re.compile(r"blocks\.(\d+)\.([a-z].*)")
STEM = {
    "stem.0": "stem.0",
    "conv1": "stem.0",
    "conv1.0": "stem.0",
    "embedder.embedder.convolution": "stem.0",
    "stem.1": "stem.1",
    "bn1": "stem.1",
    "conv1.1": "stem.1",
    "embedder.embedder.normalization": "stem.1",
}
CLASSIFIERS = ("fc", "linear", "classifier", "classifier.1", "head", "head.fc", "last_linear")
LISTED = 3  # names in a message
LEAVES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
BESIDE = re.compile(r"(\w*gate\w*|control)\..+|n_averaged")  # gates, and counts of averaged weights
INSIDE = (  # layers of a block
    (re.compile(r"(?:downsample|shortcut)\.(?:0|conv|convolution)\."), lambda found: "shortcut.0."),
    (re.compile(r"(?:downsample|shortcut)\.(?:1|bn|normalization)\."), lambda found: "shortcut.1."),
    (re.compile(r"residual_function\.([013467])\."), lambda found: _in_sequence(int(found[1]))),
    (re.compile(r"layer\.(\d)\.convolution\."), lambda found: f"conv{int(found[1]) + 1}."),
    (re.compile(r"layer\.(\d)\.normalization\."), lambda found: f"bn{int(found[1]) + 1}."),
)


class Place(NamedTuple):
    """The place of a layer: in a block of a stage, in a block numbered as here (-1), or in none (None)."""

    stage: int | None
    position: int
    layer: str


class Backbone(NamedTuple):
    """The ResNet in a state_dict.

    Attributes:
        tensors: by this project's names; tensors of the network whose names are unknown keep them.
        left_out: names of the tensors that are not part of the network.
        own: whether the names were already this project's.
    """

    tensors: dict[str, Tensor]
    left_out: list[str]
    own: bool


def place_of(name: str) -> Place | None:
    """The place of the layer of that name; None if no known project uses the name."""
    for pattern, first in BLOCKS:
        if (found := pattern.fullmatch(name)) and int(found[1]) >= first:
            return Place(int(found[1]) - first, int(found[2]), _inside(found[3]))
    for pattern, first in SHORTCUTS:
        if (found := pattern.fullmatch(name)) and int(found[1]) >= first:
            return Place(int(found[1]) - first, 0, f"shortcut.{found[2]}")
    if found := HERE.fullmatch(name):
        return Place(-1, int(found[1]), found[2])
    module, _, leaf = name.rpartition(".")
    if leaf in LEAVES and (module in STEM or module in CLASSIFIERS):
        return Place(None, 0, f"{STEM.get(module, 'fc')}.{leaf}")
    return None


def find_backbone(state: Mapping[str, Tensor], source: str) -> Backbone:
    """Find the ResNet in a state_dict, under any prefix.

    Raises:
        WeightsError: there is none, there are several, or two layers of one name differ; the message
            describes `source`.
    """
    found = {name: _places(name) for name in state}
    prefix = _prefix(found, source)
    placed: dict[str, Place] = {}
    outside: dict[str, Place] = {}
    unknown, left_out = [], []
    for name, (before, place) in found.items():
        if place is not None and before == prefix:
            placed[name] = place
        elif place is not None and place.layer.startswith("fc.") and prefix.startswith(before):
            outside[name] = place  # a head beside the backbone
        elif unwrapped(name).startswith(prefix) and not BESIDE.fullmatch(unwrapped(name)[len(prefix) :]):
            unknown.append(name)
        else:
            left_out.append(name)
    if any(place.layer.startswith("fc.") for place in placed.values()):
        left_out += outside
    else:
        placed |= outside
    named = _by_names_of_here(placed)
    tensors = {name: state[name] for name in unknown}
    for original, name in named.items():
        if name in tensors and not torch.equal(tensors[name], state[original]):
            raise WeightsError(f"{source} has two layers that stand for {name}, of which {original} differs")
        tensors[name] = state[original]
    own = all(place.stage in (None, -1) for place in placed.values())
    return Backbone(tensors, sorted(left_out), own)


def has_blocks(state: Mapping[str, Tensor]) -> bool:
    """Whether some of the tensors are those of residual blocks."""
    return any(place and place.stage is not None for _, place in map(_places, state))


def check_padding(state: Mapping[str, Tensor], net: ResNet, source: str) -> None:
    """Refuse BlockDrop's shortcuts without weights: they add channels elsewhere than `"pad"` and `"pool"`."""
    theirs = any(BLOCKDROP.search(name) for name in state)
    if theirs and net.shortcut != "projection" and not any("ds." in name for name in state):
        raise WeightsError(
            f"{source} does not fit: its shortcuts put new channels behind the old ones, the shortcuts here "
            "around them, which would change its logits; expected shortcuts with weights"
        )


def architecture_of(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """The architecture of tensors under this project's names; None if they hold no block."""
    widths: dict[int, int] = {}
    for name in sorted(tensors):
        if (found := re.fullmatch(r"blocks\.(\d+)\.conv\d\.weight", name)) and tensors[name].dim() == 4:
            widths[int(found[1])] = tensors[name].shape[0]  # of the last convolution
    if not widths:
        return None
    stages = [
        (width, len(list(equal))) for width, equal in groupby(widths[block] for block in sorted(widths))
    ]
    kind = Bottleneck if any(".conv3." in name for name in tensors) else Block
    stem = tensors.get("stem.0.weight")
    large = stem is not None and stem.shape[-1] == 7
    channels = tuple(width // kind.expansion for width, _ in stages)
    blocks = tuple(count for _, count in stages)
    return Architecture(224 if large else 32, channels, blocks, kind, large)


def describe(tensors: Mapping[str, Tensor]) -> str:
    """Describe a network in words, from its tensors under this project's names."""
    plan = architecture_of(tensors)
    stages = plan.blocks if plan else ()
    kind = f"residual network with stages of {', '.join(map(str, stages))} blocks"
    try:
        if plan and Architecture.of_depth(plan.depth).blocks == plan.blocks:
            kind = f"ResNet-{plan.depth}"
    except ValueError:  # not a depth of this project
        pass
    classes = (
        f" of {len(tensors['fc.weight'])} classes" if "fc.weight" in tensors else " without a classifier"
    )
    weights = any(".shortcut." in name for name in tensors)
    return f"a {kind}{classes} with {'projection shortcuts' if weights else 'shortcuts without weights'}"


def contents(state: Mapping[str, Tensor], source: str) -> str:
    """Describe what a state_dict holds: a ResNet, or else the names of its first tensors."""
    try:
        found = find_backbone(state, source).tensors
        if architecture_of(found) is not None:
            return describe(found)
    except WeightsError:  # no ResNet, or several
        pass
    return f"{len(state)} tensor{'s' * (len(state) != 1)}, first {', '.join(list(state)[:LISTED]) or 'none'}"


def _places(name: str) -> tuple[str, Place | None]:
    """Split off the shortest prefix that leaves a layer's name; return it and the layer's place."""
    parts = unwrapped(name).split(".")
    for start in range(len(parts)):
        if place := place_of(".".join(parts[start:])):
            return "".join(f"{part}." for part in parts[:start]), place
    return "", None


def unwrapped(name: str) -> str:
    """A layer's name without the parts that wrappers of PyTorch add, such as `torch.compile`."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefix(found: Mapping[str, tuple[str, Place | None]], source: str) -> str:
    """The prefix that most layers of blocks have."""
    votes = Counter(prefix for prefix, place in found.values() if place and place.stage is not None)
    most = [prefix for prefix, count in votes.items() if count == max(votes.values(), default=0)]
    averages = [prefix for prefix in most if re.search(r"ema|averag", prefix)]
    most = [prefix for prefix in most if prefix not in averages] or most
    if len(most) > 1:
        raise WeightsError(f"{source} holds several networks: {', '.join(most)}; save the state_dict of one")
    if not most:
        first = f", first {next(iter(found))}" if found else ""
        raise WeightsError(
            f"{source} holds no ResNet by names known here: {len(found)} tensors{first}; "
            "expected names such as conv1.weight, layer1.0.conv1.weight and fc.weight; rename its layers"
        )
    return most[0]


def _by_names_of_here(placed: Mapping[str, Place]) -> dict[str, str]:
    counts = [0] * 10  # blocks of each stage
    for place in placed.values():
        if place.stage is not None and place.stage >= 0:
            counts[place.stage] = max(counts[place.stage], place.position + 1)
    first = [*accumulate(counts, initial=0), 0]  # the last for stage -1, whose blocks are numbered throughout
    return {
        name: place.layer
        if place.stage is None
        else f"blocks.{first[place.stage] + place.position}.{place.layer}"
        for name, place in placed.items()
    }


def _in_sequence(number: int) -> str:
    """Convolution, batch norm and ReLU in turn."""
    return f"{('conv', 'bn')[number % 3]}{number // 3 + 1}."


def _inside(layer: str) -> str:
    for pattern, replacement in INSIDE:
        layer, changed = pattern.subn(replacement, layer, count=1)
        if changed:
            break
    return layer
