"""Compilation of a network's blocks at the start of a run with `--compile`."""

from __future__ import annotations

import time
from typing import Any

from agents.common.setting import Setting
from skipnet_rl.compiling import compile_blocks
from skipnet_rl.distributed import processes
from skipnet_rl.terminal import say


def compile_where_asked(setting: Setting[Any], net: Any) -> None:
    """With `--compile`, compile the blocks of the network in training; print the start and the time taken.

    Raises:
        CompilationError: PyTorch cannot compile here.
    """
    args = setting.args
    if not getattr(args, "compile", False):
        return
    say("compiling: each kind of block once, which takes a minute or more")
    begun = time.perf_counter()
    kinds = compile_blocks(
        net,
        args.batch_size // processes(),
        setting.precision,
        training=getattr(args, "bn", "train") != "frozen",
    )
    say(f"compiled: {kinds} kinds of blocks, in {time.perf_counter() - begun:.0f} seconds")
