from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import students
from distill.config.schema import StudentConfig
from distill.errors import UserError
from distill.models.loading import save_model
from distill.models.tokenizers.words import WordsTokenizer
from students.fitting import evenly_spaced


def _snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_scratch_changes_nothing(build, cfg):
    model = build()
    before = _snapshot(model)
    students.initialise(model, StudentConfig(), cfg, build(seed=1))
    assert _equal(before, _snapshot(model))


def test_teacher_copies_the_vision_tower_alone(build, cfg):
    model, teacher = build(seed=0), build(seed=1)
    text = _snapshot(model.text)
    students.initialise(model, StudentConfig(init="teacher"), cfg, teacher)
    assert _equal(_snapshot(model.image), _snapshot(teacher.image))
    assert _equal(text, _snapshot(model.text))
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(model.eval().encode_image(images)[1], teacher.eval().encode_image(images)[1])
    with torch.no_grad():  # a copy: training the student leaves the teacher alone
        model.image.embed.mask_token.add_(1)
    assert teacher.image.embed.mask_token.abs().max() == 0


def test_text_from_the_teacher(build, cfg):
    model, teacher = build(seed=0), build(seed=1)
    cfg.text.init = "teacher"
    image = _snapshot(model.image)
    students.initialise(model, StudentConfig(), cfg, teacher)
    assert _equal(_snapshot(model.text), _snapshot(teacher.text))
    assert _equal(image, _snapshot(model.image))


@pytest.mark.parametrize(("layers", "chosen"), [([4, 1], [4, 1]), ([], [0, 4])])
def test_layers_takes_the_chosen_blocks_and_all_else(build, cfg, layers, chosen):
    model, teacher = build(depth=2, seed=0), build(depth=5, seed=1)
    students.initialise(model, StudentConfig(init="layers", layers=layers), cfg, teacher)
    for target, source in enumerate(chosen):
        block, origin = model.image.trunk.blocks[target], teacher.image.trunk.blocks[source]
        assert _equal(_snapshot(block), _snapshot(origin))
    assert _equal(_snapshot(model.image.embed), _snapshot(teacher.image.embed))
    assert torch.equal(model.image.trunk.cls_token, teacher.image.trunk.cls_token)
    assert torch.equal(model.image.trunk.reg_token, teacher.image.trunk.reg_token)
    assert _equal(_snapshot(model.image.trunk.norm), _snapshot(teacher.image.trunk.norm))


@given(st.integers(1, 48), st.data())
def test_evenly_spaced_blocks(teacher_depth, data):
    depth = data.draw(st.integers(1, teacher_depth))
    layers = evenly_spaced(teacher_depth, depth)
    assert len(set(layers)) == depth
    assert layers == sorted(layers)
    assert layers[-1] == teacher_depth - 1
    if depth > 1:
        gaps = [b - a for a, b in zip(layers, layers[1:])]
        assert layers[0] == 0
        assert max(gaps) - min(gaps) <= 1


def test_a_saved_model_starts_either_tower(build, cfg, tmp_path):
    source = build(seed=3)
    save_model(source, tmp_path / "model.pt")
    model = build(seed=0)
    cfg.text.init = f"run:{tmp_path / 'model.pt'}"
    students.initialise(model, StudentConfig(init=str(tmp_path / "model.pt")), cfg, None)
    assert _equal(_snapshot(model.image), _snapshot(source.image))
    assert _equal(_snapshot(model.text), _snapshot(source.text))


def test_image_and_text_from_two_sources(build, cfg, tmp_path):
    sources = {seed: build(seed=seed) for seed in (3, 4)}
    for seed, source in sources.items():
        save_model(source, tmp_path / f"{seed}.pt")
    model = build(seed=0)
    cfg.text.init = f"run:{tmp_path / '4.pt'}"
    students.initialise(model, StudentConfig(init=f"run:{tmp_path / '3.pt'}"), cfg, build(seed=5))
    assert _equal(_snapshot(model.image), _snapshot(sources[3].image))
    assert _equal(_snapshot(model.text), _snapshot(sources[4].text))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"depth": 3}, r"blocks 2 here, 3 there. That model is tiny/8, 3 blocks: use its shape"),
        ({"arch": "tiny/16"}, r"patch 8 here, 16 there. That model is tiny/16, 2 blocks: use its shape"),
        ({"arch": "S/8"}, r"width 128 here, 384 there; attention heads 2 here, 6.* That model is S/8, 2 blocks"),
    ],
)
def test_a_source_of_another_shape_is_refused_with_its_shape(build, cfg, tmp_path, shape, message):
    save_model(build(**shape), tmp_path / "other.pt")
    model = build(seed=1)
    before = _snapshot(model)
    with pytest.raises(UserError, match=message):
        students.initialise(model, StudentConfig(init=f"run:{tmp_path / 'other.pt'}"), cfg, None)
    assert _equal(before, _snapshot(model))


