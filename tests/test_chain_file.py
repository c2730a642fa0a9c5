"""Chains as files: opened, evaluated and exported by name like any network."""

import json
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from test_mdp import lively_net
from toys import load_first, slow

from agents import evaluate as agents_evaluate
from agents import export
from agents.common import subjects
from agents.common.finished import FinishedRun
from skipnet_rl.belief import BeliefGate, Threshold, margin
from skipnet_rl.catalogue import index
from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.chain_file import save_chain
from skipnet_rl.checkpoint import read_about, read_tensors, save_weights
from skipnet_rl.data import load_images
from skipnet_rl.errors import WeightsError
from skipnet_rl.evaluate import evaluate
from skipnet_rl.member import Member
from skipnet_rl.rollout import rollout
from skipnet_rl.stored_networks import untrained
from skipnet_rl.weights import open_weights

GATED = "resnet110-rendered-digits-hrl"


@pytest.fixture
def networks(tmp_path) -> list[str]:
    """Files of a ResNet-8 and a ResNet-14."""
    names = []
    for depth in (8, 14):
        header = {"kind": "plain", "depth": depth, "dataset": "rendered-digits"}
        save_weights(tmp_path / f"r{depth}.safetensors", lively_net(depth).float(), header)
        names.append(str(tmp_path / f"r{depth}.safetensors"))
    return names


@pytest.fixture
def file(networks, tmp_path):
    """A chain of the two, which asks the second one about half of the images."""
    first = open_weights(networks[0]).network
    images, _ = load_images("rendered-digits", "test").first(60).batch(torch.arange(60))
    with torch.no_grad():
        threshold = margin(first(images).double().log_softmax(dim=1)).median().item() + 1e-3  # next to none
    row = {"networks": networks, "mix": [0.3], "thresholds": [threshold], "by": "margin", "budget": 0.9}
    save_chain(tmp_path / "chain.json", {**row, "accuracy": 0.5}, {"dataset": "rendered-digits"})
    return tmp_path / "chain.json"


@pytest.fixture
def learned(networks, tmp_path):
    """The same two at temperature 2, with a gate that asks the second one about half of the images."""
    members = [Member(open_weights(name).network, temperature=2.0) for name in networks]
    mdp = ChainMDP(Chain(members))
    gate = BeliefGate(mdp)
    torch.nn.init.normal_(gate.layers[2].weight, generator=torch.Generator().manual_seed(0))
    images = load_images("rendered-digits", "test").first(60)
    with torch.no_grad():
        logits = rollout(mdp, gate, *images.batch(torch.arange(60))).gate_logits
        gate.layers[2].bias -= logits.median() + 1e-3
    header = {"kind": "chain", "policy": "belief", "networks": networks, "mix": [0.3], "temperature": 2.0}
    header |= {"dataset": "rendered-digits", "num_classes": 10, "alpha": 0.05, "cost": "flops"}
    save_weights(tmp_path / "learned.safetensors", torch.nn.ModuleDict({"gate": gate}), header)
    return tmp_path / "learned.safetensors"


def test_a_file_holds_what_was_learned(learned):
    opened = open_weights(learned)
    assert [member.temperature for member in opened.network.members] == [2.0, 2.0]
    assert isinstance(opened.policy, BeliefGate) and opened.mdp().alpha == 0.05
    header, tensors = read_about(learned), read_tensors(learned)
    for name, value in opened.policy.state_dict().items():
        torch.testing.assert_close(value, tensors[f"gate.{name}"].float())
    for change, message in (({"policy": None}, "policy"), ({"temperature": [1.0]}, "damaged")):
        known = {key: value for key, value in {**header, **change}.items() if value is not None}
        save_weights(learned, torch.nn.ModuleDict({"gate": opened.policy}), known)
        with pytest.raises(WeightsError, match=message):
            open_weights(learned)


def test_a_file_without_its_gate_is_refused(learned):
    """The gate would be a new one, which asks no network."""
    net, header = open_weights(learned).network, read_about(learned)
    save_weights(learned, torch.nn.ModuleDict({"net": net}), header)
    with pytest.raises(WeightsError, match=r"layer gate\.\S+ \(.+\) is missing"):
        open_weights(learned)


@pytest.mark.parametrize("shortcut", ["pad", None])
def test_untrained_networks_have_the_shortcut_that_they_had(shortcut, tmp_path):
    """Projections where a file of an earlier version does not say."""
    kind = shortcut or "projection"
    nets = [untrained(depth, 10, kind) for depth in (8, 14)]
    header = {"kind": "chain", "policy": "belief", "networks": [8, 14], "mix": [0.3], "num_classes": 10}
    header |= {"shortcut": shortcut} if shortcut else {}
    gate = BeliefGate(ChainMDP(Chain([Member(net) for net in nets])))
    save_weights(tmp_path / "w.safetensors", torch.nn.ModuleDict({"gate": gate}), header)
    for member, net in zip(open_weights(tmp_path / "w.safetensors").network.members, nets, strict=True):
        assert member.net.shortcut == kind
        found, own = member.net.state_dict(), net.state_dict()
        assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)
    run = FinishedRun(
        tmp_path,
        {"weights": "none", **({"shortcut": shortcut} if shortcut else {})},
        {"env": "SkipChain-v0", "dataset": "rendered-digits", "alpha": 0.05, "cost": "flops"},
    )
    assert [member.net.shortcut for member in run.process(10).net.members] == [kind, kind]


