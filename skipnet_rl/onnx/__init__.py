"""Networks and chains with their policies as ONNX models whose skipped blocks do not run (extra `export`)."""

from skipnet_rl.onnx.agreement import Agreement, compare_with_torch
from skipnet_rl.onnx.model import check_installed, export_onnx, export_plain, onnx_session

__all__ = [
    "Agreement",
    "check_installed",
    "compare_with_torch",
    "export_onnx",
    "export_plain",
    "onnx_session",
]
