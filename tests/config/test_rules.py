"""What the keys of a recipe must satisfy together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.config.load import ConfigError, load_config

SMALL = """
views: {global_size: 64, local_size: 32, locals: 2}
students: [{name: s, arch: tiny/8}]
train: {batch: 8}
"""
DISTIL = SMALL + "teacher: {mode: frozen, source: run:t}\n"
COTRAINED = SMALL + "teacher: {mode: cotrained, arch: S/8}\n"
TWO = DISTIL.replace("[{name: s, arch: tiny/8}]", "[{name: a, arch: tiny/8}, {name: b, arch: S/8}]")

PROTOTYPES = ["objective.patch.target=prototypes", "objective.cls.target=prototypes"]
REGRESS = ["objective.patch.target=features", "objective.cls.target=features"]

REFUSED = [
    # views, mask
    (SMALL, ["views.global_size=60"], "views.global_size: 60 is not a multiple of the patch of student 's' (8)"),
    (SMALL, ["views.global_size=60"], "nearest that fit: 56, 64"),
    (SMALL, ["views.local_size=33"], "views.local_size: 33 is not a multiple"),
    (SMALL, ["views.global_size=8", "students.0.arch=tiny/16", "views.local_size=16"], "nearest that fit: 16"),
    (COTRAINED, ["teacher.arch=S/14"], "teacher.arch: the patch of the teacher is 14, but that of student 's' is 8"),
    (TWO, ["students.b.arch=S/16"], "students.1.arch: the patch of student 'b' is 16, but that of student 'a' is 8"),
    (SMALL, ["views.locals=0"], "views.locals: 0, but the CLS loss compares local crops"),
    (SMALL, ["views.global_scale=[0.5]"], "views.global_scale: [0.5] must be [smallest, largest]"),
    (SMALL, ["views.local_scale=[0.5, 0.1]"], "views.local_scale: [0.5, 0.1] must be [smallest, largest]"),
    (SMALL, ["views.local_size=128"], "views.local_size: 128 is larger than views.global_size (64)"),
    (SMALL, ["mask.ratio=0", "objective.patch.tokens=masked"], "mask.ratio: 0 masks none of 64 patches"),
    (COTRAINED, ["mask.ratio=0"], "mask.ratio: 0 masks none of 64 patches, but teacher.tokens is masked"),
    # data, captions
    (SMALL, ["data.source=shards"], "data.shards: not given, but data.source is shards"),
    (SMALL, ["data.shards=a.tar"], "data.shards: given, but data.source is scenes"),
    (SMALL, ["data.source=shards", "data.shards=pipe:cat a"], "data.epoch: not given, but 'pipe:cat a' is a stream"),
    (
        SMALL,
        ["data.source=shards", "data.shards=a.tar::https://x/b.tar"],
        "data.epoch: not given, but 'https://x/b.tar'",
    ),
    (SMALL, ["captions.cls1=[]"], "captions.cls1: empty"),
    (SMALL, ["captions.cls2=[web, web]"], "captions.cls2: 'web' is listed twice"),
    (SMALL, ["captions.cls1=[wep]"], "scenes have no caption field 'wep'. Did you mean 'web'?"),
    (SMALL, ["captions.fallback=alt"], "captions.fallback: scenes have no caption field 'alt'"),
    (SMALL, ["captions.cls1=[' ']"], "captions.cls1: an empty field name"),
    # teacher
    (SMALL, ["teacher.mode=frozen"], "teacher.source: not given, but teacher.mode is frozen"),
    (SMALL, ["teacher.mode=cotrained"], "teacher.arch: not given, but teacher.mode is cotrained"),
    (SMALL, ["teacher.source=run:x"], "teacher.source: only used with teacher.mode frozen (it is ema_head)"),
    (SMALL, ["teacher.arch=S/8"], "teacher.arch: only used with teacher.mode cotrained"),
    (DISTIL, ["teacher.lr=0.1"], "teacher.lr: only used with teacher.mode cotrained (it is frozen)"),
    (DISTIL, ["teacher.depth=2"], "teacher.depth: only used with teacher.mode cotrained"),
    (SMALL, ["students.init=selection"], "students.0.init: selection, but teacher.mode is ema_head"),
    (SMALL, ["text.init=selection"], "text.init: selection, but teacher.mode is ema_head"),
    (
        COTRAINED,
        ["students.init=selection", "students.arch=B/8"],
        "students.0.init: selection: B/8 has 768 channels, the teacher S/8 only 384",
    ),
    (
        COTRAINED,
        ["teacher.arch=g/8", "students.init=selection"],
        "feed-forward layers of g/8 are swiglu, those of tiny/8 are gelu",
    ),
    (SMALL, ["teacher.cache.path=c"], "teacher.cache.path: only used with teacher.mode frozen; other teachers change"),
    (
        DISTIL,
        ["teacher.cache.path=c", "objective.patch.weight=0", "objective.cls.weight=0", "views.locals=0"],
        "teacher.cache.path: there are no targets to keep",
    ),
    (
        DISTIL,
        ["teacher.cache.path=c", "data.source=shards", "data.shards=pipe:cat a", "data.epoch=9"],
        "teacher.cache.path: 'pipe:cat a' is a stream, which gives other samples in every pass; copy the shards",
    ),
    (SMALL, ["teacher.tokens=all"], "the tokens a student is supervised on are objective.patch.tokens"),
    (SMALL, ["teacher.momentum.start=0.9", "teacher.momentum.end=0.5"], "teacher.momentum.start: 0.9 is above"),
    (DISTIL, ["teacher.source=runs/x"], "write run:runs/x for a run's folder"),
    (DISTIL, ["teacher.source=rum:x"], "unknown kind 'rum' in 'rum:x'. Did you mean 'run'?"),
    (DISTIL, ["teacher.source='run:'"], "names nothing after the colon; write run:PATH"),
    (SMALL, ["teacher.heads.kind=fitted"], "teacher.heads.kind: only used with teacher.mode frozen (it is ema_head)"),
    (COTRAINED, ["teacher.heads.steps=9"], "teacher.heads.steps: only used with teacher.mode frozen (it is cotrained)"),
    (DISTIL, ["teacher.heads.kind=fitted", *REGRESS], "teacher.heads.kind: fitted, but no loss compares prototypes"),
    (
        DISTIL,
        ["teacher.heads.kind=fitted", "heads.tied=false", "heads.prototypes=1441"],
        "200 batches give 1,440 CLS tokens to cluster, fewer than heads.prototypes (1,441); raise it to 201 or more",
    ),
    (SMALL, ["objective.feature_norm=phi_s", *REGRESS], "phi_s is measured once, but with teacher.mode ema_head"),
    (DISTIL, ["objective.feature_norm=phi_s", *PROTOTYPES], "feature_norm: phi_s, but no loss regresses features"),
    (COTRAINED, ["teacher.arch=Q/8"], "teacher.arch: Unknown size 'Q'"),
    # students
    (SMALL, ["students=[{name: a}, {name: b}]"], "students: 2 (a, b), but with teacher.mode ema_head"),
    (TWO, ["students.b.name=a"], "students.1.name: 'a' is taken by student 0"),
    (TWO, ["students.b.name=arch"], "students.1.name: 'arch' has another meaning here"),
    (SMALL, ["students.name=a.b"], "students.0.name: 'a.b' must be letters"),
    (SMALL, ["students.name='3'"], "students.0.name: '3' must be letters"),
    (SMALL, ["students.arch=tiny"], "students.0.arch: 'tiny' is not an architecture"),
    (SMALL, ["students.arch=tiny/9"], "students.0.arch: Unknown patch '9'"),
    (SMALL, ["students.init=teacher"], "students.0.init: teacher, but teacher.mode is ema_head"),
    (SMALL, ["students.init=techer"], "students.0.init: 'techer' is not allowed. Did you mean 'teacher'?"),
    (DISTIL, ["students.layers=[0]"], "students.0.layers: only used with init layers"),
    (DISTIL, ["students.init=layers", "students.layers=[0, 1]"], "students.0.layers: 2 given, but student 's' has 6"),
    (
        DISTIL,
        ["students.init=layers", "students.depth=1", "students.layers=[-1]"],
        "students.0.layers: -1 is not a block",
    ),
    (COTRAINED, ["students.init=layers", "students.depth=1", "students.layers=[12]"], "block 12 does not exist"),
    (
        COTRAINED,
        ["students.init=layers"],
        "students.0.init: layers does not fit student 's': width 128 here, 384 there",
    ),
    (COTRAINED, ["students.init=teacher", "teacher.arch=tiny/8", "teacher.depth=3"], "blocks 6 here, 3 there. Set"),
    (COTRAINED, ["text.init=teacher"], "text.init: teacher does not fit student 's': width 128 here, 384 there"),
    (
        COTRAINED,
        ["text.init=selection", "students.arch=B/8"],
        "text.init: selection: B/8 has 768 channels, the teacher",
    ),
    (SMALL, ["students.freeze=[vision]"], "students.0.freeze: vision is frozen but starts from scratch"),
    (
        DISTIL,
        ["students.freeze=[vision, text]", "students.init=teacher", "text.init=teacher"],
        "nothing is left to train",
    ),
    (SMALL, ["text.freeze=true"], "text.freeze: the text tower is frozen but starts from scratch"),
    (SMALL, ["students.freeze=[text]"], "students.0.freeze: the text tower is frozen but starts from scratch"),
    (
        COTRAINED,
        ["teacher.arch=tiny/8", "text.init=teacher", "text.freeze=true"],
        "text.freeze: the text tower is frozen but a co-trained teacher starts random too",
    ),
    (
        COTRAINED,
        ["teacher.arch=tiny/8", "students.init=teacher", "students.freeze=[vision]"],
        "students.0.freeze: vision is frozen but a co-trained teacher starts random too",
    ),
    (SMALL, ["text.init=teacher"], "text.init: teacher, but teacher.mode is ema_head"),
    (SMALL, ["text.init=scrach"], "text.init: 'scrach' is not allowed. Did you mean 'scratch'?"),
    (SMALL, ["text.tokenizer=word"], "text.tokenizer: 'word' is not allowed. Did you mean 'words'?"),
    # objective, training
    (
        SMALL,
        ["objective.patch.weight=0", "objective.cls.weight=0", "objective.contrastive.weight=0"],
        "objective: all three weights are 0",
    ),
    (SMALL, ["objective.contrastive.min_temperature=0.07"], "min_temperature: 0.07 must be below"),
    (
        SMALL,
        ["train.batch=9", "train.devices=2"],
        "train.batch: 9 does not divide into train.accumulate x train.devices",
    ),
    (SMALL, ["train.batch=9", "train.devices=2"], "(1 x 2 = 2); nearest that do: 8, 10"),
    (SMALL, ["train.batch=1"], "train.batch: 1 image in the batch"),
    (
        SMALL,
        ["train.batch=4", "train.accumulate=4", "objective.contrastive.negatives=micro"],
        "train.batch: 1 image per micro-batch",
    ),
    (SMALL, ["optim.betas=[0.9]"], "optim.betas: [0.9] must be two numbers"),
    (SMALL, ["train.accelerator=cpu", "train.precision=fp16"], "train.precision: fp16 needs a GPU"),
    (SMALL, ["train.strategy=fsdp", "optim.name=adafactor"], "train.strategy: fsdp, but adafactor's statistics"),
    (SMALL, ["train.strategy=fsdp", "train.precision=fp16"], "train.strategy: fsdp cannot scale the loss for fp16"),
    (SMALL, ["teacher.shard=true"], "teacher.shard: only used with teacher.mode frozen or ema (it is ema_head)"),
    (SMALL, ["name=a/b"], "name: 'a/b' cannot be the name of a folder"),
    (SMALL, ["name=.."], "name: '..' cannot be the name of a folder"),
    (SMALL, ["eval.tasks=[knn, knn]"], "eval.tasks: 'knn' is listed twice"),
    (
        SMALL,
        ["eval.tasks=[knn]", "eval.settings=[retrieval=scenes]"],
        "eval.settings: 'retrieval=scenes' is not TASK=DATASET or TASK.OPTION=VALUE with a task of eval.tasks (knn)",
    ),
    (SMALL, ["eval.tasks=[knn]", "eval.settings=[knn.k]"], "eval.settings: 'knn.k' is not TASK=DATASET"),
]


@pytest.mark.parametrize(("text", "overrides", "expected"), REFUSED, ids=[f"{o[-1]}" for _, o, _ in REFUSED])
def test_refused(problems, text, overrides, expected):
    lines = problems(text, *overrides)
    assert any(expected in line for line in lines), lines


ALLOWED = [
    (SMALL, []),
    (SMALL, ["mask.ratio=0", "objective.patch.tokens=all"]),
    (SMALL, ["mask.ratio=0", "objective.patch.tokens=masked", "objective.patch.weight=0"]),
    (SMALL, ["mask.ratio=0.001", "objective.patch.tokens=masked"]),  # one patch is masked all the same
    (SMALL, ["mask.ratio=0.999", "objective.patch.tokens=visible"]),  # and one stays visible
    (SMALL, ["views.locals=0", "objective.cls.weight=0", "views.local_size=33"]),
    (SMALL, ["data.source=shards", "data.shards=pipe:cat a", "data.epoch=10", "captions.cls1=[alt]"]),
    (SMALL, ["captions.cls1=[alt]", "captions.fallback=web"]),
    (SMALL, ["captions.cls2=[]"]),
    (SMALL, ["students.init=run:runs/x", "students.freeze=[vision]"]),
    (SMALL, ["text.init=model.pt", "text.freeze=true"]),
    (SMALL, ["train.stage_from=runs/x", "text.freeze=true"]),
    (SMALL, ["train.stage_from=runs/x", "students.freeze=[vision]"]),
    (SMALL, ["train.batch=1", "objective.contrastive.weight=0"]),
    (SMALL, ["train.batch=4", "train.accumulate=4"]),
    (DISTIL, ["students.init=layers", "students.depth=2", "students.layers=[0, 5]"]),
    (DISTIL, ["students.init=layers"]),
    (DISTIL, ["teacher.cache.path=c", "teacher.cache.epochs=3", "teacher.cache.dtype=fp32", "teacher.cache.limit=1"]),
    (DISTIL, ["students.init=selection", "text.init=selection"]),
    (COTRAINED, ["students.init=selection", "students.layers=[0,2,4,6,8,10]"]),
    (DISTIL, ["text.init=teacher", "text.freeze=true"]),
    (DISTIL, ["teacher.heads.kind=fitted", "heads.tied=false", "heads.prototypes=1440"]),
    (DISTIL, ["teacher.heads.kind=trained", "teacher.heads.steps=9"]),
    (DISTIL, ["teacher.heads.entropy=0.5"]),
    (DISTIL, ["objective.feature_norm=phi_s"]),
    (DISTIL, ["objective.feature_norm=phi_s", "teacher.heads.steps=9", *REGRESS]),
    (TWO, []),
    (TWO, ["teacher.mode=cotrained", "teacher.source=null", "teacher.arch=S/8", "teacher.tokens=all"]),
    (COTRAINED, ["teacher.arch=tiny/8", "students.init=layers", "students.layers=[0,1,2,3,4,5]"]),
    (COTRAINED, ["teacher.arch=tiny/8", "students.init=teacher", "text.init=teacher"]),
]


@pytest.mark.parametrize(("text", "overrides"), ALLOWED)
def test_allowed(write, text, overrides):
    load_config(write(text), overrides)


WARNED = [
    (SMALL, ["objective.cls.weight=0"], "views.locals: 2 crops are made but not used"),
    (SMALL, ["data.scenes.size=32"], "data.scenes.size: scenes of 32 px are enlarged"),
    (DISTIL, ["teacher.cache.epochs=3"], "teacher.cache.epochs: not used, as teacher.cache.path is null"),
    (DISTIL, ["teacher.momentum.start=0.9"], "teacher.momentum.start: not used"),
    (DISTIL, ["teacher.heads.kind=own", "teacher.heads.steps=9"], "nothing is made before the first step (kind own)"),
    (DISTIL, ["teacher.heads.steps=9", *REGRESS], "teacher.heads.steps: not used, as nothing is made"),
    (DISTIL, ["teacher.heads.kind=trained", "teacher.heads.entropy=0.5"], "teacher.heads.entropy: not used"),
    (DISTIL, ["objective.patch.weight=0", "objective.cls.weight=0"], "a teacher is loaded but gives no targets"),
    (DISTIL, ["text.init=teacher", "text.freeze=true", "students.freeze=[text]"], "text is already frozen"),
    (SMALL, ["text.tokenizer=clip", "text.vocabulary=99"], "text.vocabulary: not used"),
    (SMALL, ["objective.cls.teacher_temperature=0.2"], "softer than the student invite collapse"),
    (
        SMALL,
        ["objective.contrastive.weight=0", "train.batch=4", "train.accumulate=4", "objective.cls.balance=sinkhorn"],
        "objective.cls.balance: sinkhorn balances each micro-batch, and 1 image's target comes out uniform",
    ),
    (SMALL, ["optim.name=adafactor", "optim.betas=[0.9, 0.99]"], "optim.betas: not used by adafactor"),
    (SMALL, ["mask.ratio=0", "mask.kind=block"], "mask.kind: not used, as mask.ratio is 0"),
    (SMALL, ["students.arch=g/8", "vision.gelu=erf"], "vision.gelu: not used, as the feed-forward layers of g/8"),
    (DISTIL, [*REGRESS, "objective.patch.balance=sinkhorn"], "objective.patch.balance: not used, as objective.patch"),
    (DISTIL, [*REGRESS, "objective.cls.teacher_temperature=0.05"], "objective.cls.teacher_temperature: not used"),
    (SMALL, ["eval.every=5"], "eval.every: 5, but eval.tasks is empty"),
    (SMALL, ["train.strategy=fsdp"], "train.strategy: nothing to spread with train.devices=1"),
    (DISTIL, ["teacher.shard=true", "eval.tasks=[knn]"], "a sharded frozen teacher is left out of live evaluations"),
    (
        SMALL,
        ["train.accumulate=2", "objective.contrastive.negatives=micro"],
        "negatives: micro: an image is told apart from 3 others, not from the 7 of its batch",
    ),
]


@pytest.mark.parametrize(("text", "overrides", "expected"), WARNED, ids=[o[-1] for _, o, _ in WARNED])
def test_warned_but_loaded(write, text, overrides, expected):
    warnings = load_config(write(text), overrides).warnings
    assert any(expected in line for line in warnings), warnings
    base = load_config(write(text)).warnings
    assert not any(expected in line for line in base)


def test_the_form_of_gelu_is_used_where_one_tower_has_it(write):
    path = write(COTRAINED)
    assert load_config(path, ["teacher.arch=g/8", "vision.gelu=erf"]).warnings == load_config(path).warnings


def test_the_momentum_is_used_wherever_heads_are_averaged(write):
    path = write(COTRAINED)
    assert load_config(path, ["teacher.momentum.start=0.9"]).warnings == load_config(path).warnings
    with pytest.raises(ConfigError, match=r"teacher.momentum.start: 0.9 is above teacher.momentum.end"):
        load_config(write(COTRAINED), ["teacher.momentum.start=0.9", "teacher.momentum.end=0.5"])


def test_a_rule_names_the_place_that_was_set(problems):
    (line,) = problems("seed: 1\nstudents: [{arch: B/14}]\nviews:\n  global_size: 100\n")
    assert line.startswith("my.yaml:4: views.global_size: 100")


def test_rules_say_nothing_about_values_already_refused(problems):
    (line,) = problems(SMALL, "views.global_size=x")
    assert "is not an integer" in line


@settings(deadline=None)  # a busy machine is no failure
@given(size=st.integers(8, 600), patch=st.sampled_from([8, 14, 16]))
def test_the_nearest_sizes_it_names_do_fit(tmp_path_factory, size, patch):
    path = tmp_path_factory.getbasetemp() / "sizes.yaml"
    path.write_text(f"views: {{locals: 0}}\nobjective.cls.weight: 0\nstudents: [{{arch: tiny/{patch}}}]\n")

    def load(value: int) -> None:
        load_config(path, {"views.global_size": value})

    if size % patch == 0:
        load(size)
        return
    with pytest.raises(ConfigError) as caught:
        load(size)
    near = [int(word) for word in str(caught.value).rpartition(": ")[2].split(", ")]
    assert near
    for value in near:
        assert abs(value - size) < patch
        load(value)
