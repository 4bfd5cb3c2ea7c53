"""Sharded weights in a group of one process: every path that a larger group takes, without starting one."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from distill.errors import UserError
from distill.models import shard_files
from distill.models.loading import find_checkpoint, read_checkpoint
from distill.models.sharding import is_sharded, placed_like, shard, whole
from distill.training import checkpoint, live_eval
from teachers.average import follow


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('group') / 'store'}", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
    dist.destroy_process_group()


FABRIC = SimpleNamespace(is_global_zero=True, broadcast=lambda x: x)


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_a_sharded_step_is_the_plain_step(build, mesh, low):
    _, plain, batch = build()
    _, sharded, _ = build()
    shard(sharded.distiller, mesh, keep_root=True)
    assert all(map(is_sharded, sharded.distiller.parameters()))
    for assembly in (plain, sharded):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            assembly.output = assembly.distiller(batch, 0.07)
        assembly.output.loss.backward()
    torch.testing.assert_close(sharded.output.loss, plain.output.loss)
    other = dict(plain.distiller.named_parameters())
    for name, parameter in sharded.distiller.named_parameters():
        if other[name].grad is not None:
            torch.testing.assert_close(whole(parameter.grad), other[name].grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("mode", ["ema", "frozen"])
def test_a_sharded_teacher_gives_the_same_targets(build, mesh, small_run, mode):
    changes = {"teacher.mode": mode}
    if mode == "frozen":
        changes["teacher.source"] = f"run:{small_run('teacher', **{'train.steps': 1}).folder}"
    _, assembly, batch = build(**changes)
    teacher, clean = assembly.teacher, assembly.distiller.student("student").clean(batch.images())

    def targets():
        return teacher.targets(batch.images(), clean, 0.07, learn=False)

    before = targets()
    teacher.shard(mesh)
    trunk = teacher.trunk if mode == "ema" else teacher.model.image
    assert all(map(is_sharded, trunk.parameters()))
    after = targets()
    torch.testing.assert_close(after.cls, before.cls)
    torch.testing.assert_close(after.patch.probs(), before.patch.probs())
    assert all(map(is_sharded, trunk.parameters()))  # gathered for the pass alone
    teacher.follow(0.5)  # shards move towards whole weights
    with pytest.raises(UserError, match=r"teacher.shard: with teacher.mode ema_head"):
        build()[1].teacher.shard(mesh)


@pytest.mark.parametrize(("average_sharded", "source_sharded"), [(True, True), (True, False), (False, True)])
def test_averages_of_shards_are_those_of_whole_weights(mesh, average_sharded, source_sharded):
    average, source = (torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)) for _ in range(2))
    expected = copy.deepcopy(average)
    follow(expected, source, 0.75)
    if average_sharded:
        shard(average, mesh, keep_root=False)
    if source_sharded:
        shard(source, mesh, keep_root=False)
    follow(average, source, 0.75)
    for own, other in zip(average.parameters(), expected.parameters()):
        assert torch.equal(whole(own), other)


@pytest.fixture
def content(mesh):
    """A checkpoint's dictionary in small, with whole and sharded tensors, and the latter as they should be read."""
    net = shard(torch.nn.Linear(3, 5), mesh, keep_root=False)
    sharded = {name: value.detach() for name, value in net.state_dict().items()}
    nested = {"step": 7, "students": {"s": {"weights": sharded}}, "rng": [{"cpu": torch.arange(3)}], "names": ("a",)}
    return nested | {"optimizers": {"students": {"state": {0: {"exp_avg": 2 * sharded["weight"]}}}}}


