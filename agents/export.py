"""Export a gated network or a chain as an ONNX model whose skipped blocks do not run.

    pip install -e ".[export]"
    python -m agents.export resnet110-rendered-digits-hrl --out model.onnx
    python -m agents.export runs/… --out model.onnx --batched
    python -m agents.export chain14x38x110-cifar10 --data-dir data --out chain.onnx

Inputs and outputs of the model: see `skipnet_rl.onnx.model`. Images are normalised: pixels in 0 … 1, minus
`mean` and divided by `std`, both in the model's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.common.cli import main_with_named_errors
from agents.common.finished import FinishedRun
from skipnet_rl.belief import BeliefGate, Threshold
from skipnet_rl.checkpoint import parts_of
from skipnet_rl.data import Images
from skipnet_rl.data.places import data_folder
from skipnet_rl.device import cpu_by_default
from skipnet_rl.errors import WeightsError
from skipnet_rl.files import whole_file
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.normalisation import normalised, stated
from skipnet_rl.onnx import Agreement, check_installed, compare_with_torch, export_onnx
from skipnet_rl.policies import Policy
from skipnet_rl.progress import image_progress, load_images
from skipnet_rl.stored import find_file
from skipnet_rl.terminal import say
from skipnet_rl.weights import StoredPolicy, open_weights

LOGITS_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Args:
    """Export a gated network or a chain as an ONNX model and check it against PyTorch."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """run folder, weights file of a gated network or a chain, or the name of a shipped one"""
    out: Path
    """file to write"""
    batched: bool = False
    """model for any number of images at a time (default: for one)"""
    check: int = 1000
    """number of test images to compare with PyTorch on; 0 for none"""
    data_dir: Path | None = None
    """folder of the data set's official files (default: the run's own, else $SKIPNET_DATA, else ./data)"""
    debug: bool = False
    """traceback of an error"""


@cpu_by_default()
def main(args: Args) -> Agreement | None:
    """Check the arguments, export, compare with PyTorch, and only then put the file in place.

    Raises:
        ModuleNotFoundError: the packages of the extra `export` are not installed.
        FileNotFoundError, WeightsError: no such network or finished run, or a network without gates.
        ValueError: a negative number of images, a data set of other classes, or a model that does not agree
            with PyTorch.
        OSError: the file cannot be written.
    """
    check_installed()
    data_folder(args.data_dir)  # a mistyped folder is an error even if nothing is read from it
    if args.check < 0:
        raise ValueError(f"the number of images to check on is {args.check}; expected 0 or more")
    if args.checkpoint.is_dir():
        run = FinishedRun.read(args.checkpoint)
        args = replace(args, checkpoint=run.weights(), data_dir=run.data_dir(args.data_dir))
    source = find_file(args.checkpoint)
    if args.out.exists() and any(part.exists() and args.out.samefile(part) for part in parts_of(source)):
        raise ValueError(f"{args.out} is the network itself; give the model another name")
    opened = open_weights(args.checkpoint)
    mdp, gate, about = opened.mdp(), opened.policy, opened.header
    if not isinstance(gate, StoredPolicy | Threshold | BeliefGate):
        what = f"{args.checkpoint} is of kind {about['kind']}, its policy {type(gate).__name__}"
        raise WeightsError(f"{what}; expected gates or a chain with thresholds or a BeliefGate")
    images = _test_images(about, mdp, args) if args.check else None
    with whole_file(args.out) as beside:
        export_onnx(mdp, gate, beside, args.batched, about)
        agreement = None if images is None else _compared(beside, mdp, gate, images)
    say(f"wrote {args.out}")
    return agreement


def _test_images(about: Mapping[str, Any], mdp: RoutingMDP, args: Args) -> Images:
    """The test images to compare on, normalised as the network was trained."""
    images = load_images(about["dataset"], "test", args.data_dir).sized(mdp.net.image_size)
    images = normalised(images, *(stated(about) or ()))
    if len(images.classes) != about["num_classes"]:
        raise ValueError(
            f"{args.checkpoint} has {about['num_classes']} classes, its data set {about['dataset']} "
            f"{len(images.classes)}; give the folder of the images that it was trained on"
        )
    images.check_not_empty()
    return images.first(args.check)


def _compared(model: Path, mdp: RoutingMDP, policy: Policy, images: Images) -> Agreement:
    """Compare with PyTorch; a ValueError where the two disagree."""
    with image_progress("check") as show:
        agreement = compare_with_torch(model, mdp, policy, images, show)
    say(
        f"{agreement.images} test images: {agreement.same_routes} with PyTorch's route, their logits "
        f"within {agreement.logits:.1e}"
    )
    if agreement.same_routes < agreement.images or agreement.logits > LOGITS_TOLERANCE:
        raise ValueError("the exported model does not agree with PyTorch; nothing was written")
    return agreement


if __name__ == "__main__":
    main_with_named_errors(Args, main, (ModuleNotFoundError,))
