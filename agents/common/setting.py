"""The setting of a run: images, network and decision process, and the evaluations of its table."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from agents.common.chains import look_at_chain, recorded
from agents.common.flags import CommonArgs
from agents.common.problems import check_shipped, named_model, named_problem
from envs.ids import is_chain
from skipnet_rl import catalogue
from skipnet_rl.chain import Chain
from skipnet_rl.chain_problem import ChainProblem
from skipnet_rl.data import Images
from skipnet_rl.evaluate import Evaluation, evaluate
from skipnet_rl.policies import AlwaysExecute, Policy, RandomSkip
from skipnet_rl.problem import Problem
from skipnet_rl.process import DecisionProcess
from skipnet_rl.progress import image_progress, load_images
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.recording import Records, replayed
from skipnet_rl.resnet import SHORTCUT, ResNet
from skipnet_rl.runs import Run, run_folder
from skipnet_rl.terminal import say
from skipnet_rl.tolerance import Tolerance, measure_tolerance

LOOK = 500  # validation images, at most, for the measurements before training
# test images on a data set for a first look; all 4,000 would take the main command 45 seconds more
TEST_IMAGES = {"rendered-digits": 2_000}

ArgsT = TypeVar("ArgsT", bound=CommonArgs)


@dataclass(frozen=True)
class Setting(Generic[ArgsT]):
    """Images, network and decision process that an agent learns on.

    Attributes:
        args: the flags, `--weights auto` replaced by the name of the network that it chose, and the shortcut
            by that network's.
        problem: data set, network and decision process by name, every `auto` resolved.
        train, val, test: the splits, on the device; `test` is cut to `--test-images` or `TEST_IMAGES`. A
            policy over a frozen network learns on the calibration images and is validated on the selection
            images, see `load_images`; the same holds for a chain whose networks train on `train`.
        split_images: number of images in the whole test split.
        net: the backbone to start from, in evaluation mode, on the device.
        plain: the network of the row "all blocks": the backbone itself, or, if that is shipped with gates,
            the best shipped network without.
        plain_name: name of `plain` if it is not the backbone.
        absence_costs: cost of each block's absence [N], if the network is to be prepared for skips.
    """

    args: ArgsT
    problem: Problem
    train: Images = field(repr=False)
    val: Images = field(repr=False)
    test: Images = field(repr=False)
    split_images: int
    net: Any = field(repr=False)
    plain: Any = field(repr=False)
    plain_name: str | None
    absence_costs: Tensor | None = field(default=None, repr=False)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.problem.dataset

    @property
    def device(self) -> torch.device:
        """Device of images and network."""
        return self.problem.device

    @property
    def precision(self) -> str:
        """Precision of the convolutions, `"bf16"` or `"fp32"`."""
        return self.problem.precision

    @classmethod
    def of(
        cls, args: ArgsT, new_network: Callable[[ArgsT, Problem, int], Any] | None = None
    ) -> Setting[ArgsT]:
        """Check the flags and load what they name; print which data set and which weights, and why.

        Nothing is written, so that a refused command leaves no run folder behind.

        Args:
            args: the flags.
            new_network: makes the network for K classes, in place of the one of `--weights`.

        Raises:
            ValueError: flags that make no sense, by themselves or for this data set.
            WeightsError: no network is shipped where one is needed, see `check_shipped`.
        """
        args.check()
        problem = named_problem(args)
        say(f"dataset: {problem.why[0]}")
        check_shipped(args, problem)
        train, val, test = load_splits(args, problem)
        dataset, split_images = problem.dataset, len(test)
        test = test.first(args.test_images or (args.first_look and TEST_IMAGES.get(dataset)) or len(test))
        classes = len(train.classes)
        alpha, cost = problem.payment
        args = replace(args, weights=str(problem.weights), alpha=alpha, cost=cost, **named_model(problem))
        if new_network is not None:
            made = new_network(args, problem, classes)
            args = replace(args, shortcut=shortcut_of(args, made))
            return cls(args, problem, train, val, test, split_images, made, made, None)
        say(f"weights: {problem.why[1]}")
        net: Any = problem.network(classes)
        args = replace(args, shortcut=shortcut_of(args, net))
        plain_name = _plain_beside(args, dataset)
        plain = problem.network(classes, plain_name) if plain_name else net
        if isinstance(net, Chain) and not args.trains_networks:  # each sees every image once
            train = recorded(net, train, problem.precision) if args.frozen else train
            val, test = (recorded(net, images, problem.precision) for images in (val, test))
            net = plain = replayed(net)
        return cls(args, problem, train, val, test, split_images, net, plain, plain_name)

    @property
    def learned_on(self) -> str:
        """The split whose images a policy learns on."""
        return "calibration" if trains_chain(self.args, self.problem) else self.train.split

    def held_out(self) -> Images | None:
        """Return the images that a chain's policy learns on while its networks train on others; else None."""
        if not trains_chain(self.args, self.problem):
            return None
        images = self.problem.images(self.learned_on, load_images)
        check_enough(images, self.args, self.dataset)
        return images

    def mdp(self) -> Any:
        """Return the decision process over a fresh copy of the loaded network."""
        return self.problem.mdp(copy.deepcopy(self.net))

    def evaluate(
        self,
        mdp: DecisionProcess,
        policy: Policy,
        mode: str = "greedy",
        images: Images | None = None,
        *,
        routes: Tensor | None = None,
        name: str = "",
    ) -> Evaluation:
        """Play every test image once, or every one of `images`; the bar shows `name` or the split."""
        draws = step_generator(self.args.seed, 0, self.device, Stream.EVALUATION)
        images = self.test if images is None else images
        with image_progress(name or f"{images.split} images") as show:
            return evaluate(
                mdp,
                policy,
                images,
                mode=mode,
                generator=draws,
                routes=routes,
                precision=self.precision,
                progress=show,
            )

    def introduce(self) -> Tolerance | None:
        """Measure what skips cost the network before anything is trained, and print it in one line.

        Of a chain, print what each network achieves instead, and return None.
        """
        if isinstance(self.net, Chain):
            val = self.val
            records = val if isinstance(val, Records) else recorded(self.net, val.first(LOOK), self.precision)
            for line in look_at_chain(replayed(self.net), records):
                say(line)
            return None
        with image_progress("what skips cost") as show:
            found = measure_tolerance(self.mdp(), self.val.first(LOOK), self.precision, progress=show)
        say(f"network: {found}")
        if not found.above_chance(self.net.num_classes) and self.args.weights != "none":
            say(
                "the network is hardly better than chance, so nothing can be learned about its blocks; train "
                "it for longer first (agents.pretrain), and give its weights with --weights"
            )
        elif self.args.frozen and not found.prepared:
            say(
                "skips cost this network much, and this agent does not train it; train it with skips first "
                "(agents.hybrid_reinforce), and give its weights with --weights"
            )
        return found

    def validate(self, mdp: DecisionProcess, policy: Policy) -> dict[str, Any]:
        """Evaluate on the first validation images, during training; returns the summary."""
        return self.evaluate(mdp, policy, images=self.val.first(self.args.eval_images)).summary("")

    def references(
        self, rate: float, trained: DecisionProcess | None = None, name: str = ""
    ) -> dict[str, Evaluation]:
        """Play the whole network, and random skipping at the policy's rate, to compare the policy with.

        Args:
            rate: share of decisions that the policy executes.
            trained: the network that was trained along with the policy, if any; random skipping is played on
                both networks.
            name: name of the trained policy.
        """
        start, at_rate = self.problem.mdp(self.plain), RandomSkip(rate)
        rows = {
            "all blocks": self.evaluate(start, AlwaysExecute(), name="all blocks"),
            "random": self.evaluate(start, at_rate, "sample", name="random"),
        }
        if trained is None and self.plain_name:  # the policy's own network tolerates skips better
            trained, name = self.mdp(), "start"
        if trained is not None:
            other = f"random, {name} weights"
            rows[other] = self.evaluate(trained, at_rate, "sample", name=other)
        return rows

    def start_run(self, agent: str, resume: bool = False) -> Run:
        """Start the run's folder."""
        args = self.args
        return Run(run_folder(args.run_dir, args.env, agent, args.seed, resume), args, resume)


