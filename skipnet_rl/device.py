"""Which device, and whether bf16 pays on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from skipnet_rl.errors import unknown_name

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32")


def pick_device(name: str | torch.device | None) -> torch.device:
    """The device called `name`; `"auto"`, or None, takes a GPU where there is one.

    On a GPU convolutions in float32 are that from then on: PyTorch's default there is TensorFloat-32, with
    10 of the 23 bits of a mantissa.

    Args:
        name: `"auto"`, `"cpu"`, `"cuda"`, one of several as `"cuda:1"`, or a `torch.device`.

    Raises:
        ValueError: no such device, or none on this machine.
    """
    given = "auto" if name is None else str(name) if isinstance(name, torch.device) else name
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d+))?", given) if isinstance(given, str) else None
    if match is None or given.startswith("auto:"):
        raise unknown_name("device", given, DEVICES)
    kind, index = match[1], match[2]
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        if index is not None and int(index) > 0:
            raise ValueError(f"device {given!r}, but there is one CPU; use 'cpu'")
        return torch.device("cpu")  # "cpu:0" would be unequal to where its tensors are
    if not torch.cuda.is_available():
        raise ValueError(f"device {given!r}, but PyTorch sees no CUDA device; use 'cpu' or 'auto'")
    if index is not None and 0 < (count := torch.cuda.device_count()) <= int(index):
        raise ValueError(f"device {given!r}, but PyTorch sees {count}, from 'cuda:0'; use one of them")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device(kind if index is None else f"cuda:{int(index)}")


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Put what names no device on the CPU, whatever `torch.set_default_device` says; also a decorator.

    Layers name none. They are made and filled on the CPU, with its random numbers, and moved when they are
    whole: so their first weights are the same everywhere, and `"meta"`, which holds no numbers, does no harm.
    """
    if torch.get_default_device().type == "cpu":  # the context costs a call of Python for each of PyTorch's
        yield
    else:
        with torch.device("cpu"):
            yield


def resolve_precision(name: str, device: torch.device | str) -> str:
    """Turn `"auto"` into `"bf16"` where the hardware multiplies in bf16, else `"fp32"`."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name != "auto":
        return name
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager[object]:
    """Autocast to bf16; for `"fp32"` a context in which autocast is off."""
    if precision not in ("bf16", "fp32"):
        raise unknown_name("resolved precision", precision, ("bf16", "fp32"))
    kind = torch.device(device).type
    if kind == "meta":  # shapes only, see skipnet_rl.flops
        return nullcontext()
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")
