"""Write a network or a chain of networks and its policy as an ONNX model whose skipped blocks do not run.

The model takes `images` [B, 3, H, W], float32 and normalised, and gives `logits` [B, K] and `route` [B, N]
bool. For one image, B = 1, each block is an `If`, of which onnxruntime runs only the branch taken. A batched
model takes any B; it gathers the images that execute a block, runs it and scatters them. A block of a chain
is a whole network, and its logits are log-probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from skipnet_rl.chain import ChainMDP
from skipnet_rl.errors import first_line
from skipnet_rl.files import whole_file
from skipnet_rl.folding import fold_batchnorm
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.onnx.chains import BatchedChain, OneImageChain
from skipnet_rl.onnx.graphs import BatchedEpisode, OneImageEpisode
from skipnet_rl.policies import Policy
from skipnet_rl.process import DecisionProcess

OPSET = 20
EXTRA = ("onnx", "onnxruntime", "onnxscript")
EPISODES: dict[type, tuple[Any, Any]] = {  # by the decision process: for one image, and for any number
    RoutingMDP: (OneImageEpisode, BatchedEpisode),
    ChainMDP: (OneImageChain, BatchedChain),
}


def export_onnx(
    mdp: DecisionProcess,
    policy: Policy,
    path: Path,
    batched: bool = False,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a network or a chain as an ONNX model; a block runs where the policy's log-odds are positive.

    Args:
        mdp: the decision process; batch norms of its networks are folded.
        policy: a policy that `torch.export` can trace.
        path: the file to write.
        batched: write a model for any number of images, instead of one at a time.
        about: entries of the model's metadata, stored as JSON if they are not strings.

    Raises:
        ModuleNotFoundError: the packages of the extra `export` are not installed.
        ValueError: PyTorch cannot export the network, such as torchvision's Swin.
    """
    onnx = _import_onnx()
    one_image, any_number = EPISODES[type(mdp)]
    graph = (any_number if batched else one_image)(mdp, policy)
    size, count = mdp.net.image_size, 2 if batched else 1
    shapes = {"images": {0: torch.export.Dim("images")}} if batched else None
    images = torch.zeros(count, 3, size, size, device="cpu")
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                graph.eval(),
                (images,),
                input_names=["images"],
                output_names=["logits", "route"],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                dynamic_shapes=shapes,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"PyTorch cannot export {mdp.net.name}: {first_line(error.__cause__ or error)}"
        ) from error
    assert program is not None
    model = program.model_proto
    _move_weights_into_branches(model.graph)
    for key, value in (about or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.checker.check_model(model)
    with whole_file(path) as beside:
        onnx.save(model, beside)


def export_plain(mdp: RoutingMDP, path: Path) -> None:
    """Write the plain network, every block executed and no gate, as the baseline for latencies."""
    net = fold_batchnorm(mdp.net)
    images = torch.zeros(1, 3, net.image_size, net.image_size, device="cpu")
    with whole_file(path) as beside:
        torch.onnx.export(
            net,
            (images,),
            beside,
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            external_data=False,
        )


def onnx_session(path: Path, threads: int = 1) -> Any:
    """Open a model with onnxruntime on the CPU."""
    _import_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: it warns about each constant that no node uses
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _move_weights_into_branches(graph: Any) -> None:
    """Move the weights that only one `If` branch uses into that branch.

    onnxruntime rearranges weights for the processor's vector width only in the graph that holds them: with
    the weights outside, convolutions in branches ran at two thirds of the speed.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, list[Any]] = {}
    for place in _graphs(graph):
        for name in {name for node in place.node for name in node.input}:
            users.setdefault(name, []).append(place)
    for name, places in users.items():
        if name in weights and len(places) == 1 and places[0] is not graph:
            places[0].initializer.append(weights[name])
            graph.initializer.remove(weights[name])


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph, its branches, and theirs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            yield from _graphs(attribute.g)


def check_installed() -> None:
    """Raise a ModuleNotFoundError if a package for exporting is missing, without importing any."""
    if missing := [name for name in EXTRA if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f'exporting needs {", ".join(missing)}, which is not installed: pip install -e ".[export]"'
        )
    if not hasattr(torch.onnx, "ops"):
        raise ModuleNotFoundError(f"exporting needs PyTorch 2.8 or newer; this is {torch.__version__}")


def _import_onnx() -> Any:
    check_installed()
    import onnx

    return onnx