def shortcut_of(args: CommonArgs, net: Any) -> Any:
    """Return a ResNet's kind of shortcut, on a chain that of its untrained networks; else None."""
    if args.other_library:
        return None
    return net.shortcut if isinstance(net, ResNet) else args.shortcut or SHORTCUT


def trains_chain(args: CommonArgs, problem: Problem) -> bool:
    """Return whether a chain's networks are trained, and its policy learns on other images than they do."""
    return args.trains_networks and isinstance(problem, ChainProblem)


def check_enough(images: Images, args: CommonArgs, dataset: str) -> None:
    """Raise a ValueError for fewer images than a step takes."""
    if args.images_per_step > len(images):
        raise ValueError(
            f"--batch-size asks for {args.images_per_step} images per step; {dataset} has "
            f"{len(images)} in its {images.split} split; lower it"
        )


def load_splits(args: CommonArgs, problem: Problem) -> tuple[Images, Images, Images]:
    """Load training, validation and test images, on the device.

    Raises:
        ValueError: fewer training images than a step takes.
    """
    learned_on = "calibration" if args.frozen else "train"
    chosen_on = "selection" if args.frozen or trains_chain(args, problem) else "val"
    splits = (learned_on, chosen_on, "test")
    networks = (*problem.sources, *args.networks)
    train, val, test = (
        problem.images(split, load_images, () if number else networks)  # a mismatch is reported once
        for number, split in enumerate(splits)
    )
    check_enough(train, args, problem.dataset)
    return train, val, test


def _plain_beside(args: CommonArgs, dataset: str) -> str | None:
    """Return the best shipped network without gates, if the run starts from a shipped one with gates."""
    if is_chain(args.env):
        return None
    entry = catalogue.find(args.weights)
    plain = catalogue.find_auto(args.depth, dataset, args.shortcut)
    return plain["name"] if entry and entry["kind"] != "plain" and plain else None
