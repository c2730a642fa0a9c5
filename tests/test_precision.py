"""Which device, and what float32 means there."""

import pytest
import torch

from skipnet_rl.precision import pick_device, resolve_precision


def test_float32_is_float32_on_a_gpu(monkeypatch):
    """Not TensorFloat-32, PyTorch's default in convolutions."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("auto", "cuda", "cuda:1"):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        assert pick_device(name).type == "cuda"
        assert not torch.backends.cudnn.allow_tf32


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="sees no CUDA device"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        pick_device("gpu")


def test_bf16_only_where_the_hardware_has_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert resolve_precision("auto", "cuda") == ("bf16" if has else "fp32")
        assert resolve_precision("fp32", "cuda") == "fp32"
