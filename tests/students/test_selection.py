"""Weight selection: slices of a larger teacher that fit each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import students
from distill.config.schema import StudentConfig
from distill.errors import UserError
from distill.models.arch import Arch
from distill.models.text import TextTower
from distill.models.tokenizers.words import WordsTokenizer
from distill.models.vision import VisionTower
from students import parse_arch
from students.fitting import check_selection, evenly_spaced
from students.selection import channels, head_channels, select_image, select_text

SMALL = Arch(size="half", patch=4, width=16, depth=2, heads=2, mlp=20, ffn="gelu", text_layers=2, text_mlp=12)
DOUBLE = Arch(size="whole", patch=4, width=32, depth=3, heads=4, mlp=37, ffn="gelu", text_layers=3, text_mlp=24)
WRITES = ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")  # what a block adds


def equal(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def randomise(module: torch.nn.Module) -> None:
    """Nothing stays at zero or one: a wrong slice would go unseen there."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def axis_indices(kept: list[int], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The kept entries of an axis, and the others."""
    return torch.tensor(kept), torch.tensor([i for i in range(size) if i not in kept])


def doubled(small: VisionTower, large: VisionTower, layers: list[int]) -> None:
    """Makes `large` compute what `small` does, in the places that the selection keeps.

    Every other channel of the residual stream copies a kept one, so that norms see the same mean and variance, and is
    never read. Heads, feed-forward channels and blocks that are not kept are noise that is never passed on.
    """
    randomise(small)
    randomise(large)
    kept, twin = axis_indices(channels(32, 16), 32)
    heads, _ = axis_indices(head_channels(4, 8, 2, 8), 32)
    hidden, _ = axis_indices(evenly_spaced(37, 20), 37)
    inside = torch.cat([part * 32 + heads for part in range(3)])  # of queries, keys and values
    with torch.no_grad():
        for index, block in enumerate(large.trunk.blocks):
            if index not in layers:
                for name in WRITES:
                    block.get_parameter(name).zero_()
                continue
            source = small.trunk.blocks[layers.index(index)]
            for name, value in source.named_parameters():
                weight = block.get_parameter(name)
                rows = {"attn.qkv": inside, "mlp.fc1": hidden}.get(name.rpartition(".")[0])
                columns = {"attn.proj": heads, "mlp.fc2": hidden}.get(name.rpartition(".")[0])
                if rows is not None and weight.ndim == 2:  # reads kept channels
                    weight[rows] = 0
                    weight[rows[:, None], kept] = value
                elif rows is not None:
                    weight[rows] = value
                elif columns is not None and weight.ndim == 2:  # writes kept channels and their copies
                    weight.zero_()
                    weight[kept[:, None], columns] = weight[twin[:, None], columns] = value
                else:
                    weight[kept] = weight[twin] = value
        for name, value in small.named_parameters():
            weight = large.get_parameter(name) if "blocks" not in name.split(".") else None
            if weight is not None and weight.ndim == 3:
                weight[..., kept] = weight[..., twin] = value
            elif weight is not None:
                weight[kept] = weight[twin] = value


def test_a_teacher_that_works_in_the_kept_places_alone_gives_a_student_with_its_outputs():
    small, large = (VisionTower(arch, position_grid=4).eval() for arch in (SMALL, DOUBLE))
    layers = [0, 2]
    doubled(small, large, layers)
    other = VisionTower(SMALL, position_grid=4).eval()
    other.load_state_dict(select_image(large, other, layers))
    assert equal(other, small)
    images, mask = torch.rand(2, 3, 16, 16), torch.rand(2, 16) < 0.5
    kept = torch.tensor(channels(32, 16))
    for got, whole in zip(other.dense(images, mask), large.dense(images, mask)):
        torch.testing.assert_close(got, whole[..., kept], rtol=1e-4, atol=1e-5)


def test_of_a_teacher_of_its_own_size_a_student_gets_everything(build, cfg):
    model, teacher = build(depth=3, seed=0), build(depth=3, seed=1)
    randomise(teacher)
    cfg.text.init = "selection"
    students.initialise(model, StudentConfig(init="selection"), cfg, teacher)
    assert equal(model.image, teacher.image)
    assert equal(model.text, teacher.text)
    with torch.no_grad():  # a copy: training the student leaves the teacher alone
        model.image.embed.mask_token.add_(1)
    assert not torch.equal(model.image.embed.mask_token, teacher.image.embed.mask_token)


def test_blocks_as_listed(build, cfg):
    model, teacher = build(depth=2, seed=0), build(depth=5, seed=1)
    students.initialise(model, StudentConfig(init="selection", layers=[3, 1]), cfg, teacher)
    for mine, theirs in zip(model.image.trunk.blocks, (3, 1)):
        assert equal(mine, teacher.image.trunk.blocks[theirs])


