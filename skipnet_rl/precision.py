"""Which device, and whether bf16 pays on it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from skipnet_rl.errors import unknown_name

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32")


def pick_device(name: str) -> torch.device:
    """The device called `name`; `"auto"` takes a GPU where there is one.

    On a GPU convolutions in float32 are that from then on: PyTorch's default there is TensorFloat-32, with
    10 of the 23 bits of a mantissa.
    """
    if name.partition(":")[0] not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r}, but PyTorch sees no CUDA device; use 'cpu' or 'auto'")
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def resolve_precision(name: str, device: torch.device | str) -> str:
    """Turn `"auto"` into `"bf16"` where the hardware multiplies in bf16, else `"fp32"`."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name != "auto":
        return name
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager[object]:
    """Autocast to bf16; for `"fp32"` a context in which autocast is off."""
    if precision not in ("bf16", "fp32"):
        raise unknown_name("resolved precision", precision, ("bf16", "fp32"))
    kind = torch.device(device).type
    if kind == "meta":  # shapes only, see skipnet_rl.flops
        return nullcontext()
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")
