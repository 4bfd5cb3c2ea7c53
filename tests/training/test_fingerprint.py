import copy

import pytest

from distill.config.schema import Config, StudentConfig
from distill.errors import UserError
from distill.training.fingerprint import digest, fingerprint, refuse_other_objective


def test_same_objective_same_fingerprint_whatever_the_schedule_and_hardware():
    a, b = Config(), Config()
    b.train.strategy, b.train.checkpointing, b.teacher.shard = "fsdp", "full", True
    b.train.steps, b.train.devices, b.optim.lr, b.data.workers, b.name = 7, 4, 1.0, 0, "other"
    assert digest(fingerprint(a, None)) == digest(fingerprint(b, None))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective.patch.tokens", "visible"),
        ("objective.patch.student_temperature", 0.2),
        ("mask.ratio", 0.5),
        ("teacher.mode", "ema"),
        ("captions.cls1", ["detailed"]),
        ("heads.prototypes", 7),
        ("views.locals", 2),
    ],
)
def test_a_changed_objective_is_refused_and_named(key, value):
    saved = fingerprint(Config(), None)
    cfg = Config()
    *path, leaf = key.split(".")
    node = cfg
    for part in path:
        node = getattr(node, part)
    setattr(node, leaf, value)
    with pytest.raises(UserError) as error:
        refuse_other_objective(saved, fingerprint(cfg, None), "step_1.pt")
    assert key in str(error.value)
    assert str(value) in str(error.value)
    assert "stage_from" in str(error.value)


def test_micro_batches_count_only_where_they_bound_the_negatives():
    def marks(accumulate: int, negatives: str) -> str:
        cfg = Config()
        cfg.train.accumulate, cfg.objective.contrastive.negatives = accumulate, negatives
        return digest(fingerprint(cfg, None))

    whole = marks(1, "global")
    assert {marks(4, "global"), marks(1, "micro")} == {whole}
    assert len({whole, marks(2, "micro"), marks(4, "micro")}) == 3


def test_kept_targets_count_by_what_they_are_and_not_by_where():
    cfg = Config()
    plain = fingerprint(cfg, None)
    cfg.teacher.cache.epochs = 3
    assert fingerprint(cfg, None) == plain  # nothing is kept
    cfg.teacher.cache.path = "a"
    with pytest.raises(UserError, match=r"teacher\.cache\.epochs: None in the checkpoint, 3 now"):
        refuse_other_objective(plain, fingerprint(cfg, None), "c.pt")
    moved = copy.deepcopy(cfg)
    moved.teacher.cache.path, moved.teacher.cache.limit = "b", 1.0
    assert fingerprint(moved, None) == fingerprint(cfg, None)


def test_students_and_the_teacher_file_count_but_its_place_does_not():
    cfg = Config(students=[StudentConfig(name="a"), StudentConfig(name="b", arch="S/14")])
    other = copy.deepcopy(cfg)
    other.students[1].arch = "L/14"
    with pytest.raises(UserError, match=r"students\.1\.arch: 'S/14' in the checkpoint, 'L/14' now"):
        refuse_other_objective(fingerprint(cfg, None), fingerprint(other, None), "c.pt")
    moved = copy.deepcopy(cfg)
    moved.teacher.source = "run:elsewhere"
    refuse_other_objective(fingerprint(cfg, "abc"), fingerprint(moved, "abc"), "c.pt")
    named = copy.deepcopy(cfg)
    named.teacher.source = "run:family#l14"
    with pytest.raises(UserError, match=r"teacher\.name: None in the checkpoint, 'l14' now"):
        refuse_other_objective(fingerprint(moved, "abc"), fingerprint(named, "abc"), "c.pt")
    with pytest.raises(UserError, match=r"teacher\.sha256"):
        refuse_other_objective(fingerprint(cfg, "abc"), fingerprint(cfg, "def"), "c.pt")
