"""Rules on teacher, students and text towers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath

from distill.config.fields import MISSING, schema
from distill.config.finding import Finding, is_set
from distill.config.schema import Config
from distill.errors import UserError, did_you_mean
from distill.models.arch import Arch
from distill.models.source_kinds import KINDS
from students import parse_arch
from students.fitting import check_image, check_text, choose_layers

AVERAGING = ("ema", "ema_head", "cotrained")  # teacher modes that average heads or more
OTHER_MODELS = ("frozen", "cotrained")  # teacher modes in which the teacher is not the student itself
OF_THE_TEACHER = ("teacher", "layers", "selection")  # ways for a student to start from its teacher
OF_ITS_BLOCKS = ("layers", "selection")  # those that may list the blocks


def archs(config: Config) -> Iterator[Finding]:
    named = [(f"students.{i}.arch", student.arch) for i, student in enumerate(config.students)]
    if config.teacher.arch is not None:
        named.append(("teacher.arch", config.teacher.arch))
    for key, arch in named:
        try:
            parse_arch(arch)
        except ValueError as error:
            yield Finding((key,), f"{key}: {error}")


def student_names(config: Config) -> Iterator[Finding]:
    reserved = {key.split(".*.")[1] for key in schema()[0] if key.startswith("students.*.")} | {"teacher"}
    names = [student.name for student in config.students]
    for i, name in enumerate(names):
        key = f"students.{i}.name"
        if not name or not all(c.isalnum() or c in "_-" for c in name) or name.isdigit():
            yield Finding((key,), f"{key}: '{name}' must be letters, digits, '_' or '-', and not digits alone")
        elif name in reserved:
            yield Finding((key,), f"{key}: '{name}' has another meaning here; choose another name")
        elif name in names[:i]:
            yield Finding((key,), f"{key}: '{name}' is taken by student {names.index(name)}; names must differ")


def teacher_keys(config: Config) -> Iterator[Finding]:
    teacher = config.teacher
    mode = teacher.mode
    if mode == "frozen" and not teacher.source:
        fix = "give a model, as teacher.source=run:runs/my_teacher, or another teacher.mode"
        yield Finding(
            ("teacher.source", "teacher.mode"), f"teacher.source: not given, but teacher.mode is frozen; {fix}"
        )
    if mode == "cotrained" and not teacher.arch:
        text = "teacher.arch: not given, but teacher.mode is cotrained; give SIZE/PATCH, as teacher.arch=L/14"
        yield Finding(("teacher.arch", "teacher.mode"), text)
    only = {"source": "frozen", "arch": "cotrained", "depth": "cotrained", "lr": "cotrained"}
    for name, needed in only.items():
        key = f"teacher.{name}"
        if getattr(teacher, name) is not None and mode != needed:
            fix = f"set teacher.mode={needed} or {key}=null"
            yield Finding((key, "teacher.mode"), f"{key}: only used with teacher.mode {needed} (it is {mode}); {fix}")
    if is_set(config, "teacher.meet") and mode != "frozen":
        text = f"teacher.meet: only used with teacher.mode frozen (it is {mode}); leave it out"
        yield Finding(("teacher.meet", "teacher.mode"), text)
    if is_set(config, "teacher.tokens") and mode != "cotrained":
        fix = "the tokens a student is supervised on are objective.patch.tokens"
        text = f"teacher.tokens: only used with teacher.mode cotrained (it is {mode}); {fix}"
        yield Finding(("teacher.tokens", "teacher.mode"), text)
    if mode not in AVERAGING:
        for name in ("start", "end"):
            key = f"teacher.momentum.{name}"
            if is_set(config, key):
                yield Finding((key,), f"{key}: not used, as teacher.mode {mode} averages nothing", warning=True)
    elif teacher.momentum.start > teacher.momentum.end:
        text = f"teacher.momentum.start: {teacher.momentum.start:g} is above teacher.momentum.end"
        yield Finding(("teacher.momentum.start", "teacher.momentum.end"), f"{text} ({teacher.momentum.end:g})")


def teacher_source(config: Config) -> Iterator[Finding]:
    source = config.teacher.source
    if config.teacher.mode != "frozen" or not source or source == MISSING:
        return
    kind, colon, rest = source.partition(":")
    if not colon or kind not in KINDS:
        fix = f"write run:{source} for a run's folder" if not colon else f"Allowed: {', '.join(KINDS.values())}"
        text = f"teacher.source: '{source}' does not say what it is; {fix}"
        if colon:
            text = f"teacher.source: unknown kind '{kind}' in '{source}'.{did_you_mean(kind, KINDS)} {fix}"
        yield Finding(("teacher.source",), text)
    elif not rest:
        yield Finding(
            ("teacher.source",), f"teacher.source: '{source}' names nothing after the colon; write {KINDS[kind]}"
        )


def teacher_heads(config: Config) -> Iterator[Finding]:
    heads, mode, objective = config.teacher.heads, config.teacher.mode, config.objective
    parts = ((objective.cls.weight, objective.cls.target), (objective.patch.weight, objective.patch.target))
    targets = {target for weight, target in parts if weight > 0}
    phi_s, norm_key = objective.feature_norm == "phi_s", "objective.feature_norm"
    given = [name for name in ("kind", "steps", "entropy") if is_set(config, f"teacher.heads.{name}")]
    for name in given if mode != "frozen" else ():
        key = f"teacher.heads.{name}"
        text = f"{key}: only used with teacher.mode frozen (it is {mode}); leave it out"
        yield Finding((key, "teacher.mode"), text)
    if phi_s and mode != "frozen":
        text = f"{norm_key}: phi_s is measured once, but with teacher.mode {mode} the features move; use standard"
        yield Finding((norm_key, "teacher.mode"), text)
    if phi_s and not targets & {"features", "auto" if mode == "frozen" else "features"}:
        fix = "set objective.patch.target=features or objective.cls.target=features"
        yield Finding((norm_key,), f"{norm_key}: phi_s, but no loss regresses features; {fix}")
    if mode != "frozen":
        return
    keys = ("teacher.heads.kind", "objective.patch.target", "objective.cls.target")
    wanted = bool(targets - {"features"})
    if "kind" in given and not wanted:
        text = f"teacher.heads.kind: {heads.kind}, but no loss compares prototypes; leave it out"
        yield Finding(keys, f"{text}, or set objective.patch.target=prototypes")
    made = heads.kind in ("fitted", "trained", "auto") and wanted
    if "steps" in given and not (made or phi_s):
        text = f"teacher.heads.steps: not used, as nothing is made before the first step (kind {heads.kind})"
        yield Finding(("teacher.heads.steps", *keys), text, warning=True)
    if "entropy" in given and (heads.kind not in ("fitted", "auto") or not wanted):
        text = "teacher.heads.entropy: not used, as it is for teacher.heads.kind fitted alone"
        yield Finding(("teacher.heads.entropy", *keys), text, warning=True)
    yield from _enough_to_fit(config)


def _enough_to_fit(config: Config) -> Iterator[Finding]:
    """CLS prototypes of their own need at least as many images: nine in ten of the batches are clustered."""
    heads, cls = config.teacher.heads, config.objective.cls
    if heads.kind != "fitted" or config.heads.tied or cls.weight == 0 or cls.target == "features":
        return
    images, prototypes = (heads.steps - max(1, heads.steps // 10)) * config.train.batch, config.heads.prototypes
    if images < prototypes:
        keys = ("teacher.heads.steps", "heads.prototypes", "train.batch")
        text = f"teacher.heads.steps: {heads.steps} batches give {images:,} CLS tokens to cluster, fewer than"
        fix = f"raise it to {prototypes * 10 // (9 * config.train.batch) + 1} or more, or set heads.tied=true"
        yield Finding(keys, f"{text} heads.prototypes ({prototypes:,}); {fix}")


def one_student(config: Config) -> Iterator[Finding]:
    if len(config.students) > 1 and config.teacher.mode not in OTHER_MODELS:
        names = ", ".join(student.name for student in config.students)
        count = f"{len(config.students)} ({names})"
        text = f"students: {count}, but with teacher.mode {config.teacher.mode} the teacher is made of"
        fix = "keep one, or set teacher.mode=frozen or cotrained"
        yield Finding(("students.1.name", "teacher.mode"), f"{text} the student, so there can be only one; {fix}")


def student_starts(config: Config) -> Iterator[Finding]:
    mode = config.teacher.mode
    for i, student in enumerate(config.students):
        key = f"students.{i}.init"
        yield from _start(key, student.init, ("scratch", *OF_THE_TEACHER))
        if student.init in OF_THE_TEACHER and mode not in OTHER_MODELS:
            text = f"{key}: {student.init}, but teacher.mode is {mode}, so there is no other model to copy"
            yield Finding((key, "teacher.mode"), f"{text}; use scratch, a checkpoint, or teacher.mode=frozen")
        yield from _layers(config, i)
        if "vision" in student.freeze and (drawn := _drawn(config, student.init)):
            text = f"students.{i}.freeze: vision is frozen but {drawn}, so it would stay random"
            yield Finding((f"students.{i}.freeze", key), f"{text}; give a source as students.{i}.init")
        if {"vision", "text"} <= set(student.freeze) or ("vision" in student.freeze and config.text.freeze):
            text = f"students.{i}.freeze: vision and text are both frozen; nothing is left to train"
            yield Finding((f"students.{i}.freeze", "text.freeze"), text)


def _drawn(config: Config, init: str) -> str:
    """How a tower that starts so comes to be random, in words; empty where it has been trained before."""
    if config.train.stage_from is not None:
        return ""
    if init in OF_THE_TEACHER and config.teacher.mode == "cotrained":
        return "a co-trained teacher starts random too"
    return "starts from scratch" if init == "scratch" else ""


def _layers(config: Config, i: int) -> Iterator[Finding]:
    """The list of blocks by itself; what a frozen teacher has is compared when it is looked at (`distill check`)."""
    student = config.students[i]
    key, keys = f"students.{i}.layers", (f"students.{i}.layers", f"students.{i}.init", f"students.{i}.arch")
    if student.layers and student.init not in OF_ITS_BLOCKS:
        fix = f"set students.{i}.init=layers or students.{i}.layers=[]"
        yield Finding(keys, f"{key}: only used with init layers or selection (it is {student.init}); {fix}")
    here = _shape(config, student.arch, student.depth)
    if student.init in OF_ITS_BLOCKS and config.teacher.mode != "cotrained" and here is not None:
        try:
            choose_layers(f"students.{i}", student, here.depth, None)
        except UserError as error:
            yield Finding((*keys, f"students.{i}.depth"), str(error))


def cotrained_starts(config: Config) -> Iterator[Finding]:
    """A co-trained teacher's sizes are in the recipe: whether students can start from it shows here."""
    teacher = config.teacher
    there = _shape(config, teacher.arch, teacher.depth) if teacher.mode == "cotrained" and teacher.arch else None
    for i, student in enumerate(config.students):
        here = _shape(config, student.arch, student.depth)
        if here is None or there is None:
            continue
        keys = tuple(f"students.{i}.{name}" for name in ("init", "layers", "depth", "arch"))
        if student.init in OF_THE_TEACHER:
            try:
                check_image(f"students.{i}", student, here, there)
            except UserError as error:
                yield Finding((*keys, "teacher.arch", "teacher.depth"), str(error))
        if config.text.init in ("teacher", "selection"):
            try:
                check_text(config.text.init, student.name, here, there)
            except UserError as error:
                yield Finding(("text.init", f"students.{i}.arch", "teacher.arch"), str(error))


