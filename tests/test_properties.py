"""Any input gives a result or a named error, and leaves nothing half-done.

Property-based: hypothesis draws the inputs. Each test counts accepted and refused inputs for the summary; any
other exception fails it, with the input that caused it.
"""

import contextlib
import io
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.error import Error as GymnasiumError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from agents import act, blockdrop, dqn, gumbel, hybrid_reinforce, ppo, pretrain, reinforce, static
from agents import evaluate as evaluation
from agents.common.cli import main_with_named_errors
from agents.common.finished import FinishedRun
from envs.factory import make_env, make_vector_env
from envs.lockstep import Lockstep
from envs.skipnet import SkipNetEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from skipnet_rl.data import ImageSet, load_images
from skipnet_rl.evaluate import load_records
from skipnet_rl.gates import make_gate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet
from skipnet_rl.weights import open_weights

NAMED = (ValueError, OSError, GymnasiumError)  # what the command line turns into one line and exit code 2
TALLY: Counter[str] = Counter()
many = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
few = settings(many, max_examples=25)


@pytest.fixture(autouse=True)
def tally(record_property):
    """Report counts to the summary, see conftest.py."""
    TALLY.clear()
    yield
    for kind in ("accepted", "refused"):
        record_property(kind, TALLY[kind])


def attempt(call, *args, **kwargs):
    """The result, or None if a named error with a message refused the input."""
    try:
        result = call(*args, **kwargs)
    except NAMED as error:
        assert str(error).strip(), type(error)
        TALLY["refused"] += 1
        return None
    TALLY["accepted"] += 1
    return result


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.sampled_from([np.int64(1), np.float32(0.5), np.bool_(True)]),
)
arrays = st.one_of(
    st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from("?bBhil efdOUS".replace(" ", ""))).map(
        lambda pair: np.ones(pair[0], pair[1])
    ),
    st.lists(st.integers(-1, 2), max_size=5),
    st.lists(st.floats(), max_size=4),
    st.sampled_from([torch.ones(3), torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)]),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
anything = st.one_of(scalars, arrays, st.lists(scalars, max_size=3))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    classes = tuple("abcdefghij")
    return ImageSet("x", "train", pixels, torch.arange(6), classes, (0.5,) * 3, (0.5,) * 3, flip=True)


@pytest.fixture(scope="module")
def single(images):
    return SkipNetEnv(RoutingMDP(ResNet(8)), images)


@pytest.fixture(scope="module")
def vector(images):
    return SkipNetVectorEnv(RoutingMDP(ResNet(8)), images, 3)


@many
@given(action=anything)
def test_actions(single, action):
    single.reset(seed=0)
    outcome = attempt(single.step, action)
    if outcome is None:
        assert single.lockstep.state.t == 0  # refused before anything moved
        assert attempt(single.step, 1) is not None
    else:
        assert outcome[0] in single.observation_space and isinstance(outcome[1], float)


@many
@given(actions=anything)
def test_vector_actions(vector, actions):
    vector.reset(seed=0)
    outcome = attempt(vector.step, actions)
    if outcome is None:
        assert vector.lockstep.state.t == 0
        assert attempt(vector.step, [0, 1, 0]) is not None
    else:
        assert outcome[0] in vector.observation_space


names = st.sampled_from(["index", "reset_mask", "seed", ""]) | st.text(max_size=3)


@many
@given(options=st.none() | st.dictionaries(names, anything, max_size=2))
def test_reset_options(single, vector, options):
    for env in (single, vector):
        outcome = attempt(env.reset, options=options)
        if outcome is not None:
            assert outcome[0] in env.observation_space