def test_a_text_source_of_another_shape_is_refused_with_its_shape(build, cfg, tmp_path):
    cfg.text.layers = 2
    save_model(build(), tmp_path / "other.pt")
    cfg.text.layers, cfg.text.init = 1, f"run:{tmp_path / 'other.pt'}"
    message = r"layers 1 here, 2 there. That text tower has width 128 and 2 layers: use its shape, or scratch"
    with pytest.raises(UserError, match=message):
        students.initialise(build(), StudentConfig(), cfg, None)


def test_another_depth_names_both_and_the_way_out(build, cfg):
    message = (
        r"^students\.0\.init: teacher does not fit student 'student': blocks 2 here, 3 there\. Set students\.0\.depth=3"
    )
    with pytest.raises(UserError, match=message + ".* init: layers"):
        students.initialise(build(depth=2), StudentConfig(init="teacher"), cfg, build(depth=3))


def test_another_patch_is_named(build, cfg):
    message = r"patch 8 here, 16 there"
    with pytest.raises(UserError, match=message):
        students.initialise(build(), StudentConfig(init="teacher"), cfg, build(arch="tiny/16"))
    with pytest.raises(UserError, match=message):
        students.initialise(build(), StudentConfig(init="layers"), cfg, build(arch="tiny/16"))


def test_what_sizes_do_not_show_is_compared_tensor_by_tensor(build, cfg):
    teacher = build()
    cfg.vision.position_grid = 2
    message = (
        r"embed\.positions is 2x2x128 here, 4x4x128 there. It has patch 8, 2 CLS tokens and vision\.position_grid=4"
    )
    with pytest.raises(UserError, match=message):
        students.initialise(build(), StudentConfig(init="teacher"), cfg, teacher)
    cfg.captions.cls2 = []
    with pytest.raises(UserError, match=r"trunk\.reg_token is missing here, 1x1x128 there"):
        students.initialise(build(), StudentConfig(init="layers"), cfg, teacher)


@pytest.mark.parametrize(
    ("student", "depth", "message"),
    [
        (StudentConfig(init="layers", layers=[0]), 2, r"students\.0\.layers: 1 given, but student 'student' has 2"),
        (StudentConfig(init="layers", layers=[0, 3]), 2, "block 3 does not exist; the teacher's are 0 to 2"),
        (StudentConfig(init="layers", layers=[-1, 0]), 2, "-1 is not a block"),
        (StudentConfig(init="layers"), 4, "student 'student' has 4 blocks, the teacher 3"),
    ],
)
def test_layers_that_do_not_exist(build, cfg, student, depth, message):
    with pytest.raises(UserError, match=message):
        students.initialise(build(depth=depth), student, cfg, build(depth=3))


def test_a_teacher_is_needed(build, cfg):
    for init in ("teacher", "layers"):
        with pytest.raises(UserError, match=f"students.0.init: {init} needs a teacher"):
            students.initialise(build(), StudentConfig(init=init), cfg, None)
    cfg.text.init = "teacher"
    with pytest.raises(UserError, match=r"text\.init: teacher needs a teacher"):
        students.initialise(build(), StudentConfig(), cfg, None)


def test_text_of_another_vocabulary_or_shape(build, cfg):
    cfg.text.init = "teacher"
    teacher = build()
    teacher.tokenizer = WordsTokenizer(["disc", "red"])
    with pytest.raises(UserError, match="another tokenizer"):
        students.initialise(build(), StudentConfig(), cfg, teacher)
    cfg.text.layers = 2
    deeper = build()
    cfg.text.layers = 1
    with pytest.raises(UserError, match=r"text\.init: teacher does not fit student 'student': layers 1 here, 2 there"):
        students.initialise(build(), StudentConfig(), cfg, deeper)


def test_nothing_changes_when_it_does_not_fit(build, cfg):
    model = build(depth=2)
    before = _snapshot(model)
    with pytest.raises(UserError):
        students.initialise(model, StudentConfig(init="teacher"), cfg, build(depth=3, seed=1))
    assert _equal(before, _snapshot(model))


@pytest.mark.parametrize(
    ("freeze", "freeze_text", "frozen"),
    [
        ([], False, ()),
        (["vision"], False, ("vision",)),
        ([], True, ("text",)),
        (["vision", "text"], True, ("vision", "text")),
    ],
)
def test_freezing(build, freeze, freeze_text, frozen):
    model = build()
    students.apply_freeze(model, freeze, freeze_text)
    assert model.frozen == frozen
    for name in ("vision", "text"):
        assert all(p.requires_grad == (name not in frozen) for p in model.tower(name).parameters())


def test_a_frozen_tower_does_not_move_in_training(build):
    model = build()
    students.apply_freeze(model, ["text"])
    model.train()
    text, image = _snapshot(model.text), _snapshot(model.image)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ids, valid, _ = model.tokenizer.encode(["red disc", "disc"], 8)
    cls = model.image(torch.rand(2, 3, 32, 32)).cls[:, 0]
    (cls * model.text(torch.from_numpy(ids), torch.from_numpy(valid))).sum().backward()
    optimiser.step()
    assert _equal(text, _snapshot(model.text))
    assert not _equal(image, _snapshot(model.image))
