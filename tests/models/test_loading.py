from __future__ import annotations

import os

import pytest
import torch

from distill.errors import UserError
from distill.models.loading import find_checkpoint, pack_model, save_model
from distill.models.pair import ImageTextModel
from distill.models.sources import load


@pytest.fixture(name="run")
def _run(model, tmp_path):
    """A run folder with three steps; at each step the two students hold a different constant temperature."""
    folder = tmp_path / "runs" / "demo"
    (folder / "checkpoints").mkdir(parents=True)
    for step in (5, 20, 100):
        students = {}
        for offset, name in enumerate(("small", "other")):
            with torch.no_grad():
                model.log_temperature.fill_(step + offset)
            students[name] = pack_model(model)
            students[name]["weights"] = {k: v.clone() for k, v in students[name]["weights"].items()}
        torch.save({"students": students, "step": step}, folder / "checkpoints" / f"step_{step:07d}.pt")
    (folder / "checkpoints" / "step_0000999.pt.part").write_bytes(b"half written")
    return folder


def test_exported_file_round_trips_bit_for_bit(model, tmp_path):
    file = tmp_path / "model.pt"
    save_model(model.train(), file)
    again = load(file)
    assert isinstance(again, ImageTextModel)
    assert not again.training
    model.eval()
    assert again.spec() == model.spec()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(again.encode_image(images)[0], model.encode_image(images)[0])
    file.unlink()  # nothing of the loaded model depends on the file any more
    assert torch.equal(again.encode_image(images)[0], model.encode_image(images)[0])


def test_a_run_is_read_at_its_newest_step_and_first_student(run):
    assert find_checkpoint(run).name == "step_0000100.pt"
    assert load(run).log_temperature.item() == 100
    assert load(f"run:{run}").log_temperature.item() == 100
    assert load(f"run:{run}#other").log_temperature.item() == 101
    assert load(f"{run}/checkpoints/step_0000005.pt#other").log_temperature.item() == 6


def test_missing_things_are_named(run, tmp_path, model):
    with pytest.raises(UserError, match=r"No run or checkpoint at .*absent"):
        load(tmp_path / "absent")
    cell = tmp_path / "study" / "cells" / "a-s0" / "run"
    (cell / "checkpoints").mkdir(parents=True)
    (cell / "checkpoints" / "step_00000001.pt").touch()
    with pytest.raises(UserError, match=rf"study is a study's folder, of many runs. Give one of them, as {cell}\."):
        load(tmp_path / "study")
    with pytest.raises(UserError, match=r"Unknown student 'othr'\. Did you mean 'other'"):
        load(f"{run}#othr")
    with pytest.raises(UserError, match="No checkpoint in"):
        load(tmp_path)
    save_model(model, tmp_path / "model.pt")
    with pytest.raises(UserError, match="leave out '#other'"):
        load(f"{tmp_path}/model.pt#other")


def test_truncated_files(run):
    file = find_checkpoint(run)
    whole = file.read_bytes()
    for share in (0.0, 0.3, 0.99):
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match="truncated, damaged or not a checkpoint"):
            load(run)


def test_a_damaged_checkpoint_is_told_with_the_one_before(run):
    good = find_checkpoint(run)
    damaged = good.with_name("step_99999999.pt")
    damaged.write_bytes(good.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"The one before is {good}: to go on from there remove the damaged one"):
        load(run)
    damaged.unlink()
    load(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1, "model": {}}, "holds epoch, model, and no students"),
        ({"students": {}}, "and no students"),
        ([1, 2], "holds a list"),
        ({"format": "everypatch-model", "spec": {}, "weights": {}}, "does not fit this version"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    file = tmp_path / "other.pt"
    torch.save(content, file)
    with pytest.raises(UserError, match=message):
        load(file)


def test_code_in_a_file_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"students": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="Cannot read"):
        load(tmp_path / "trap.pt")
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_shape(model, tmp_path):
    content = {"format": "everypatch-model", **pack_model(model)}
    content["weights"]["image.trunk.norm.weight"] = torch.zeros(3)
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"does not fit this version.*image\.trunk\.norm\.weight"):
        load(tmp_path / "model.pt")
