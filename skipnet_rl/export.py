"""A network and its gate as one ONNX model whose skipped blocks do not run.

    pip install -e ".[export]"
    python -m skipnet_rl.export resnet110-rendered-digits-hrl --out model.onnx
    python -m skipnet_rl.export runs/…/hrl.safetensors --out model.onnx --batched

The model takes `images` [B, 3, H, W], float32 and normalised (pixels in 0 … 1, minus the `mean` and over
the `std` that its metadata names), and gives `logits` [B, K] and `route` [B, N] bool. For one image, B = 1,
each block is an `If`: onnxruntime runs the branch taken alone. With `--batched` B is free, and the executed
images are gathered, run and scattered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from torch import Tensor, nn

from skipnet_rl.checkpoint import parts_of
from skipnet_rl.cli import main_with_named_errors
from skipnet_rl.data import Images
from skipnet_rl.data.places import data_folder
from skipnet_rl.files import whole_file
from skipnet_rl.gated import read_header, restore_checkpoint
from skipnet_rl.gates import Hidden, RecurrentGate
from skipnet_rl.inference import fold_batchnorm
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.normalisation import normalised, stated
from skipnet_rl.policies import Policy, first_memory
from skipnet_rl.precision import cpu_by_default
from skipnet_rl.progress import image_progress, load_images
from skipnet_rl.rollout import rollout
from skipnet_rl.terminal import say
from skipnet_rl.weights import weights_path

OPSET = 20
LOGITS_TOLERANCE = 1e-4
EXTRA = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Args:
    """Write a gated network as an ONNX model, and check it against PyTorch."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """safetensors file of a gated network, or the name of a shipped one"""
    out: Path
    """the file to write"""
    batched: bool = False
    """any number of images at a time, gathered and scattered; else one, its blocks in If branches"""
    check: int = 1000
    """test images to compare with PyTorch on; 0 for none"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    debug: bool = False
    """show the traceback of an error"""


class Agreement(NamedTuple):
    """An exported model beside PyTorch on M images.

    Attributes:
        images: M.
        same_routes: images on which all N decisions agree.
        logits: the largest difference of a logit on these.
    """

    images: int
    same_routes: int
    logits: float


def export_onnx(
    mdp: RoutingMDP, policy: Policy, path: Path, batched: bool = False, about: Mapping[str, Any] | None = None
) -> None:
    """Write a network and its policy, thresholded, as an ONNX model.

    Args:
        mdp: over the network, whose batch norms are folded on the way.
        policy: what decides; anything that `torch.export` can trace.
        path: the file.
        batched: for any number of images, else for one.
        about: entries of the model's metadata.

    Raises:
        ModuleNotFoundError: the packages of the extra `export` are not installed.
    """
    onnx = _import_onnx()
    graph = _Batched(mdp, policy) if batched else _OneImage(mdp, policy)
    size, count = mdp.net.image_size, 2 if batched else 1
    shapes = {"images": {0: torch.export.Dim("images")}} if batched else None
    with torch.no_grad():
        program = torch.onnx.export(
            graph.eval(), (torch.zeros(count, 3, size, size, device="cpu"),), input_names=["images"],
            output_names=["logits", "route"], opset_version=OPSET, dynamo=True, verbose=False,
            dynamic_shapes=shapes,
        )  # fmt: skip
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
    """Write the plain network, every block executed and no gate: what to compare latencies with."""
    net = fold_batchnorm(mdp.net)
    images = torch.zeros(1, 3, net.image_size, net.image_size, device="cpu")
    with whole_file(path) as beside:
        torch.onnx.export(
            net, (images,), beside, dynamo=True, opset_version=OPSET, verbose=False, external_data=False,
            input_names=["images"], output_names=["logits"],
        )  # fmt: skip