def test_shards_are_read_whole_or_as_slices(content, tmp_path: Path):
    plain, shards = shard_files.split(content)
    checkpoint.save_shards(tmp_path / "checkpoints", 7, plain, shards, 1, FABRIC)
    folder = find_checkpoint(tmp_path)
    assert folder == checkpoint.existing(tmp_path / "checkpoints")[0] == tmp_path / "checkpoints" / "step_00000007"
    assert checkpoint.step_of(folder) == 7
    assert find_checkpoint(folder) == folder
    expected = content["students"]["s"]["weights"]
    for like in (lambda place: None, shard_files.places(content).get):
        found = read_checkpoint(folder, optimizers=True, like=like)
        weights = found["students"]["s"]["weights"]
        sharded = like("students/s/weights/weight") is not None
        assert [is_sharded(w) for w in weights.values()] == [sharded, sharded]
        assert all(torch.equal(whole(weights[name]), whole(expected[name])) for name in expected)
        assert torch.equal(whole(found["optimizers"]["students"]["state"][0]["exp_avg"]), 2 * whole(expected["weight"]))
        assert (found["step"], found["names"], found["rng"][0]["cpu"].tolist()) == (7, ("a",), [0, 1, 2])
    assert "optimizers" not in read_checkpoint(folder)
    # a checkpoint of one file gives slices too
    whole_content = {"w": whole(expected["weight"])}
    path = checkpoint.save(tmp_path / "one", 1, whole_content, keep=1)
    cut = read_checkpoint(path, like=lambda place: expected["weight"])["w"]
    assert is_sharded(cut) and torch.equal(whole(cut), whole_content["w"])


def test_shards_and_files_share_the_number_kept_and_partial_folders_do_not_count(content, tmp_path: Path):
    plain, shards = shard_files.split(content)
    checkpoint.save(tmp_path, 1, {"w": torch.zeros(1)}, keep=2)
    (tmp_path / "step_00000004.partial").mkdir()
    for step in (2, 3):
        checkpoint.save_shards(tmp_path, step, plain, shards, 2, FABRIC)
    assert [p.name for p in checkpoint.existing(tmp_path)] == ["step_00000002", "step_00000003"]


def test_a_failing_write_of_shards_is_told_and_leaves_nothing(content, tmp_path: Path, monkeypatch):
    plain, shards = shard_files.split(content)

    def full(folder, shards):
        (folder / "shard-1.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    checkpoint.save_shards(tmp_path, 1, plain, shards, 1, FABRIC)
    monkeypatch.setattr(shard_files, "write_shards", full)
    with pytest.raises(UserError, match=r"No space left.*step_00000001, is untouched.*--resume"):
        checkpoint.save_shards(tmp_path, 2, plain, shards, 1, FABRIC)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    (tmp_path / "step_00000001" / shard_files.PLAIN).write_bytes(b"half")
    with pytest.raises(UserError, match=r"Cannot read .*step_00000001: it is truncated"):
        read_checkpoint(tmp_path / "step_00000001")


def test_live_evaluations_see_the_whole_models(build, mesh):
    _, assembly, batch = build(**{"teacher.mode": "ema", "students.0.ema": 0.9})
    state = SimpleNamespace(distiller=assembly.distiller, teacher=assembly.teacher, spares=assembly.spares)
    before = {name: model.encode_image(batch.images())[0] for name, model in live_eval.models_of(state).items()}
    shard(assembly.distiller, mesh, keep_root=True)
    assembly.teacher.shard(mesh)
    assembly.spares["student"].shard(mesh)
    drawn = torch.get_rng_state()
    models = live_eval.models_of(state)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert list(models) == ["student", "student.ema", "teacher"]
    for name, model in models.items():
        assert not any(map(is_sharded, model.parameters()))
        torch.testing.assert_close(model.encode_dense(batch.images())[0], before[name])


def test_tensors_are_placed_as_another_lies(mesh):
    like = shard(torch.nn.Linear(3, 4), mesh, keep_root=False).weight
    value = torch.arange(12.0).view(4, 3)
    assert torch.equal(whole(placed_like(value, like)), value)
    assert placed_like(placed_like(value, like), value) is not value
    assert torch.equal(placed_like(placed_like(value, like), value), value)