KEYWORDS = {
    "dataset": st.sampled_from(["rendered-digits", "cifar10", "auto", "mnist", "", None]),
    "split": st.sampled_from(["test", "val", "tset", "", None]),
    "alpha": st.one_of(st.floats(), st.integers(-2, 5), st.sampled_from(["1", None, True])),
    "cost": st.sampled_from(["blocks", "flops", "macs", ""]),
    "shortcut": st.sampled_from(["projection", "pad", "pool", "identity"]),
    "weights": st.sampled_from(
        [None, "none", "no/such/file", "resnet20-rendered-digits", "resnet20-cifar10"]
    ),
    "device": st.sampled_from(["cpu", "auto", "cuda", "tpu"]),
    "precision": st.sampled_from(["fp32", "bf16", "auto", "fp64"]),
    "obs_mode": st.sampled_from(["feature+block", "feature", "pixels"]),
    "render_mode": st.sampled_from([None, "ansi", "rgb_array", "human"]),
    "augment": st.booleans(),
}
VECTOR_KEYWORDS = {
    "num_envs": st.one_of(st.integers(-2, 4), st.sampled_from([1.5, "2", None])),
    "autoreset_mode": st.sampled_from(["SameStep", "NextStep", "Disabled", "Sometimes", None]),
    "array": st.sampled_from(["numpy", "torch", "jax"]),
}


@pytest.mark.filterwarnings("ignore:no shipped weights")
@few
@given(keywords=st.fixed_dictionaries({}, optional=KEYWORDS))
def test_keywords_of_the_environment(tmp_path_factory, keywords):
    usual = {"dataset": "rendered-digits", "split": "test", "data_dir": str(tmp_path_factory.getbasetemp())}
    env = attempt(make_env, depth=20, **{**usual, **keywords})
    if env is not None:
        observation, _ = env.reset(seed=0)
        assert observation in env.observation_space


@pytest.mark.filterwarnings("ignore:no shipped weights")
@few
@given(keywords=st.fixed_dictionaries({}, optional=VECTOR_KEYWORDS))
def test_keywords_of_the_vector_environment(keywords):
    env = attempt(make_vector_env, depth=20, dataset="rendered-digits", split="test", **keywords)
    if env is not None:
        assert isinstance(env.lockstep, Lockstep)


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """Randomly damaged bytes of a file."""
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "replace"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    if kind == "insert":
        return content[:at] + data.draw(st.binary(min_size=1, max_size=9)) + content[at:]
    return data.draw(st.binary(max_size=40))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One intact file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    net = ResNet(8)
    gate = make_gate("rnn", net)
    about = {
        "depth": 8,
        "dataset": "rendered-digits",
        "gate": "rnn",
        "shortcut": "projection",
        "alpha": 1.0,
        "cost": "blocks",
    }
    save_weights(folder / "gated.safetensors", torch.nn.ModuleDict({"net": net, "gate": gate}), about)
    torch.save({"state_dict": net.state_dict()}, folder / "plain.pth")
    save_checkpoint(folder / "checkpoint", {"net": net.state_dict(), "step": 3, "list": [1, {"2": "x"}]})
    return folder


