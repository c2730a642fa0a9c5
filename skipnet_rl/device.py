"""Choice of device and precision."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from skipnet_rl.errors import unknown_name

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32")


def pick_device(name: str | torch.device | None) -> torch.device:
    """The device called `name`; `"auto"`, or None, takes a GPU if there is one.

    Choosing a GPU disables TensorFloat-32 for convolutions, PyTorch's default there, which keeps 10 of the 23
    bits of the mantissa of float32.

    Args:
        name: `"auto"`, `"cpu"`, `"cuda"`, a numbered GPU such as `"cuda:1"`, or a `torch.device`.

    Raises:
        ValueError: unknown device, or not available on this machine.
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
        return torch.device("cpu")  # tensors are on "cpu", which is unequal to "cpu:0"
    if not torch.cuda.is_available():
        raise ValueError(f"device {given!r}, but PyTorch sees no CUDA device; use 'cpu' or 'auto'")
    if index is not None and 0 < (count := torch.cuda.device_count()) <= int(index):
        raise ValueError(f"device {given!r}, but PyTorch sees {count}, from 'cuda:0'; use one of them")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device(kind if index is None else f"cuda:{int(index)}")


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Create new tensors on the CPU, whatever `torch.set_default_device` says; also a decorator.

    Layers are initialised on the CPU with its random numbers and moved afterwards, so that initial weights
    are the same on every device, and exist even where the default device is `"meta"`.
    """
    # PyTorch 2.6's torch.get_default_device does not see a `with torch.device(…)`; a new tensor does
    default = torch.empty(0, device=None).device
    if default.type == "cpu":  # the context would add a Python call to every operation
        yield
    else:
        with torch.device("cpu"):
            yield


def resolve_precision(name: str, device: torch.device | str) -> str:
    """Turn `"auto"` into `"bf16"` where the hardware supports it, else `"fp32"`."""
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
    if kind == "meta":  # only shapes, see skipnet_rl.flops
        return nullcontext()
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")