def _shape(config: Config, arch: str, depth: int | None) -> Arch | None:
    """`arch` with the blocks and text layers that the recipe gives it; None for no architecture (see `archs`)."""
    try:
        size = parse_arch(arch)
    except ValueError:
        return None
    return replace(size, depth=depth or size.depth, text_layers=config.text.layers or size.text_layers)


def _start(key: str, value: str, words: tuple[str, ...]) -> Iterator[Finding]:
    """An init is one of the words, or something that can be a path or a source."""
    if value in words or value == MISSING or ":" in value or "/" in value or PurePath(value).suffix:
        return
    allowed = f"Allowed: {', '.join(words)}, a source such as run:PATH, or the path of a checkpoint"
    yield Finding((key,), f"{key}: '{value}' is not allowed.{did_you_mean(value, words)} {allowed}")


def gelu(config: Config) -> Iterator[Finding]:
    names = [student.arch for student in config.students]
    names += [config.teacher.arch] if config.teacher.arch else []
    sizes = [_shape(config, name, None) for name in names]
    if is_set(config, "vision.gelu") and all(size is not None and size.ffn != "gelu" for size in sizes):
        text = f"vision.gelu: not used, as the feed-forward layers of {', '.join(names)} are gated by SiLU"
        yield Finding(("vision.gelu", "students.0.arch"), text, warning=True)