def test_words_keep_their_loudness_and_nearly_their_positions():
    large, small = TextTower(DOUBLE, 9, context=8), TextTower(SMALL, 9, context=8)
    randomise(large)
    small.load_state_dict(select_text(large, small))
    kept = torch.tensor(channels(32, 16))
    words = large.embedding.weight * 32**0.5
    torch.testing.assert_close(small.embedding.weight * 16**0.5, words[:, kept])
    assert torch.equal(small.norm.weight, large.norm.weight[kept])
    slow = torch.arange(16) % 8 >= 4  # the longer wavelengths: of the shorter ones only the nearest is there
    off = (small.positions - large.positions[:, kept]).abs()
    assert off[:, slow].max() < 0.05
    assert (small.positions - large.positions[:, :16]).abs()[:, slow].max() > 0.5  # the first channels would not do


PAIRS = [("L", "B"), ("L", "S"), ("B", "S"), ("So400m", "B"), ("So400m", "S"), ("S", "tiny"), ("g", "g")]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_every_size_has_its_smaller_ones_in_it(teacher, student):
    large, small = parse_arch(f"{teacher}/14"), parse_arch(f"{student}/14")
    with torch.device("meta"):
        towers = [VisionTower(arch, depth=2, position_grid=4) for arch in (large, small)]
        texts = [TextTower(arch, 11, layers=2, context=4) for arch in (large, small)]
    for made, tower in ((select_image(*towers, [1, 0]), towers[1]), (select_text(*texts), texts[1])):
        assert {n: w.shape for n, w in made.items()} == {n: w.shape for n, w in tower.state_dict().items()}


@given(st.integers(1, 40), st.data())
def test_channels_are_spread_over_both_halves(half, data):
    chosen = data.draw(st.integers(1, half))
    found = channels(2 * half, 2 * chosen)
    assert found == sorted(set(found))
    assert len(found) == 2 * chosen
    assert [c - half for c in found[chosen:]] == found[:chosen]
    assert found[-1] == 2 * half - 1


@given(st.integers(1, 12), st.integers(1, 10), st.data())
def test_heads_stay_whole(heads, width, data):
    chosen, inside = data.draw(st.integers(1, heads)), data.draw(st.integers(1, width))
    found = head_channels(heads, width, chosen, inside)
    groups = [found[i * inside : (i + 1) * inside] for i in range(chosen)]
    sources = [{channel // width for channel in group} for group in groups]
    assert all(len(source) == 1 for source in sources)  # one teacher head a student head
    assert len({min(source) for source in sources}) == chosen  # and no head twice
    assert len({tuple(c % width for c in group) for group in groups}) == 1  # the same channels of each
    if inside == width:
        assert all(group == list(range(group[0], group[0] + width)) for group in groups)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (SMALL, DOUBLE, r"whole/4 has 32 channels, the teacher half/4 only 16: choose a smaller arch"),
        (DOUBLE, replace(SMALL, mlp=40), r"40 feed-forward channels, the teacher whole/4 only 37"),
        (replace(DOUBLE, heads=2), replace(SMALL, heads=4), r"4 heads, the teacher whole/4 only 2"),
        (DOUBLE, replace(SMALL, heads=1), r"16 channels in a head, the teacher whole/4 only 8"),
        (DOUBLE, replace(SMALL, ffn="swiglu"), r"of whole/4 are gelu, those of half/4 are swiglu"),
    ],
)
def test_what_is_not_in_the_teacher(teacher, student, message):
    with pytest.raises(UserError, match=message):
        check_selection("students.0.init: selection", student, teacher)


def test_what_else_does_not_fit(build, cfg):
    student = StudentConfig(init="selection")
    with pytest.raises(UserError, match="selection: student 'student' has 4 blocks, the teacher 3"):
        students.initialise(build(depth=4), student, cfg, build(depth=3))
    with pytest.raises(UserError, match=r"is 128x3x8x8 here, 128x3x16x16 there\. It has patch 16"):
        students.initialise(build(), student, cfg, build(arch="tiny/16"))
    with pytest.raises(UserError, match=r"students\.0\.init: selection needs a teacher"):
        students.initialise(build(), student, cfg, None)
    cfg.text.init = "selection"
    teacher = build()
    cfg.text.layers = 2
    with pytest.raises(UserError, match=r"2 text layers, the teacher 1: set text\.layers to 1 or less"):
        students.initialise(build(), StudentConfig(), cfg, teacher)
    teacher.tokenizer = WordsTokenizer(["disc", "red"])
    with pytest.raises(UserError, match="another tokenizer"):
        students.initialise(build(), StudentConfig(), cfg, teacher)
