"""Differences between networks on the same images."""

import json
import math
from pathlib import Path

import pytest
import torch
from toys import load_first

from agents import evaluate as agent
from agents.common import subjects
from scripts import paired
from skipnet_rl.evaluate import evaluate

NAMES = ("resnet110-rendered-digits-hrl", "resnet20-rendered-digits")


def test_a_pair_is_compared_image_by_image(tmp_path, monkeypatch):
    monkeypatch.setattr(subjects, "load_images", load_first(100))
    found = paired.main(paired.Options(pairs=(NAMES, NAMES[::-1]), out=tmp_path))
    alone = {}
    for name in NAMES:
        subject = agent.restore(Path(name), agent.Args((Path(name),)))
        alone[name] = evaluate(subject.mdp, subject.policy, subject.images)
        assert found["networks"][name]["accuracy"] == alone[name].accuracy
    assert found["networks"][NAMES[1]]["mega_flops"] == pytest.approx(81.626, rel=1e-4)  # the whole network
    assert found["networks"][NAMES[0]]["mega_flops"] < 0.7 * 506.3
    differences = alone[NAMES[0]].correct.double() - alone[NAMES[1]].correct.double()
    first, second = found["pairs"]
    assert first["accuracy"] == pytest.approx(differences.mean().item()) == -second["accuracy"]
    half = 1.98422 * differences.std().item() / math.sqrt(100)  # Student's t of 99 degrees of freedom
    assert first["ci95"] == pytest.approx(half, rel=1e-4) == second["ci95"]
    stored = json.loads((tmp_path / paired.FILE).read_text())
    assert stored["pairs"] == found["pairs"] and stored["n_images"] == 100
    text = paired.table(found)
    assert f"| {NAMES[1]} | 81.6 | {100 * alone[NAMES[1]].accuracy:.2f} |" in text


def test_by_hand():
    right = {"a": [1, 1, 0, 1], "b": [0, 1, 1, 0]}
    rows = {name: type("Row", (), {"correct": torch.tensor(each).bool()}) for name, each in right.items()}
    found = paired.difference(rows, "a", "b")
    assert found["accuracy"] == 0.25  # 1, 0, -1, 1
    assert found["ci95"] == pytest.approx(3.1824 * math.sqrt(2.75 / 3) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((), "no pairs given"),
        ((("resnet20-rendered-digits", "nothing"),), "nothing"),
    ],
)
def test_refused(pairs, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        paired.main(paired.Options(pairs=pairs, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_data_sets_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setattr(subjects, "load_images", lambda *given: load_first(100)("rendered-digits", "test"))
    with pytest.raises(ValueError, match="networks of different data sets"):
        paired.main(paired.Options(pairs=(("resnet20-rendered-digits", "resnet20-cifar10"),), out=tmp_path))
