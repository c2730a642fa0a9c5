"""An estimate of how long a run will take, printed before it begins."""

from __future__ import annotations

import copy
import math
import time

import torch
from torch.nn import functional as F

from agents.common.flags import TrainingArgs
from agents.common.setting import Setting
from skipnet_rl.device import autocast
from skipnet_rl.terminal import say
from skipnet_rl.tolerance import Tolerance

UNITS = ((60, "second", 1, 0), (7_200, "minute", 60, 0), (math.inf, "hour", 3_600, 1))  # each up to a limit
SAMPLE, GPU_SAMPLE = 32, 512  # images of the steps that are timed; a GPU takes as long for fewer
PART = 0.8  # of a whole network's time that a policy's routes take, before anything is known of them


def seconds_of_training(setting: Setting) -> float:
    """Seconds of a training step for each of its images, with all blocks executed, timed on a copy."""
    net = copy.deepcopy(setting.net).train()
    count = min(GPU_SAMPLE if setting.device.type == "cuda" else SAMPLE, len(setting.train))
    images, labels = setting.train.batch(torch.arange(count, device=setting.device))
    images = images.contiguous(memory_format=torch.channels_last)
    for _ in range(2):  # the first is slower, and not timed
        begun = time.perf_counter()
        with autocast(setting.precision, setting.device):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        loss.item()  # a GPU is waited for
        taken = time.perf_counter() - begun
    return taken / len(labels)


@torch.no_grad()
def seconds_of_evaluation(setting: Setting) -> float:
    """Seconds in which all networks of a chain answer one image."""
    chain = setting.net.for_inference(setting.precision)
    count = min(GPU_SAMPLE if setting.device.type == "cuda" else SAMPLE, len(setting.val))
    images, _ = setting.val.batch(torch.arange(count, device=setting.device))
    for _ in range(2):  # the first is slower, and not timed
        begun = time.perf_counter()
        with autocast(setting.precision, setting.device):
            chain(images).sum().item()  # a GPU is waited for
        taken = time.perf_counter() - begun
    return taken / count


def print_estimate(setting: Setting[TrainingArgs], looked: Tolerance | None) -> None:
    """One line: minutes of training and of evaluation.

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


def in_words(training: float, evaluation: float) -> str:
    """Seconds of training and of evaluation, and their sum, in the unit that suits the sum."""
    total = training + evaluation
    unit, size, digits = next((unit, size, digits) for limit, unit, size, digits in UNITS if total < limit)
    least = 10.0**-digits
    parts = [max(round(each / size, digits), least) for each in (training, evaluation)]
    texts = (f"{count:,.{digits}f}" for count in (sum(parts), *parts))
    whole, *each = (f"{text} {unit}{'s' * (text != '1')}" for text in texts)
    return f"{whole}: {each[0]} of training, {each[1]} of evaluation"