def onnx_session(path: Path, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU."""
    _import_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compare_with_torch(
    path: Path,
    mdp: RoutingMDP,
    policy: Policy,
    images: Images,
    progress: Callable[[int, int], object] | None = None,
) -> Agreement:
    """Run every image through the model and through PyTorch in float32.

    `progress` is called after each batch with the number of images done, and of how many.
    """
    session, same, furthest = onnx_session(path), 0, 0.0
    at_a_time = 1 if session.get_inputs()[0].shape[0] == 1 else 64
    for number, (batch, labels) in enumerate(images.batches(at_a_time), start=1):
        logits, routes = map(torch.from_numpy, session.run(None, {"images": batch.contiguous().numpy()}))
        with torch.no_grad():
            episode = rollout(mdp, policy, batch, labels)
        equal = (routes == episode.actions.bool()).all(dim=1)
        same += int(equal.sum())
        if equal.any():
            apart = (logits - episode.logits)[equal].abs().max().nan_to_num(nan=math.inf)
            furthest = max(furthest, apart.item())
        if progress:
            progress(min(number * at_a_time, len(images)), len(images))
    return Agreement(len(images), same, furthest)


class _Forward(nn.Module):
    """The episode as one graph: logits [B, K] and route [B, N]; subclasses say how a block is passed."""

    def __init__(self, mdp: RoutingMDP, policy: Policy) -> None:
        super().__init__()
        self.net = fold_batchnorm(mdp.net).to(memory_format=torch.contiguous_format)  # ONNX knows no other
        self.mdp = RoutingMDP(self.net, mdp.alpha, mdp.cost)
        self.decide = _decider(policy)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and route [B, N] bool of normalised images [B, 3, H, W]."""
        state = self.mdp.initial(images, images.new_zeros(images.shape[0], dtype=torch.int64))
        hidden, route = self.decide.start(images), []
        for t in range(self.mdp.num_decisions):
            execute, hidden = self.decide(self.mdp, state, hidden)
            state = State(self.advance(state, execute), state.y, t + 1)
            route.append(execute.reshape(-1, 1))
        return self.mdp.logits(state), torch.cat(route, dim=1)

    def advance(self, state: State, execute: Tensor) -> Tensor:
        """The features [B, C, H, W] after block t of the images [B] that execute it and those that skip."""
        raise NotImplementedError


class _OneImage(_Forward):
    """Each block in a conditional."""

    def advance(self, state: State, execute: Tensor) -> Tensor:
        """`execute` holds one decision, and the branch of the other is not run."""
        block, x = self.mdp.block(state.t), state.x
        if (skipped := block.shortcut(x)) is x:
            return torch.cond(execute, lambda x: block.execute(x, x), lambda x: x.clone(), (x,))
        return torch.cond(
            execute, lambda x, skip: block.execute(x, skip), lambda x, skip: skip.clone(), (x, skipped)
        )


class _Batched(_Forward):
    """Gather, run, scatter."""

    def advance(self, state: State, execute: Tensor) -> Tensor:
        """The images that execute go through the block together; it may be none."""
        block, x = self.mdp.block(state.t), state.x
        skipped = block.shortcut(x)
        index = execute.reshape(-1).nonzero().squeeze(1)
        executed = block.execute(x.index_select(0, index), skipped.index_select(0, index))
        return skipped.index_put((index,), executed)


class _Decider(nn.Module):
    """A policy's log-odds, thresholded."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = fold_batchnorm(policy) if isinstance(policy, nn.Module) else policy

    def start(self, images: Tensor) -> Any:
        """The policy's first memory."""
        return first_memory(self.policy, images)

    def forward(self, mdp: RoutingMDP, state: State, hidden: Any) -> tuple[Tensor, Any]:
        """Execute [B] bool, and the policy's memory."""
        logit, hidden = self.policy(mdp, state, hidden)
        return logit > 0, hidden


class _RecurrentDecider(nn.Module):
    """`RecurrentGate` in a third of the operators: ONNX's own LSTM, and one comparison for the bias.

    What an operator costs to start is most of what a gate costs at one image.
    """

    def __init__(self, gate: RecurrentGate) -> None:
        super().__init__()
        cell, self.size = gate.lstm, gate.size
        self.projections = gate.projections
        self.weights = nn.ParameterList(
            [_onnx_order(cell.weight_ih), _onnx_order(cell.weight_hh),
             torch.cat([_onnx_order(cell.bias_ih), _onnx_order(cell.bias_hh)], dim=1)]
        ).requires_grad_(False)  # fmt: skip
        self.head = nn.Parameter(gate.head.weight.detach().T.clone(), requires_grad=False)
        self.threshold = nn.Parameter(-gate.head.bias.detach(), requires_grad=False)

    def start(self, images: Tensor) -> Hidden:
        """The cell's (h, c) before the first block, [1, B, size] each."""
        zeros = images.new_zeros(1, images.shape[0], self.size)
        return zeros, zeros

    def forward(self, mdp: RoutingMDP, state: State, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Execute [1, B, 1] bool, and the cell's (h, c)."""
        count, size = state.x.shape[0], self.size
        h, c = hidden
        feature = torch.relu(self.projections[state.t](state.x.mean(dim=(2, 3)))).unsqueeze(0)
        kind = 1  # float32, as ONNX numbers its types
        _, h, c = torch.onnx.ops.symbolic_multi_out(
            "LSTM", (feature, *self.weights, None, h, c), {"hidden_size": size},
            dtypes=(kind, kind, kind), shapes=((1, 1, count, size), (1, count, size), (1, count, size)),
        )  # fmt: skip
        return h @ self.head > self.threshold, (h, c)


def _decider(policy: Policy) -> _Decider | _RecurrentDecider:
    return _RecurrentDecider(policy) if isinstance(policy, RecurrentGate) else _Decider(policy)


def _onnx_order(weight: Tensor) -> Tensor:
    """PyTorch's gates (input, forget, cell, output) in ONNX's order (input, output, forget, cell)."""
    i, f, g, o = weight.detach().chunk(4)
    return torch.cat([i, o, f, g]).unsqueeze(0)


def _move_weights_into_branches(graph: Any) -> None:
    """Make each `If` branch own the weights that it alone uses.

    onnxruntime lays weights out for the processor's vector width in the graph that holds them; branches whose
    convolutions take theirs from outside ran at two thirds of the speed.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(graph)
        for attribute in node.attribute:
            for name in {name for inner in attribute.g.node for name in inner.input}:
                users.setdefault(name, []).append(attribute.g)
    for name, places in users.items():
        if name in weights and len(places) == 1 and places[0] is not graph:
            places[0].initializer.append(weights[name])
            graph.initializer.remove(weights[name])


def _check_installed() -> None:
    """Raise a ModuleNotFoundError for a package that exporting needs; imports none, which takes seconds."""
    if missing := [name for name in EXTRA if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f'exporting needs {", ".join(missing)}, which is not installed: pip install -e ".[export]"'
        )
    if not hasattr(torch.onnx, "ops"):
        raise ModuleNotFoundError(f"exporting needs PyTorch 2.8 or newer; this is {torch.__version__}")


def _import_onnx() -> Any:
    _check_installed()
    import onnx

    return onnx


@cpu_by_default()
def main(args: Args) -> Agreement | None:
    """Look at all that is given, then export, check, and only then put the file in its place.

    Raises:
        ModuleNotFoundError: the packages of the extra `export` are not installed.
        FileNotFoundError, WeightsError: no such network, or none with gates.
        ValueError: a number of images below 0, a data set of other classes, or a model that does not agree
            with PyTorch.
        OSError: the file cannot be written there.
    """
    _check_installed()
    data_folder(args.data_dir)  # a mistyped one is said whether it is read or not
    if args.check < 0:
        raise ValueError(f"the number of images to check on is {args.check}; expected 0 or more")
    source = weights_path(args.checkpoint)
    about = read_header(source)
    if args.out.exists() and any(part.exists() and args.out.samefile(part) for part in parts_of(source)):
        raise ValueError(f"{args.out} is the network itself; give the model another name")
    mdp, gate = restore_checkpoint(source)
    images = _images(about, mdp, args) if args.check else None
    with whole_file(args.out) as beside:
        export_onnx(mdp, gate, beside, args.batched, about)
        agreement = None if images is None else _checked(beside, mdp, gate, images)
    say(f"wrote {args.out}")
    return agreement


def _images(about: Mapping[str, Any], mdp: RoutingMDP, args: Args) -> Images:
    """The images to check on."""
    images = load_images(about["dataset"], "test", args.data_dir).sized(mdp.net.image_size)
    images = normalised(images, *(stated(about) or ()))
    if len(images.classes) != about["num_classes"]:
        raise ValueError(
            f"{args.checkpoint} has {about['num_classes']} classes, its data set {about['dataset']} "
            f"{len(images.classes)}; give the folder of the images that it was trained on"
        )
    images.check_not_empty()
    return images.first(args.check)


def _checked(model: Path, mdp: RoutingMDP, policy: Policy, images: Images) -> Agreement:
    """The agreement with PyTorch; a ValueError where it is none."""
    with image_progress("check") as show:
        agreement = compare_with_torch(model, mdp, policy, images, show)
    say(
        f"{agreement.images} test images: {agreement.same_routes} with PyTorch's route, their logits "
        f"within {agreement.logits:.1e}"
    )
    if agreement.same_routes < agreement.images or agreement.logits > LOGITS_TOLERANCE:
        raise ValueError("the exported model does not agree with PyTorch; nothing was written")
    return agreement


if __name__ == "__main__":
    main_with_named_errors(Args, main, (ModuleNotFoundError,))