def text_tower(config: Config) -> Iterator[Finding]:
    text, mode = config.text, config.teacher.mode
    yield from _start("text.init", text.init, ("scratch", "teacher", "selection"))
    if text.init in ("teacher", "selection") and mode not in OTHER_MODELS:
        said = f"text.init: {text.init}, but teacher.mode is {mode}, so there is no other model to copy"
        yield Finding(("text.init", "teacher.mode"), f"{said}; use scratch, a checkpoint, or teacher.mode=frozen")
    frozen = [("text.freeze", config.text.freeze)]
    frozen += [(f"students.{i}.freeze", "text" in s.freeze) for i, s in enumerate(config.students)]
    for key, is_frozen in frozen:
        if is_frozen and (drawn := _drawn(config, text.init)):
            said = f"{key}: the text tower is frozen but {drawn}, so it would stay random"
            yield Finding((key, "text.init"), f"{said}; give a source as text.init")
    for key, is_frozen in frozen[1:]:
        if is_frozen and text.freeze:
            yield Finding((key,), f"{key}: text is already frozen by text.freeze", warning=True)


def tokenizer(config: Config) -> Iterator[Finding]:
    value = config.text.tokenizer
    words = ("words", "clip")
    if value not in words and value != MISSING and not value.endswith(".model"):
        allowed = "Allowed: words, clip, or the path of a SentencePiece .model file"
        yield Finding(
            ("text.tokenizer",), f"text.tokenizer: '{value}' is not allowed.{did_you_mean(value, words)} {allowed}"
        )
    if value != "words" and is_set(config, "text.vocabulary"):
        text = f"text.vocabulary: not used, as tokenizer '{value}' has its own"
        yield Finding(("text.vocabulary", "text.tokenizer"), text, warning=True)


RULES = (
    archs, student_names, teacher_keys, teacher_source, teacher_heads, one_student, student_starts, cotrained_starts,
    gelu, text_tower, tokenizer,
)  # fmt: skip
