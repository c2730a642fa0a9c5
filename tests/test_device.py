"""Devices and precisions by name, and programs whose default device is not the CPU."""

import ast
import enum
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

import envs  # noqa: F401
from agents import reinforce
from skipnet_rl.checkpoint import load_checkpoint, save_checkpoint, save_weights
from skipnet_rl.data import load_images
from skipnet_rl.data.files import ImageFiles
from skipnet_rl.device import pick_device, resolve_precision
from skipnet_rl.evaluate import evaluate
from skipnet_rl.gates import make_gate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import RandomSkip, StochasticDepth
from skipnet_rl.problem import load_network
from skipnet_rl.rollout import rollout
from skipnet_rl.weights import open_weights

ROOT = Path(__file__).parent.parent
SMALL = {"dataset": "rendered-digits", "weights": None}


class Place(str, enum.Enum):
    CPU = "cpu"


@pytest.mark.parametrize("given", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0), Place.CPU])
def test_the_cpu_by_every_name(given):
    assert pick_device(given) == torch.zeros(0, device="cpu").device


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, "cuda"),
        ("auto", "cuda"),
        (torch.device("cuda"), "cuda"),
        ("cuda:1", "cuda:1"),
        (torch.device("cuda", 0), "cuda:0"),
        ("cpu", "cpu"),
    ],
)
def test_gpus(monkeypatch, given, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device(given) == torch.device(expected)


WRONG = (
    "cpu:abc",
    "cpu:1",
    "cpu:-1",
    "cuda:",
    "cuda:x",
    "cuda:99",
    "cuda:-1",
    "CPU",
    "gpu",
    "",
    "auto:0",
    " cpu",
    "mps",
    "meta",
    torch.device("meta"),
    torch.device("cuda", 99),
    torch.device("mps"),
    0,
    1.5,
    True,
    ["cpu"],
    b"cpu",
)


@pytest.mark.parametrize("available", [False, True])
def test_invalid_devices(monkeypatch, record_property, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for given in WRONG:
        with pytest.raises(ValueError, match="device|CPU"):
            pick_device(given)
    with pytest.raises(ValueError, match="cuda:99.*PyTorch sees 1" if available else "sees no CUDA device"):
        pick_device("cuda:99")
    record_property("refused", len(WRONG))
    record_property("accepted", 0)


@pytest.mark.parametrize("device", [None, torch.device("cpu"), torch.device("cpu", 0), "cpu:0"])
def test_environments_accept_devices(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    env = gym.make("SkipResNet14-v0", device=device, **SMALL)
    env.reset(seed=0)
    assert env.unwrapped.lockstep.device == torch.device("cpu")


class DefaultIsAnother(TorchFunctionMode):
    """Emulates a default GPU device: a tensor drawn from a CPU generator without a device raises."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _device_constructors() and kwargs.get("device") is None and kwargs.get("generator"):
            raise RuntimeError(f"{func.__name__} draws on a device that its generator is not on")
        return func(*args, **kwargs)


@pytest.fixture(params=["meta", "another generator"])
def elsewhere(request):
    """A default device other than the CPU; tensors on "meta" cannot be used, so mistakes show."""
    if request.param == "meta":
        with torch.device("meta"):
            yield
    else:
        with DefaultIsAnother():
            yield


@pytest.mark.parametrize(
    "more",
    [
        {"cost": "flops", "array": "torch"},
        {"augment": True, "weights": "resnet20-rendered-digits"},
        {"obs_mode": "feature", "autoreset_mode": "NextStep"},
    ],
    ids=str,
)
def test_episodes(elsewhere, more):
    made = {**SMALL, **more}
    if "autoreset_mode" in made:
        made["autoreset_mode"] = gym.vector.AutoresetMode.NEXT_STEP
    env = gym.make_vec("SkipResNet20-v0", num_envs=3, device="cpu", **made)
    observation, _ = env.reset(seed=0)
    for step in range(9):
        actions = np.arange(3) % 2 if step else np.ones(3, int)
        observation, reward, *_ = env.step(actions)
        assert bool(np.isfinite(np.asarray(observation)).all()) and np.asarray(reward).shape == (3,)


def test_the_single_environment_and_its_pictures(elsewhere):
    env = gym.make("SkipResNet20-v0", device="cpu", render_mode="rgb_array", **SMALL)
    env.reset(seed=0)
    for _ in range(8):
        _, reward, ended, *_ = env.step(1)
    assert ended and isinstance(reward, float) and env.render().ndim == 3


def test_initial_weights_do_not_depend_on_the_default_device(elsewhere):
    net = load_network(None, 14, 10, "rendered-digits")
    with torch.device("cpu"):
        assert torch.equal(net.fc.weight, load_network(None, 14, 10, "rendered-digits").fc.weight)


def test_files_policies_and_evaluations(elsewhere, tmp_path):
    net = load_network(None, 14, 10, "rendered-digits")
    with torch.device("cpu"):
        whole = nn.ModuleDict({"net": net, "gate": make_gate("rnn", net)})
    about = {
        "depth": 14,
        "dataset": "rendered-digits",
        "gate": "rnn",
        "shortcut": "projection",
        "alpha": 1.0,
        "cost": "blocks",
    }
    save_weights(tmp_path / "w.safetensors", whole, about)
    opened = open_weights(tmp_path / "w.safetensors")
    mdp, gate = opened.mdp(), opened.policy
    images = load_images("rendered-digits", "val").first(6)
    assert evaluate(mdp, gate, images).routes.device.type == "cpu"
    draws = torch.Generator("cpu").manual_seed(0)
    evaluate(mdp, RandomSkip(0.5), images, mode="sample", generator=draws)
    small = RoutingMDP(net, cost=[1.0] * 5)
    indices = torch.arange(4, device="cpu")
    assert rollout(small, StochasticDepth(0.5, draws), *images.batch(indices)).loss.isfinite().all()
    save_checkpoint(tmp_path / "c", {"x": gate.state_dict(), "none": torch.zeros(0, device="cpu")})
    stored = load_checkpoint(tmp_path / "c")
    assert stored["none"].device.type == "cpu"
    assert all(torch.equal(value, stored["x"][name]) for name, value in gate.state_dict().items())


def test_images_in_files(elsewhere, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 50), (250, 0, 0)).save(tmp_path / "a.png")
    labels = torch.zeros(1, dtype=torch.int64, device="cpu")
    images = ImageFiles("x", "train", (str(tmp_path / "a.png"),), labels, ("a",), size=32)
    draws = torch.Generator("cpu").manual_seed(0)
    for batch in (images.batch(labels)[0], images.training_batch(labels, draws)[0]):
        assert batch.shape == (1, 3, 32, 32) and batch[0, 0].min() > batch[0, 1].max()
    assert images.picture(0)[0, 0].tolist() == [250, 0, 0]


def test_an_index_on_the_cpu_selects_images_of_any_device(tmp_path, tiny_images):
    """Those in files are looked up by its numbers, which a tensor on `meta` does not have."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    labels = torch.zeros(2, dtype=torch.int64, device="cpu")
    files = ImageFiles("x", "train", (str(tmp_path / "a.png"),) * 2, labels, ("a",), size=8)
    index = torch.tensor([1, 0], device="cpu")
    for images in (files, tiny_images):
        found, labels = images.to("meta").batch(index)
        assert found.is_meta and labels.is_meta and len(found) == len(labels) == 2
        assert [batch.device.type for batch, _ in images.to("meta").batches(2)][:1] == ["meta"]
    draws = torch.Generator("cpu").manual_seed(0)
    found, labels = files.to("meta").training_batch(index, draws)
    assert found.is_meta and labels.is_meta and len(found) == len(labels) == 2


@pytest.mark.parametrize("elsewhere", ["meta"], indirect=True)
def test_an_agent(elsewhere, tmp_path, few_images):
    args = reinforce.Args(
        env="SkipResNet14-v0",
        dataset="rendered-digits",
        iterations=1,
        batch_size=8,
        device="cpu",
        eval_images=8,
        test_images=8,
        weights="none",
        run_dir=tmp_path / "run",
    )
    assert reinforce.train(args)["policies"][-1]["name"] == "REINFORCE"


NAMES = {
    function.__name__
    for function in _device_constructors()
    if getattr(torch, function.__name__, None) is function
}


def nameless(source: str) -> list[str]:
    """Calls that create a tensor without a device."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch."):
            name, keywords = ast.unparse(node.func)[6:], {keyword.arg for keyword in node.keywords}
            if (name in NAMES and "device" not in keywords) or (name == "Generator" and not node.args):
                found.append(f"{node.lineno}: {name}")
    return found


def test_every_tensor_names_its_device():
    example = "torch.zeros(3)\ntorch.zeros(3, device=x)\ntorch.Generator()"
    assert nameless(example) == ["1: zeros", "3: Generator"]
    rooms = ("skipnet_rl", "envs", "agents", "scripts", "benchmarks")
    found = {
        str(path.relative_to(ROOT)): lines
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if (lines := nameless(path.read_text(encoding="utf-8")))
    }
    assert not found


def test_float32_is_float32_on_a_gpu(monkeypatch):
    """Not TensorFloat-32, PyTorch's default for convolutions."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("auto", "cuda", "cuda:1"):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        assert pick_device(name).type == "cuda"
        assert not torch.backends.cudnn.allow_tf32


def test_unavailable_device(monkeypatch):
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