@pytest.mark.parametrize("kind", ["weights", "gated", "plain"])
@many
@given(data=st.data())
def test_damaged_weights(files, tmp_path_factory, kind, data):
    path = files / ("plain.pth" if kind == "plain" else "gated.safetensors")
    path_now = tmp_path_factory.mktemp("damaged") / path.name
    path_now.write_bytes(damaged(path.read_bytes(), data))
    net = ResNet(8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    call = {
        "weights": lambda: load_weights(path_now, net, prefix="net.") or net,
        "gated": lambda: open_weights(path_now).mdp(),
        "plain": lambda: open_weights(path_now).network,
    }[kind]
    if attempt(call) is None:
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@many
@given(data=st.data())
def test_damaged_checkpoints(files, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged") / "checkpoint"
    shutil.copytree(files / "checkpoint", folder)
    path = folder / data.draw(st.sampled_from(["state.json", "state.safetensors"]))
    path.write_bytes(damaged(path.read_bytes(), data))
    attempt(load_checkpoint, folder)


@few
@given(
    depth=st.sampled_from([8, 14]),
    classes=st.integers(1, 12),
    shortcut=st.sampled_from(["projection", "pad"]),
    gate=st.sampled_from(["rnn", "ff1", "ff2"]),
    dtype=st.sampled_from([torch.float16, torch.float64, torch.int32, torch.bool]),
)
def test_weights_of_another_network(files, tmp_path_factory, depth, classes, shortcut, gate, dtype):
    path = tmp_path_factory.mktemp("other") / "gated.safetensors"
    net = ResNet(depth, classes, shortcut)
    parts = {"net": net, "gate": make_gate(gate, net)}
    tensors = {name: value.to(dtype) for name, value in torch.nn.ModuleDict(parts).state_dict().items()}
    about = {
        "depth": 8,
        "dataset": "x",
        "gate": "rnn",
        "shortcut": "projection",
        "alpha": 1.0,
        "cost": "blocks",
    }
    save_file(tensors, path, metadata={"about": json.dumps(about)})
    restored = attempt(open_weights, path)
    assert (restored is not None) == ((depth, shortcut, gate) == (8, "projection", "rnn"))


class Hostile:
    """Code that a pickle could run."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_hostile_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.pth")
    torch.save(Hostile(), tmp_path / "hostile.safetensors")
    np.savez(tmp_path / "routes.npz", policies=np.array([Hostile()], dtype=object))
    assert attempt(open_weights, tmp_path / "hostile.pth") is None
    assert attempt(open_weights, tmp_path / "hostile.safetensors") is None
    assert attempt(load_records, tmp_path / "routes.npz") is None
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)  # it would have worked
    assert (tmp_path / "executed").exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
run_fields = st.fixed_dictionaries(
    {},
    optional={
        "agent": st.sampled_from(["pretrain", "hybrid_reinforce", "ppo", "static", "nobody"]) | json_values,
        "env": st.sampled_from(["SkipResNet20-v0", "SkipResNet21-v0", "CartPole-v1"]) | json_values,
        "policies": st.just([{"name": "HRL"}]) | json_values,
        "dataset": st.just("rendered-digits") | json_values,
        "alpha": st.just(1.0) | json_values,
        "gate": st.sampled_from(["rnn", "lstm"]) | json_values,
        "weights": st.sampled_from(["auto", "../../etc/passwd"]) | json_values,
    },
)


@many
@given(fields=run_fields | json_values, raw=st.none() | st.binary(max_size=20))
def test_run_folders(tmp_path_factory, fields, raw):
    folder = tmp_path_factory.mktemp("run")
    for name in ("args.json", "result.json"):
        (folder / name).write_text(json.dumps(fields))
    if raw is not None:
        (folder / "result.json").write_bytes(raw)
    before = sorted(folder.iterdir())
    run = attempt(FinishedRun.read, folder)
    if run is not None:
        attempt(run.restore, 10)
    assert sorted(folder.iterdir()) == before


def test_a_run_that_names_weights_outside_of_its_folder(tmp_path, files):
    run = FinishedRun(tmp_path / "run", {}, {"env": "SkipResNet20-v0", "agent": "hybrid_reinforce"})
    (tmp_path / "run").mkdir()
    shutil.copy(files / "gated.safetensors", tmp_path / "stolen.safetensors")
    with pytest.raises(ValueError, match="outside of the run's folder"):
        run.network(10, "../stolen.safetensors")


COMMANDS = {
    "hybrid_reinforce": (hybrid_reinforce.Args, hybrid_reinforce.train),
    "pretrain": (pretrain.Args, pretrain.train),
    "reinforce": (reinforce.Args, reinforce.train),
    "gumbel": (gumbel.Args, gumbel.train),
    "act": (act.Args, act.train),
    "blockdrop": (blockdrop.Args, blockdrop.train),
    "ppo": (ppo.Args, ppo.train),
    "dqn": (dqn.Args, dqn.train),
    "static": (static.Args, static.evaluate_all),
    "evaluate": (evaluation.Args, evaluation.main),
}
BAD_FLAGS = [
    ("--env", ["SkipResNet21-v0", "", "CartPole", "CartPole-v1", "nowhere:SkipResNet20-v0"]),
    ("--dataset", ["mnist", "cifar10", "imagefolder", ""]),
    ("--weights", ["none.safetensors", "/dev/null"]),
    ("--alpha", ["nan", "-1", "inf", "x"]),
    ("--depth", ["7", "0", "-20", "x"]),
    ("--gate", ["gru", ""]),
    ("--batch-size", ["0", "-1", "1000000"]),
    ("--routes", ["0", "-4", "1"]),
    ("--stage", ["rl", ""]),
    ("--iterations", ["-1", "x"]),
    ("--epochs", ["0", "-1", "nan"]),
    ("--lr", ["x", "-0.1", "nan", "inf"]),
    ("--eval-every", ["0", "-5"]),
    ("--eval-images", ["0", "-3"]),
    ("--survival", ["0", "1.5", "nan"]),
    ("--minibatches", ["0", "1000000"]),
    ("--width", ["0"]),
    ("--num-envs", ["0", "-2"]),
    ("--episodes", ["0"]),
    ("--buffer", ["0"]),
    ("--updates", ["-1"]),
    ("--penalty", ["-1"]),
    ("--distillation", ["2", "-1", "nan"]),
    ("--teacher", ["none"]),
    ("--warmup", ["-1"]),
    ("--target", ["-1", "nan"]),
    ("--tau", ["-1", "nan"]),
    ("--bound", ["0.2"]),
    ("--policy-depth", ["7"]),
    ("--rates", ["1.5"]),
    ("--device", ["gpu", "cuda:99"]),
    ("--precision", ["fp8"]),
    ("--cost", ["time"]),
    ("--shortcut", ["skip"]),
    ("--run-dir", ["/proc/none/run", "/dev/null/run"]),
    ("--nonsense", ["1"]),
    ("--schedule", ["warm"]),
    ("--exploration", ["0.9", "-1"]),
    ("--split", ["rest"]),
    ("--mode", ["lucky"]),
]


@st.composite
def command_lines(draw):
    """A command with one invalid flag."""
    command = draw(st.sampled_from(list(COMMANDS)))
    flag, values = draw(st.sampled_from(BAD_FLAGS))
    line = [flag, *([draw(st.sampled_from(values))] if values else [])]
    return command, [*line, *(["no/such/run"] if command == "evaluate" else [])]


@settings(many, max_examples=80)
@given(line=command_lines())
def test_invalid_flags_are_one_line_errors(tmp_path_factory, line):
    """Only the flag is wrong; no file is left behind."""
    command, flags = line
    place = tmp_path_factory.mktemp("cwd")
    small = {"pretrain": ("--depth", "20"), "evaluate": ()}.get(command, ("--env", "SkipResNet20-v0"))
    for name, value in [small, ("--dataset", "rendered-digits")] if small else []:
        flags = flags if name in flags else [*flags, name, value]
    if "--dataset" in flags:
        flags = [*flags, "--data-dir", str(place)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.chdir(place)
        patch.setattr(sys, "argv", [command, *flags])
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
            main_with_named_errors(*COMMANDS[command])
    assert stop.value.code == 2, (command, flags, said.getvalue())
    assert "Traceback" not in said.getvalue()
    if "For full helptext" not in said.getvalue():  # the parser's own answer
        assert said.getvalue().startswith("error: ") and said.getvalue().count("\n") == 1
    assert list(place.iterdir()) == []
    TALLY["refused"] += 1


@few
@given(data=st.data())
def test_image_folders(tmp_path_factory, data):
    """Classes added and removed, a file that is not an image, empty and missing folders."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for part in data.draw(st.sampled_from([["train", "test"], ["train"], ["test"], ["train", "val"], []])):
        for name in data.draw(st.sampled_from([["a", "b"], ["a"], ["b", "c"], []])):
            (folder / part / name).mkdir(parents=True)
            for number in range(data.draw(st.integers(0, 3))):
                path = folder / part / name / f"{number}.png"
                Image.new("RGB", (8, 8), (number, 9, 9)).save(path)
                if data.draw(st.integers(0, 5)) == 0:
                    path.write_bytes(data.draw(st.sampled_from([b"", b"no image", path.read_bytes()[:30]])))

    def read():
        images = load_images(
            "imagefolder", data.draw(st.sampled_from(["train", "val", "test"])), folder, size=8
        )
        return [images.batch(torch.tensor([k]))[0].shape for k in range(len(images))]

    attempt(read)
