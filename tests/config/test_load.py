"""Merging, typing, provenance and messages of recipes."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.config.load import ConfigError, load_config
from distill.config.recipes import shipped
from distill.config.schema import Config, StudentConfig
from distill.errors import UserError


def test_an_empty_recipe_is_all_defaults(write):
    resolved = load_config(write("# nothing\n"))
    assert asdict(resolved.config) == asdict(Config(name="my"))
    assert set(resolved.provenance.values()) == {"default", "auto"}
    assert resolved.provenance["name"] == "auto"


def test_later_layers_win_and_provenance_says_so(write):
    write("seed: 1\noptim: {lr: 0.1, clip: 2}\nmask:\n  ratio: 0.5\n", "low.yaml")
    name = write("base: low.yaml\noptim:\n  lr: 0.2\nseed: 2\n")
    resolved = load_config(name, ["seed=3"])
    config = resolved.config
    assert (config.seed, config.optim.lr, config.optim.clip, config.mask.ratio) == (3, 0.2, 2.0, 0.5)
    where = resolved.provenance
    assert where["seed"] == "command line"
    assert where["optim.lr"] == "recipe my.yaml:3"
    assert where["optim.clip"] == "recipe low.yaml:2"
    assert where["mask.ratio"] == "recipe low.yaml:4"
    assert where["mask.kind"] == "default"


def test_a_base_may_be_a_shipped_recipe_and_have_a_base(write):
    write("base: pretrain/scenes_tiny\nseed: 5\n", "low.yaml")
    config = load_config(write("base: low.yaml\n")).config
    assert config.seed == 5
    assert config.students[0].arch == "tiny/8"
    assert config.name == "my"


def test_a_base_is_found_beside_the_recipe(write, tmp_path):
    (tmp_path / "sub").mkdir()
    write("seed: 7\n", "sub/low.yaml")
    write("base: low.yaml\n", "sub/top.yaml")
    assert load_config("sub/top.yaml").config.seed == 7


def test_a_circle_of_bases_is_refused(write, problems):
    write("base: my.yaml\n", "other.yaml")
    (line,) = problems("base: other.yaml\n")
    assert line.startswith("other.yaml:1: base: ")
    assert "circle: my.yaml -> other.yaml -> my.yaml" in line


@pytest.mark.parametrize(
    ("base", "expected"),
    [("nope.yaml", "No recipe file 'nope.yaml'"), ("[a, b]", "give the name of one recipe"), ("3", "give the name")],
)
def test_a_wrong_base_is_a_problem_with_its_line(problems, base, expected):
    (line,) = problems(f"seed: 1\nbase: {base}\n")
    assert line.startswith("my.yaml:2: base: ")
    assert expected in line


def test_all_problems_at_once_with_place_and_nearest(problems):
    lines = problems(
        "mask:\n  ration: 0.5\n  ratio: 1.5\nseed: yes\noptm: {lr: 1}\n", "tokens=all", "train.batch=3.5", "--lr=1"
    )
    text = "\n".join(lines)
    assert len(lines) == 7
    assert "my.yaml:2: mask.ration: unknown key. Did you mean 'mask.ratio'?" in text
    assert "my.yaml:3: mask.ratio: 1.5 is out of range; allowed: at least 0 and below 1" in text
    assert "my.yaml:4: seed: 'yes' is not an integer (at least 0)" in text
    assert "my.yaml:5: optm.lr: unknown key. Did you mean 'optim.lr'" in text
    assert "command line: tokens: unknown key. Did you mean" in text
    assert "'objective.patch.tokens'" in text
    assert "command line: train.batch: '3.5' is not an integer (at least 1)" in text
    assert "command line: '--lr=1': settings are key=value; write lr=1" in text
    assert lines[0].startswith("my.yaml:2") and lines[-1].startswith("command line")


def test_one_problem_is_one_line(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write("seed: x\n"))
    assert str(caught.value) == "my.yaml:1: seed: 'x' is not an integer (at least 0)"


def test_several_problems_say_how_many(write):
    with pytest.raises(ConfigError, match=r"^2 problems in my.yaml:\n  my"):
        load_config(write("seed: x\nmask: {ratio: y}\n"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("teacher.mode=frozn", "'frozn' is not allowed. Did you mean 'frozen'? Allowed: frozen, ema"),
        ("captions.cls1=web", "'web' is not a list; write [web]"),
        ("seed=[1, 2]", "[1, 2] is a list; expected integer"),
        ("train.steps=null", "null is not allowed; expected integer"),
        ("data.scenes.cache=1", "'1' is not true or false"),
        ("name=true", "is not text; if you mean the word, write it in quotes"),
        ("optim.lr=.inf", "inf is not a finite number"),
        ("optim.lr=.nan", "nan is not a finite number"),
        ("optim.lr=0", "0.0 is out of range; allowed: above 0"),
        ("views.flip=1.01", "1.01 is out of range; allowed: at least 0 and at most 1"),
        ("views.global_scale=[0.4, 2]", "2.0 is out of range"),
        ("eval.tasks=[knn, knm]", "'knm' is not allowed. Did you mean 'knn'?"),
        ("objective.patch=visible", "objective.patch: a section; set one of its keys, as objective.patch.weight"),
        ("optim.lr.x=3", "optim.lr: one value (number), not a section"),
        ("optim.lr={a: 3}", "optim.lr: one value (number), not a section"),
        ("base=pretrain/scenes_tiny", "'base' belongs in a recipe file"),
        ("mask.ratio", "settings are key=value without spaces, as mask.ratio=VALUE"),
        ("=3", "no key before '='"),
        ("mask..ratio=3", "stray dot"),
        ("train.steps=???", "only for keys that take text"),
        ("train.steps=${train.stepz}", "write \\${...} for a literal"),
        ("name=a${b", "name: 'a${b' is no reference to another key, ${other.key}: "),
        ("name=a${b c}", "write \\${...} for a literal"),
        ("captions.cls1=['${']", "captions.cls1: "),
    ],
)
def test_what_a_wrong_override_gets(problems, override, expected):
    (line,) = problems("# empty\n", override)
    assert expected in line
    assert line.startswith("command line: ")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=5e-4", "optim.lr", 5e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("train.steps=1e4", "train.steps", 10000),
        ("train.steps=20_000", "train.steps", 20000),
        ("seed=010", "seed", 10),
        ("name=2024-01-01", "name", "2024-01-01"),
        ("name=007", "name", "007"),
        ("name=on", "name", "on"),
        ("data.epoch=null", "data.epoch", None),
        ("captions.cls1=[web, alt]", "captions.cls1", ["web", "alt"]),
        ("captions.cls2=[]", "captions.cls2", []),
        ("log.tensorboard=False", "log.tensorboard", False),
        ("guard.every=${seed}", "guard.every", 0),
    ],
)
def test_values_are_typed(write, override, key, value):
    resolved = load_config(write("data: {source: shards, shards: x.tar}\n"), [override])
    found = resolved.values[key].value
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "shards", ["a-{000..041}.tar", "{a,b}.tar", "pipe: cat a.tar", "x/*.tar::y.tar", "a{b: c}.tar"]
)
def test_shard_patterns_are_taken_as_they_are(write, shards):
    config = load_config(write("data: {source: shards, epoch: 9}\n"), [f"data.shards={shards}"]).config
    assert config.data.shards == shards


def test_types_hold_everywhere_in_the_built_config(write):
    config = load_config(write("students:\n- {name: a, arch: S/14}\nteacher: {mode: ema}\n")).config
    assert isinstance(config, Config)
    assert isinstance(config.students[0], StudentConfig)
    assert isinstance(config.optim.clip, float)


# ---- students


TWO = "teacher: {mode: frozen, source: run:t}\nstudents:\n- {name: a, arch: S/14}\n- {name: b, arch: B/14, depth: 3}\n"


def test_students_are_set_by_index_by_name_and_all_at_once(write):
    overrides = ["students.0.arch=L/14", "students.b.depth=5", "students.init=teacher"]
    students = load_config(write(TWO), overrides).config.students
    assert [(s.name, s.arch, s.depth, s.init) for s in students] == [
        ("a", "L/14", None, "teacher"),
        ("b", "B/14", 5, "teacher"),
    ]


def test_a_list_of_students_replaces_the_one_below(write):
    write(TWO, "low.yaml")
    name = write("base: low.yaml\nstudents:\n- {name: c}\n")
    (student,) = load_config(name).config.students
    assert student == StudentConfig(name="c")


def test_a_mapping_changes_students_of_the_base(write):
    write(TWO, "low.yaml")
    name = write("base: low.yaml\nstudents: {b: {arch: g/14}, init: layers}\n")
    students = load_config(name).config.students
    assert [(s.arch, s.init) for s in students] == [("S/14", "layers"), ("g/14", "layers")]


def test_python_overrides_dotted_nested_and_lists(write):
    changes = {"optim.lr": 1e-2, "train": {"steps": 5}, "students": [{"name": "x", "arch": "tiny/14"}]}
    resolved = load_config(write("# empty\n"), changes)
    assert (resolved.config.optim.lr, resolved.config.train.steps) == (1e-2, 5)
    assert resolved.config.students == [StudentConfig(name="x", arch="tiny/14")]
    assert resolved.provenance["optim.lr"] == "python"


def test_a_wrong_reference_leaves_the_others_alone(problems, write):
    (line,) = problems("seed: 3\nguard: {every: '${seed}'}\nname: 'a${b'\n")
    assert line.startswith("my.yaml:3: name: ")
    assert load_config(write("seed: 3\nguard: {every: '${seed}'}\n"), [r"name=a\${b"]).config.name == "a${b"


def test_python_paths_and_numbers_of_numpy(write):
    changes = {
        "data": {"source": "shards", "shards": Path("a") / "b.tar"},
        "students": [{"name": "x", "init": Path("m.pt")}],
        "captions.cls1": ("alt",),
        "train.steps": np.int64(5),
        "optim": {"lr": np.float32(0.5), "betas": np.array([0.25, 0.5])},
        "log.tensorboard": np.bool_(False),
    }
    resolved = load_config(write("# empty\n"), changes)
    config = resolved.config
    assert (config.data.shards, config.students[0].init) == ("a/b.tar", "m.pt")
    assert (config.train.steps, config.optim.lr, config.optim.betas) == (5, 0.5, [0.25, 0.5])
    assert config.log.tensorboard is False
    assert asdict(load_config("my.yaml", resolved.overrides).config) == asdict(config)


@pytest.mark.parametrize("value", [object(), b"x", {1, 2}])
def test_python_values_of_another_kind_are_refused(write, value):
    with pytest.raises(ConfigError, match=r"python: name: .* is not text"):
        load_config(write("# empty\n"), {"name": value})


@pytest.mark.parametrize(
    "overrides",
    [
        ["students=[{name: c, arch: S/14}, {name: d, arch: tiny/14}, {name: e}]", "students.d.depth=2", "seed=1"],
        {"students": [{"name": "c", "arch": "S/14"}, {"name": "d"}, {"name": "e"}], "students.1": {"depth": 2}},
        {"optim": {"lr": 0.1}, "students": [{"name": "c"}]},
        ["students={b: {arch: g/14}, init: layers}"],
    ],
    ids=str,
)
def test_the_overrides_that_are_kept_give_the_same_again(write, overrides):
    resolved = load_config(write(TWO), overrides)
    again = load_config(write(TWO), resolved.overrides)
    assert asdict(again.config) == asdict(resolved.config)
    assert again.overrides == resolved.overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("students.2.arch=S/14", "students.2.arch: no such one; students has 2 (a, b)"),
        ("students.c.arch=S/14", "students.c.arch: no such one"),
        ("students.archh=S/14", "Did you mean 'students.arch'?"),
        ("students.a=S/14", "students.a: a section; set one of its keys"),
        ("students.a.archh=S/14", "students.a.archh: unknown key. Did you mean 'students.arch'?"),
        ("students=S/14", "students: a list with at least one item, each with keys of name, arch"),
        ("students=[]", "students: a list with at least one item"),
        ("optim=[{lr: 3}]", "optim: a list of sections, but only students is one"),
    ],
)
def test_wrong_addresses_of_students(problems, override, expected):
    (line,) = problems(TWO, override)
    assert expected in line


# ---- files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mask:\n\tratio: 1\n", "my.yaml:2: not valid YAML: found character '\\t' that cannot start any token (indent"),
        ("mask:\n  ratio:0.5\n", "mask: a section; set one of its keys, as mask.ratio (mind the space"),
        ("data:\n  shards: pipe: cat x\n", "my.yaml:2: not valid YAML: mapping values are not allowed here (put text"),
        ("a: [1, 2\n", "not valid YAML"),
        ("- seed\n", "my.yaml:1: a recipe is lines of 'key: value'"),
        ("just words\n", "my.yaml:1: a recipe is lines of 'key: value'"),
        ("seed: 1\nmask: {ratio: 0.5}\nseed: 2\n", "my.yaml:3: seed: given twice (first on line 1)"),
        ("seed: 1\nmask.ratio: 0.5\nmask: {ratio: 0.4}\n", "my.yaml:3: mask.ratio: given twice (first on line 2)"),
        ("text: {tokenizer: ???}\n", "put ??? in quotes"),
        ("a: {b: {c: {d: {e: {f: {g: {h: {i: {j: 1}}}}}}}}}\n", "nested too deeply"),
        ("seed: &x 1\nmask: {ratio: *y}\n", "undefined alias"),
    ],
)
def test_files_that_are_not_recipes(problems, text, expected):
    assert any(expected in line for line in problems(text))


def test_an_empty_section_changes_nothing(write):
    assert load_config(write("mask:\noptim:\n  lr: 0.1\n")).config.mask.ratio == 0.75


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scenes_tiny", "Did you mean 'pretrain/scenes_tiny'?"),
        ("pretrain/scene_tiny", "Did you mean 'pretrain/scenes_tiny'"),
        ("nope.yaml", "No recipe file 'nope.yaml'"),
        (".", "is a folder"),
        ("study/demo", "is a study, a grid of runs; use: distill study study/demo"),
    ],
)
def test_recipes_that_do_not_exist(write, name, expected):
    write("# here\n")
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        load_config(name)


def test_a_run_folder_points_to_its_resolved_recipe(write, tmp_path):
    (tmp_path / "run").mkdir()
    write("seed: 1\n", "run/resolved.yaml")
    with pytest.raises(UserError, match=r"give run/resolved\.yaml"):
        load_config("run")


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        load_config(tmp_path / "x.yaml")


def test_a_study_file_is_sent_to_its_verb(write):
    with pytest.raises(UserError, match=r"use: distill study my\.yaml"):
        load_config(write("base: pretrain/scenes_tiny\nvariants: {a: {}}\n"))


# ---- what is left open, worked out, changed, written


def test_open_values_are_listed_and_refused_before_a_run(write):
    resolved = load_config(write('teacher: {mode: frozen, source: "???"}\n'))
    assert resolved.missing == ["teacher.source"]
    with pytest.raises(UserError, match=r"teacher\.source="):
        resolved.require_complete()
    load_config(write('teacher: {mode: frozen, source: "???"}\n'), ["teacher.source=run:x"]).require_complete()


def test_differences_are_what_the_overrides_changed(write):
    resolved = load_config(write("optim: {lr: 0.1}\nseed: 3\n"), ["optim.lr=0.2", "seed=3", "mask.ratio=0.5"])
    assert [str(d) for d in resolved.differences()] == [
        "mask.ratio: 0.75 -> 0.5 (command line)",
        "optim.lr: 0.1 -> 0.2 (command line)",
    ]


def test_set_auto_reaches_config_and_provenance(write):
    resolved = load_config(write("# empty\n"))
    resolved.set_auto("train.precision", "bf16")
    resolved.set_auto("students.0.depth", 12)
    assert (resolved.config.train.precision, resolved.config.students[0].depth) == ("bf16", 12)
    assert resolved.provenance["train.precision"] == "auto"
    assert "precision: bf16  # auto" in resolved.to_yaml()
    with pytest.raises(KeyError):
        resolved.set_auto("train.precison", "bf16")


def test_asked_is_the_recipe_and_the_overrides(write):
    text = "# purpose\nseed: 1  # why\n"
    resolved = load_config(write(text), ["mask.ratio=0.5"])
    assert resolved.asked.endswith(text)
    assert "# override: mask.ratio=0.5\n" in resolved.asked


@pytest.mark.parametrize("name", [n for n in shipped() if not n.startswith(("study/", "eval/"))])
def test_resolved_text_is_a_recipe_with_the_same_values(write, name):
    config = load_config(name).config
    again = load_config(write(load_config(name).to_yaml(), "again.yaml"))
    assert asdict(again.config) == asdict(config)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20).map(
    lambda text: text.replace("${", "$")  # a reference to another key
)


@settings(deadline=None)  # a busy machine is no failure
@given(
    lr=st.floats(min_value=1e-30, max_value=1e30, exclude_min=True),
    seed=st.integers(0, 2**62),
    fields=st.lists(TEXT.filter(lambda s: s.strip()), min_size=1, max_size=3, unique=True),
    project=TEXT,
)
def test_any_value_survives_being_written_and_read(tmp_path_factory, lr, seed, fields, project):
    values = {"optim.lr": lr, "seed": seed, "captions.cls1": fields, "log.wandb": project}
    base = {"data.source": "shards", "data.shards": "x.tar"}
    path = tmp_path_factory.getbasetemp() / "roundtrip.yaml"
    path.write_text("# empty\n", encoding="utf-8")
    first = load_config(path, {**base, **values})
    path.write_text(first.to_yaml(), encoding="utf-8")
    second = load_config(path)
    assert asdict(second.config) == asdict(first.config)
    assert math.isclose(second.config.optim.lr, lr, rel_tol=0)


def test_a_literal_dollar_and_brace_survives(write):
    resolved = load_config(write("# empty\n"), [r"log.wandb=a\${b}"])
    assert resolved.config.log.wandb == "a${b}"
    assert load_config(write(resolved.to_yaml(), "again.yaml")).config.log.wandb == "a${b}"


def test_environment_variables_can_be_referred_to(write, monkeypatch):
    monkeypatch.setenv("EVERYPATCH_TEST_DATA", "/data")
    text = "data: {source: shards, shards: '${oc.env:EVERYPATCH_TEST_DATA}/a.tar'}\n"
    assert load_config(write(text)).config.data.shards == "/data/a.tar"


def test_loading_a_recipe_does_not_import_torch():
    code = "import sys, distill; from distill.config.load import load_config; load_config('pretrain/scenes_tiny'); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
