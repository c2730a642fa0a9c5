"""Several processes that train one network: what each checks, and which one writes.

    torchrun --nproc-per-node 2 -m agents.hybrid_reinforce --env SkipResNet110-v0 --run-dir runs/two

`skipnet_rl.distributed` holds the mathematics.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import asdict
from typing import Any

import torch

from agents.common.setting import Setting
from envs.ids import is_chain
from skipnet_rl.device import pick_device
from skipnet_rl.distributed import check_alike, from_leader, leads, processes
from skipnet_rl.runs import NOT_COMPARED, Run, check_folder, run_folder
from skipnet_rl.terminal import Forgiving

SAMPLE = 64  # evenly spread training images that are compared between processes


def check_processes(args: Any) -> None:
    """Check that an agent can train in several processes, and silence all but the leader.

    Raises:
        ValueError: it cannot, or not with these flags.
    """
    if processes() == 1:
        return
    if not getattr(args, "takes_processes", False):
        raise ValueError("this command runs in one process; start it with python -m, not with torchrun")
    if is_chain(args.env):
        raise ValueError(f"--env {args.env} is a chain, which trains in one process")
    if getattr(args, "baseline", "") == "batch-mean":
        raise ValueError("baseline batch-mean compares all images of a batch, which several processes share")
    images = args.batch_size // getattr(args, "routes", 1)
    if images % processes():
        raise ValueError(
            f"--batch-size {args.batch_size} is {images} images per step, which {processes()} processes "
            f"cannot share equally; expected a multiple of {processes()}"
        )
    check_gpus(args.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if not leads():
        sys.stdout = Forgiving(None)
        warnings.simplefilter("ignore")


def check_gpus(device: str, here: int) -> None:
    """Raise a ValueError unless this machine's `here` processes have a GPU each, or all use the CPU."""
    chosen = pick_device(device)
    if chosen.type != "cuda":
        return
    if chosen.index is not None:
        raise ValueError(f"--device {device} is one GPU for every process; --device cuda gives each its own")
    if here > (count := torch.cuda.device_count()):
        raise ValueError(
            f"{here} processes on this machine, but PyTorch sees {count} GPU{'s' * (count > 1)}, and each "
            "needs its own; start fewer (--nproc-per-node), or give --device cpu"
        )


def check_run_dir(setting: Setting[Any]) -> None:
    """Check in every process, before compilation and training, that `start_run` can use `--run-dir`.

    Raises:
        FileExistsError: the folder holds a run, and `--resume` is not given.
        FileNotFoundError: `--resume` without `--run-dir`.
        ValueError: the folder holds a run with other flags.
    """
    args = setting.args
    if args.run_dir is None and not args.resume:
        return  # a new folder

    def check() -> None:
        check_folder(run_folder(args.run_dir, args.env, "", args.seed, args.resume), args, args.resume)

    from_leader(check)


def start_run(setting: Setting[Any], agent: str) -> Run | None:
    """Start the run's folder; returns None in every process but the leader.

    Raises:
        ValueError: the processes have other flags, images or initial weights than the leader.
        FileExistsError: the folder holds a run.
    """
    if processes() > 1:
        flags = {key: str(value) for key, value in asdict(setting.args).items() if key not in NOT_COMPARED}
        check_alike(flags=flags, images=_images(setting), weights=_weights(setting))
    made: list[Run] = []

    def make() -> None:
        made.append(setting.start_run(agent, setting.args.resume))

    from_leader(make)
    return made[0] if made else None


@torch.no_grad()
def _weights(setting: Setting[Any]) -> float:
    """Sum the absolute weights of the initial network."""
    return sum(float(each.double().abs().sum()) for each in setting.net.parameters())


def _images(setting: Setting[Any]) -> str:
    """Describe the training images: how many, of how many classes, and the mean of some of them."""
    train = setting.train
    step = max(1, len(train) // SAMPLE)
    pixels, labels = train.batch(torch.arange(0, len(train), step, device=train.device)[:SAMPLE])
    shown = f"{pixels.double().mean():.9f} with labels {labels.sum()}"
    return f"{len(train)} images of {len(train.classes)} classes, of which {SAMPLE} have mean {shown}"
