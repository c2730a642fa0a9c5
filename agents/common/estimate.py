"""An estimate of how long a run will take, printed before it begins."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.common.flags import TrainingArgs
from agents.common.setting import Setting
from skipnet_rl.data import Images
from skipnet_rl.device import autocast
from skipnet_rl.distributed import processes
from skipnet_rl.evaluate import usual_batch_size
from skipnet_rl.terminal import say
from skipnet_rl.tolerance import Tolerance

# limit in seconds, name, seconds in it, digits
UNITS = (
    (60, "second", 1, 0),
    (7_200, "minute", 60, 0),
    (math.inf, "hour", 3_600, 1),
)
SAMPLE, GPU_SAMPLE = 32, 512  # largest batches of a timed step; a GPU takes as long for fewer images
PART = 0.8  # assumed share of a whole network's time that a policy's routes take


def seconds_of_training(setting: Setting) -> float:
    """Time a training step with all blocks executed, on a copy.

    Returns:
        Seconds per image of a batch, which all processes share.
    """
    net = copy.deepcopy(setting.net).train()

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with autocast(setting.precision, setting.device):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        return loss

    return seconds_per_image(step, setting.train, setting.args.batch_size // processes()) / processes()


@torch.no_grad()
def seconds_of_evaluation(setting: Setting) -> float:
    """Time an evaluation by the network, or by all networks of a chain; returns seconds per image."""
    net = setting.mdp().for_inference(setting.precision).net

    def answer(images: Tensor, _: Tensor) -> Tensor:
        with autocast(setting.precision, setting.device):
            return net(images).sum()

    return seconds_per_image(answer, setting.val, usual_batch_size(setting.device, net.image_size))


def seconds_per_image(function: Callable[[Tensor, Tensor], Tensor], data: Images, batch_size: int) -> float:
    """Time the second call of a function of images [B, 3, H, W] and labels [B]; returns seconds per image.

    The function returns a scalar; reading it waits for the GPU. It gets at most the run's `batch_size` of
    images, which fit into memory.
    """
    count = min(GPU_SAMPLE if data.device.type == "cuda" else SAMPLE, batch_size, len(data))
    images, labels = data.batch(torch.arange(count, device="cpu"))
    function(images, labels).item()
    begun = time.perf_counter()
    function(images, labels).item()
    return (time.perf_counter() - begun) / count


def print_estimate(setting: Setting[TrainingArgs], looked: Tolerance | None) -> None:
    """Print one line: the time of training and of evaluation.

    Args:
        setting: what is learned on.
        looked: has the time that an image takes in an evaluation; None for a chain, which is timed here.
    """
    args, plan = setting.args, setting.args.plan()
    validations = len(plan) // args.eval_every + len(set(plan))
    on_the_way = validations * args.images_per_validation
    train = PART * seconds_of_training(setting) * len(plan) * args.batch_size
    rows = 1 + 3 * PART  # the whole network, random skipping on both networks, the policy
    seconds = looked.seconds_per_image if looked else seconds_of_evaluation(setting)
    evaluation = seconds * (rows * len(setting.test) + PART * on_the_way)
    say(f"time: about {in_words(train, evaluation)}")


def print_estimate_of_pretraining(setting: Setting, steps: int, eval_every: int) -> None:
    """Print the same line for `agents.pretrain`; what teachers take is not counted.

    Args:
        setting: what is learned on.
        steps: number of training steps.
        eval_every: steps between validations.
    """
    args = setting.args
    executed = (1 + args.survival) / 2  # mean share of the blocks that stochastic depth runs
    train = executed * seconds_of_training(setting) * steps * args.batch_size
    validations = steps // eval_every + 1
    images = len(setting.test) + validations * min(args.eval_images, len(setting.val))
    say(f"time: about {in_words(train, seconds_of_evaluation(setting) * images)}")


def in_words(training: float, evaluation: float) -> str:
    """Format seconds of training and of evaluation, and their sum, in the unit that suits the sum."""
    total = training + evaluation
    unit, size, digits = next((unit, size, digits) for limit, unit, size, digits in UNITS if total < limit)
    least = 10.0**-digits
    parts = [max(round(each / size, digits), least) for each in (training, evaluation)]
    texts = (f"{count:,.{digits}f}" for count in (sum(parts), *parts))
    whole, *each = (f"{text} {unit}{'s' * (text != '1')}" for text in texts)
    return f"{whole}: {each[0]} of training, {each[1]} of evaluation"
