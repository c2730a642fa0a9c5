"""Shipped chains are tuned on the validation images and judged on the test images."""

import json

import pytest
import torch

from scripts import ship_chains
from skipnet_rl.data import ImageSet
from skipnet_rl.recording import Records
from skipnet_rl.weights import open_weights


def answers(second: float, generator: torch.Generator) -> torch.Tensor:
    """Records [200, 4, 11] of a first network that is right where it is sure, and of three better ones."""
    found = torch.full((200, 4, 11), 1.0)
    labels = torch.arange(200) % 10
    sure = torch.rand(200, generator=generator) < 0.7
    for number in range(4):
        right = sure | (torch.rand(200, generator=generator) < (second if number else 0.1))
        said = torch.where(right, labels, (labels + 1) % 10)
        logits = torch.zeros(200, 10)
        logits[torch.arange(200), said] = torch.where(sure, 5.0, 1.0)
        found[:, number, :10], found[:, number, 10] = logits.log_softmax(dim=1), [1, 2, 3, 20][number] * 1e7
    return found.double()


def test_thresholds_are_of_validation_images_and_figures_of_test_images(tmp_path, monkeypatch):
    generator, split_seconds = torch.Generator().manual_seed(0), {"val": 0.9, "test": 0.5}
    pixels, labels = torch.zeros(200, 3, 32, 32, dtype=torch.uint8), torch.arange(200) % 10

    def load(dataset, split, data_dir):
        names = tuple(map(str, range(10)))
        return ImageSet(dataset, split, pixels, labels, names, (0.5,) * 3, (0.5,) * 3, flip=False)

    def record(chain, images, progress):
        assert len(chain.members) == 4
        return Records(images, answers(split_seconds[images.split], generator))

    for name, value in {"load_images": load, "record": record, "FOLDER": tmp_path}.items():
        monkeypatch.setattr(ship_chains, name, value)
    monkeypatch.setattr(ship_chains, "index", lambda: [{"name": "other"}, {"name": "chain38gx38-cifar10"}])
    entries = ship_chains.main(ship_chains.Options())
    stored = json.loads((tmp_path / "index.json").read_text())
    assert stored == [{"name": "other"}, *json.loads(json.dumps(entries))]
    for entry in entries:
        assert entry["val_accuracy"] > entry["test_accuracy"] > 0.6
        assert open_weights(tmp_path / entry["file"]).header["budget"] == entry["budget"]


def test_a_chain_sees_its_own_networks_alone():
    source = torch.rand(3, 4, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = ImageSet(
        "x", "val", torch.zeros(3, 3, 8, 8), torch.zeros(3), ("a",), (0.5,) * 3, (0.5,) * 3, flip=False
    )
    part = ship_chains.part_of(Records(images, source), (ship_chains.SMALL, ship_chains.LARGE))
    assert torch.equal(part.answers, source[:, [0, 3]])
    with pytest.raises(ValueError, match="not in"):
        ship_chains.part_of(Records(images, source), ("resnet8",))