def test_a_file_holds_the_chain(file, networks):
    opened = open_weights(file)
    assert isinstance(opened.network, Chain) and isinstance(opened.policy, Threshold)
    assert opened.network.mix.tolist() == [0.3] and not opened.network.training
    header = opened.header
    assert (header["kind"], header["depth"], header["num_classes"], header["budget"]) == (
        "chain",
        14,
        10,
        0.9,
    )
    assert header["networks"] == networks and "accuracy" not in header
    mdp = opened.mdp()
    assert isinstance(mdp, ChainMDP) and opened.mdp(alpha=0.2).alpha == 0.2
    images = load_images("rendered-digits", "test").first(60)
    done = evaluate(mdp, opened.policy, images)
    assert 0.4 < done.rate < 0.6
    alone = evaluate(open_weights(networks[0]).mdp(), open_weights(networks[0]).policy, images)
    kept = ~done.routes[:, 0]
    assert torch.equal(done.predictions[kept], alone.predictions[kept])


@pytest.mark.parametrize("kind", [slow("file"), "learned"])
def test_evaluated_and_exported_by_its_file(kind, request, tmp_path, monkeypatch):
    file = request.getfixturevalue(kind)
    for module in (subjects, export):
        monkeypatch.setattr(module, "load_images", load_first(60))
    found = agents_evaluate.main(agents_evaluate.Args((file,), out=tmp_path / "out"))[0]
    assert found["env"] == "SkipChain-v0"
    everything, chain = found["policies"]
    assert everything["executed_blocks_mean"] == 1 and 0.1 < chain["executed_blocks_mean"] < 0.9
    pytest.importorskip("onnx", reason="needs the extra: pip install -e '.[export]'")
    agreement = export.main(export.Args(file, tmp_path / "chain.onnx", check=60))
    assert (agreement.images, agreement.same_routes) == (60, 60)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"thresholds": None}, "has thresholds None"),
        ({"thresholds": [1.0, 2.0]}, "has 2 thresholds for 1 decisions"),
        ({"thresholds": ["much"]}, "is damaged"),
        ({"by": "hunch"}, "measure of sureness"),
        ({"mix": [1.5]}, "expected 1 weights of the answer so far"),
        ({"networks": []}, "expected two or more"),
        (
            {"networks": ["resnet20-rendered-digit", GATED]},
            "did you mean the shipped resnet20-rendered-digits",
        ),
        ({"kind": "string"}, "kind 'string'"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message, file):
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(WeightsError, match=message):
        open_weights(file)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"kind": "chain"}'])
def test_damaged_files_are_refused(text, file):
    file.write_text(text)
    with pytest.raises(WeightsError, match="chain.json (is damaged|cannot be read)"):
        open_weights(file)


def test_a_chain_is_no_single_network(file):
    with pytest.raises(WeightsError, match="is a chain of networks; expected one ResNet-14"):
        open_weights(file, depth=14)
    content = json.loads(file.read_text())
    file.with_name("outer.json").write_text(json.dumps({**content, "networks": [str(file), GATED]}))
    with pytest.raises(WeightsError, match="is damaged"):
        open_weights(file.with_name("outer.json"))


@pytest.mark.parametrize("threshold, asked", [(torch.inf, 1), (-torch.inf, 0)])
def test_thresholds_without_bounds(threshold, asked, networks, tmp_path):
    save_chain(tmp_path / "chain.json", {"networks": networks, "mix": [0.3], "thresholds": [threshold]}, {})
    opened = open_weights(tmp_path / "chain.json")
    assert (
        evaluate(opened.mdp(), opened.policy, load_images("rendered-digits", "test").first(20)).rate == asked
    )


def test_the_name_of_a_file_ends_in_json(networks, tmp_path):
    with pytest.raises(ValueError, match="expected a name that ends in .json"):
        save_chain(tmp_path / "chain.txt", {"networks": networks, "mix": [0.3], "thresholds": [1.0]}, {})


@pytest.mark.parametrize(
    "entry", [each for each in index() if each["kind"] == "chain"], ids=lambda e: e["name"]
)
def test_shipped_chains_open(entry):
    opened = open_weights(entry["name"])
    assert len(opened.network.members) == len(entry["after"]) == len(opened.policy.thresholds) + 1
    assert opened.header["networks"] == entry["after"] and opened.header["dataset"] == entry["dataset"]


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in index() if e["kind"] == "chain"], ids=itemgetter("name"))
def test_shipped_chains_export(entry, official_folder, tmp_path):
    """Compared on 1,000 test images."""
    pytest.importorskip("onnx", reason="needs the extra: pip install -e '.[export]'")
    folder = official_folder(entry["dataset"])
    agreement = export.main(export.Args(Path(entry["name"]), tmp_path / "chain.onnx", data_dir=folder))
    assert (agreement.images, agreement.same_routes) == (1_000, 1_000)
