from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.study.recipe import checked_eval, read_study


def test_parses_variants_factors_and_header(recipe: Path) -> None:
    study = read_study(recipe)
    assert (study.study, study.seeds, study.header.purpose) == ("trio", (0,), "A study for tests.")
    assert study.factors["teacher"] == ("teacher.mode", "teacher.source")
    assert study.variants["unmasked"].teacher == "ibot"
    assert study.variants["unmasked"].changes == {"objective.patch.tokens": "all", "mask.ratio": 0}
    assert Path(study.base).name == "base.yaml"
    assert Path(study.base).is_file()


def test_from_inherits_changes_and_teacher(edit: Callable[[str, str], Path]) -> None:
    path = edit("compare:\n", "  half: {from: unmasked, set: {mask.ratio: 0.5}}\ncompare:\n")
    half = read_study(path).variants["half"]
    assert half.changes == {"objective.patch.tokens": "all", "mask.ratio": 0.5}
    assert half.teacher == "ibot"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds: [0]", "seed: [0]", ["'seed'", "Did you mean 'seeds'"]),
        ("seeds: [0]", "seeds: 0", ["seeds is 0", "at least 1"]),
        ("seeds: [0]", "seeds: [1, 1]", ["repeats"]),
        ("study: trio", "study: a/b", ["'a/b'", "lower-case"]),
        ("teacher: ibot,", "teacher: ibott,", ["'ibott'", "Did you mean 'ibot'"]),
        ("teacher: ibot,", "techer: ibot,", ["'techer'", "Did you mean 'teacher'"]),
        ("tasks: [zeroshot_seg, knn]", "tasks: [zeroshot]", ["'zeroshot'", "zeroshot_seg"]),
        ("samples: 16", "samples: 2", ["samples is 2", "at least 8"]),
        ("mask: [mask.ratio]", "mask: [teacher.mode]", ["teacher.mode", "'mask'", "'teacher'"]),
        ("compare: [ibot, ibotpp]", "compare: [ibotpp, ibot]", ["not in `compare`"]),
        ("expect: +", "expect: up", ["'up'", "Allowed"]),
        ("expect: +", "expect: 0", ["margin"]),
        ("- [ibot, ibotpp]", "- [ibot]", ["['ibot']", "[first, second]"]),
        ("  - [ibot, ibotpp]", "  - [ibot, nobody]", ["'nobody'"]),
        ("compare:\n", "paper: {source: T, columns: [A], values: {ibto: [1]}}\ncompare:\n", ["'ibto'", "'ibot'"]),
        ("compare:\n", "paper: {source: T, columns: [A], values: {ibot: [1, 2]}}\ncompare:\n", ["[1, 2]", "1 values"]),
        ("compare:\n", "paper: {source: T}\ncompare:\n", ["exactly source, columns, values"]),
        ("base: base.yaml\n", "", ["lacks base"]),
        ("compare:\n", "  ibot: {title: another}\ncompare:\n", ["variants.ibot.title", "given twice"]),
        ("ibot: {title: pretrained}", "ibot: pretrained", ["variant 'ibot' is 'pretrained'", "a mapping of title"]),
        ("ibot: {title: pretrained}", "ibot: 3", ["variant 'ibot' is 3", "a mapping of title"]),
        ("teacher: ibot,", "teacher: [ibot],", ["'teacher' names a variant"]),
        ("mask: [mask.ratio]", "mask: 3", ["factors.mask is 3"]),
        ("expect: +", "expect: 0, margin: 2 %", ["margin '2 %'", "give a number"]),
        ("expect: +", "expect: 0, margin: -0.02", ["margin -0.02", "at least 0"]),
        ("expect: +", "expect: +, margin: 0.02", ["margin, which + does not take"]),
        ("zeroshot_seg/miou_final", "zeroshotseg/miou", ["zeroshotseg/miou", "Did you mean 'zeroshot_seg'"]),
        ("compare:\n", "paper: {source: T, columns: 1, values: {ibot: [1]}}\ncompare:\n", ["paper.columns is 1"]),
        ("seeds: [0]", "seeds: [0]\nscales: {small: {variants: [ibot]}}", ["variants of scale 'small'", "a mapping"]),
        ("seeds: [0]", "seeds: [0]\nscales: {small: {eval: scenes}}", ["eval of scale 'small'", "a mapping"]),
        ("variants:\n", "variants: {\n", ["not valid YAML"]),
    ],
)
def test_mistakes_are_named(edit: Callable[[str, str], Path], old: str, new: str, words: list[str]) -> None:
    path = edit(old, new)
    with pytest.raises(UserError) as error:
        read_study(path)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_single_word_needs_no_brackets(edit: Callable[[str, str], Path]) -> None:
    edit("tasks: [zeroshot_seg, knn]", "tasks: zeroshot_seg")
    path = edit("  - [ibot, ibotpp]\n", "  - {pair: [ibot, ibotpp], factors: tokens}\n")
    study = read_study(path)
    assert study.eval["tasks"] == ["zeroshot_seg"]
    assert study.compare[0].factors == ("tokens",)
    assert checked_eval({**study.eval, "tasks": "knn"})["tasks"] == ["knn"]  # as eval.tasks=knn gives it


def test_unknown_recipe_is_a_user_error() -> None:
    with pytest.raises(UserError, match="study/nothing_of_the_kind"):
        read_study("study/nothing_of_the_kind")
