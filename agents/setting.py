"""What every agent shares before and after its learning: flags, images, network, the table's rows."""

from __future__ import annotations

import copy
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from agents.checks import check_numbers
from agents.report import print_table, write_plots
from envs import depth_of
from skipnet_rl.data import Images, load_images, resolve_dataset
from skipnet_rl.data.imageset import step_generator
from skipnet_rl.evaluate import Evaluation, evaluate, save_evaluations
from skipnet_rl.mdp import ALPHA, RoutingMDP
from skipnet_rl.policies import AlwaysExecute, Policy, RandomSkip
from skipnet_rl.precision import pick_device, resolve_precision
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.runs import Run, run_folder
from skipnet_rl.weights import build_backbone

# test images that end a run on a data set for a first look: all 4,000 take the main job ¾ of a minute more
TEST_IMAGES = {"rendered-digits": 2_000}


@dataclass(frozen=True)
class CommonArgs:
    """Flags that every agent has."""

    env: str = "SkipResNet110-v0"
    """a registered id; it names the depth"""
    dataset: str = "auto"
    """auto, rendered-digits, cifar10, cifar100, svhn, imagenet or imagefolder"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    download: bool = False
    """fetch missing files through torchvision"""
    weights: str = "auto"
    """backbone to start from: a file (.safetensors, or a PyTorch state_dict of this or another project), the
    name of a shipped one, auto for the shipped one that fits, torchvision for torchvision's, or none"""
    shortcut: str = "projection"
    """projection, pad or pool"""
    alpha: float = ALPHA
    """weight of the compute saving against the loss"""
    cost: str = "blocks"
    """what a skipped block saves: blocks (1 each) or flops"""
    eval_images: int = 500
    """validation images in each evaluation on the way"""
    test_images: int | None = None
    """test images that the run ends with, the first ones (default: all; of rendered-digits 2,000)"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware has it"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    seed: int = 0
    """of whatever is drawn at random"""
    run_dir: Path | None = None
    """run folder (default: runs/<env>-<agent>-<seed>-<time>)"""
    debug: bool = False
    """show the traceback of an error"""

    @property
    def depth(self) -> int:
        """Of the network that the id names."""
        return depth_of(self.env)

    @property
    def images_per_step(self) -> int:
        """Different images of a training step, at most; 0 where the environments choose them."""
        return 0

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        check_numbers(self)


@dataclass(frozen=True)
class Setting:
    """What an agent learns on.

    Attributes:
        args: the flags.
        dataset: what `--dataset` came to.
        train, val, test: the splits, on the device; of the last what `--test-images` or `TEST_IMAGES` leave.
        split_images: how many the test split has.
        net: the backbone to start from, in evaluation mode, on the device.
        device, precision: what `--device` and `--precision` came to.
    """

    args: CommonArgs
    dataset: str
    train: Images = field(repr=False)
    val: Images = field(repr=False)
    test: Images = field(repr=False)
    split_images: int
    net: ResNet = field(repr=False)
    device: torch.device
    precision: str

    @classmethod
    def of(cls, args: CommonArgs) -> Setting:
        """Check the flags, load what they name; the first line printed says which data set and why.

        Nothing is written, so that a command that is refused leaves no run folder in the way of the next.

        Raises:
            ValueError: flags that make no sense, also with this data set.
        """
        args.check()
        device = pick_device(args.device)
        precision = resolve_precision(args.precision, device)
        dataset, reason = resolve_dataset(args.dataset, args.data_dir)
        tqdm.write(f"dataset: {reason}")
        size = Architecture.of_depth(args.depth).image_size
        train, val, test = (
            load_images(dataset, split, args.data_dir, args.download, size).to(device)
            for split in ("train", "val", "test")
        )
        read = args.test_images or TEST_IMAGES.get(dataset) or len(test)
        if args.images_per_step > len(train):
            raise ValueError(
                f"--batch-size asks for {args.images_per_step} images a step; {dataset} has {len(train)}"
            )
        net = build_backbone(args.depth, len(train.classes), dataset, args.shortcut, args.weights)
        return cls(args, dataset, train, val, test.first(read), len(test), net.to(device), device, precision)

    def mdp(self) -> RoutingMDP:
        """The decision process over a network of its own, as it was loaded."""
        return RoutingMDP(copy.deepcopy(self.net), self.args.alpha, self.args.cost)

    def evaluate(
        self, mdp: RoutingMDP, policy: Policy, mode: str = "greedy", images: Images | None = None
    ) -> Evaluation:
        """Every test image of the run once, or every image of another split."""
        draws = step_generator(self.args.seed, 0, self.device, stream=3)
        images = self.test if images is None else images
        return evaluate(mdp, policy, images, mode=mode, generator=draws, precision=self.precision)

    def validate(self, mdp: RoutingMDP, policy: Policy, mode: str = "greedy") -> dict[str, Any]:
        """The summary on the first validation images, on the way."""
        return self.evaluate(mdp, policy, mode, self.val.first(self.args.eval_images)).summary("")

    def references(
        self, rate: float, trained: RoutingMDP | None = None, name: str = ""
    ) -> dict[str, Evaluation]:
        """The rows to compare with: the whole network, and random skipping at a rate of execution.

        Args:
            rate: of the learned policy.
            trained: the network that was trained along with the policy, if one was: random skipping is
                given both.
            name: the trained policy's.
        """
        start, at_rate = self.mdp(), RandomSkip(rate)
        rows = {
            "all blocks": self.evaluate(start, AlwaysExecute()),
            "random": self.evaluate(start, at_rate, "sample"),
        }
        if trained is not None:
            rows[f"random, {name} weights"] = self.evaluate(trained, at_rate, "sample")
        return rows

    def header(self, gate: str) -> dict[str, Any]:
        """What a file of backbone and gate says of itself, for `gated.restore_checkpoint`."""
        args = self.args
        return {
            "depth": args.depth, "dataset": self.dataset, "gate": gate, "shortcut": args.shortcut,
            "alpha": args.alpha, "cost": args.cost, "mean": self.train.mean, "std": self.train.std,
        }  # fmt: skip

    def start_run(self, agent: str, resume: bool = False) -> Run:
        """The run's folder."""
        args = self.args
        return Run(run_folder(args.run_dir, args.env, agent, args.seed), args, resume)

    def finish(
        self,
        run: Run,
        agent: str,
        rows: Mapping[str, Evaluation],
        wall_time: float,
        weights: Mapping[str, str] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Write result.json, the routes and the plots, print the table; returns result.json's content.

        Args:
            run: the folder.
            agent: the module's name.
            rows: evaluations on the test set by name; the last is the policy that the run is about.
            wall_time: seconds of training.
            weights: of each row that was played on other weights than the run started from, the file in
                the run's folder.
            **more: further fields.
        """
        files = dict(weights or {})
        result = {
            "env": self.args.env, "agent": agent, "dataset": self.dataset, "split": "test",
            "n_images": len(self.test), "split_images": self.split_images,
            "alpha": self.args.alpha, "cost": self.args.cost,
            "seed": self.args.seed, "precision": self.precision, "wall_time_s": wall_time,
            "command": shlex.join(["python", "-m", f"agents.{agent}", *sys.argv[1:]]),
            "policies": [{**done.summary(name), "weights": files.get(name)} for name, done in rows.items()],
            **more,
        }  # fmt: skip
        print_table(result)
        save_evaluations(run.folder / "routes.npz", rows)
        write_plots(run, result, self.net.stages[1:])
        run.finish(result)  # last: a run with a result.json is whole
        tqdm.write(f"wrote {run.folder}")
        return result


VAL_METRICS: Sequence[str] = (
    "accuracy", "loss", "return", "compute_blocks", "compute_flops", "unique_routes",
)  # fmt: skip


def val_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """A summary under the names that every agent logs."""
    return {f"val/{key}": summary[key] for key in VAL_METRICS}
