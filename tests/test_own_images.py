"""A run on images of one's own, and the commands that read its folder afterwards."""

import pytest
from toys import COLOURS, write_folder

from agents import compare, evaluate, export, hybrid_reinforce
from skipnet_rl.data import load_images
from skipnet_rl.data.places import VARIABLE
from skipnet_rl.errors import DataNotFoundError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A short run on the images in photos/, beside other images of its classes in data/."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    for folder, test_images in (("photos", 3), ("data", 2)):
        write_folder(tmp_path / folder / "train", COLOURS, 20)
        write_folder(tmp_path / folder / "test", COLOURS, test_images)
    lengths = {"sp_iterations": 1, "iterations": 1, "tune_iterations": 0, "warmup_iterations": 0}
    hybrid_reinforce.train(
        hybrid_reinforce.Args(
            env="SkipResNet14-v0", dataset="imagefolder", data_dir=tmp_path / "photos", weights="none",
            run_dir=tmp_path / "run", batch_size=8, eval_images=4, bn_images=20, **lengths,
        )
    )  # fmt: skip
    return tmp_path / "run"


def test_it_is_evaluated_on_its_own_images(run):
    assert len(load_images("imagefolder", "test")) == 4  # the other ones, in data/
    assert evaluate.main(evaluate.Args((run,)))[0]["n_images"] == 6
    assert evaluate.main(evaluate.Args((run,), data_dir=run.parent / "data"))[0]["n_images"] == 4
    compare.main(compare.Args((run,), verify=True))


def test_where_they_are_gone_the_usual_folder_is_read(run):
    (run.parent / "photos").rename(run.parent / "elsewhere")
    assert evaluate.main(evaluate.Args((run,)))[0]["n_images"] == 4


def test_its_folder_is_exported_and_checked_on_them(run, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install -e '.[export]'")
    agreement = export.main(export.Args(run, tmp_path / "model.onnx"))
    assert agreement is not None and agreement.images == agreement.same_routes == 6


def test_too_few_images_to_hold_out_any_are_refused(tmp_path):
    write_folder(tmp_path / "train", COLOURS, 4)
    assert len(load_images("imagefolder", "train", tmp_path)) == 8
    with pytest.raises(DataNotFoundError, match="8 training images are too few to hold out one in 10"):
        load_images("imagefolder", "val", tmp_path)
