"""Rules on objective, optimiser and training."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config.finding import Finding, is_set
from distill.config.schema import Config


def weights(config: Config) -> Iterator[Finding]:
    objective = config.objective
    parts = {"patch": objective.patch.weight, "cls": objective.cls.weight, "contrastive": objective.contrastive.weight}
    keys = tuple(f"objective.{name}.weight" for name in parts)
    if not any(parts.values()):
        yield Finding(keys, "objective: all three weights are 0, so there is nothing to learn; raise one above 0")
    elif config.teacher.mode == "frozen" and not (parts["patch"] or parts["cls"]):
        text = "objective: a teacher is loaded but gives no targets, as the patch and cls weights are 0"
        yield Finding(keys, text, warning=True)


def temperatures(config: Config) -> Iterator[Finding]:
    contrastive, patch = config.objective.contrastive, config.objective.patch
    if contrastive.min_temperature >= contrastive.temperature:
        key = "objective.contrastive.min_temperature"
        text = f"{key}: {contrastive.min_temperature:g} must be below objective.contrastive.temperature"
        yield Finding((key, "objective.contrastive.temperature"), f"{text} ({contrastive.temperature:g})")
    for name, sharp, soft in (
        ("patch", patch.teacher_temperature.end, patch.student_temperature),
        ("cls", config.objective.cls.teacher_temperature, config.objective.cls.student_temperature),
    ):
        if sharp > soft:
            teacher = f"objective.{name}.teacher_temperature" + (".end" if name == "patch" else "")
            student = f"objective.{name}.student_temperature"
            text = (
                f"{teacher}: {sharp:g} is above {student} ({soft:g}); targets softer than the student invite collapse"
            )
            yield Finding((teacher, student), text, warning=True)


def regressed(config: Config) -> Iterator[Finding]:
    """Regressed features have no prototypes to keep in use, and nothing to sharpen."""
    ramp = ("teacher_temperature.start", "teacher_temperature.end", "teacher_temperature.warmup")
    for part, temperatures in (("patch", ramp), ("cls", ("teacher_temperature",))):
        target = f"objective.{part}.target"
        if getattr(config.objective, part).target != "features":
            continue
        for name in ("balance", "student_temperature", *temperatures):
            key = f"objective.{part}.{name}"
            if is_set(config, key):
                yield Finding((key, target), f"{key}: not used, as {target} is features", warning=True)


def batch(config: Config) -> Iterator[Finding]:
    train = config.train
    unit = train.accumulate * train.devices
    if train.batch % unit:
        near = [n for n in (train.batch // unit * unit, train.batch // unit * unit + unit) if n > 0]
        text = f"train.batch: {train.batch} does not divide into train.accumulate x train.devices"
        counts = f"({train.accumulate} x {train.devices} = {unit})"
        yield Finding(
            ("train.batch", "train.accumulate", "train.devices"),
            f"{text} {counts}; nearest that do: {', '.join(map(str, near))}",
        )
        return
    cls, images = config.objective.cls, train.batch // train.accumulate
    if images == 1 and cls.weight > 0 and cls.balance == "sinkhorn" and cls.target != "features":
        text = "objective.cls.balance: sinkhorn balances each micro-batch, and 1 image's target comes out uniform"
        fix = "raise train.batch, lower train.accumulate or set it to center"
        yield Finding(("objective.cls.balance", "train.batch", "train.accumulate"), f"{text}; {fix}", warning=True)
    contrastive, pairs = config.objective.contrastive, train.batch
    keys = ("train.batch", "train.accumulate", "objective.contrastive.weight", "objective.contrastive.negatives")
    if contrastive.negatives == "micro":
        pairs = train.batch // train.accumulate
        if contrastive.weight > 0 and train.accumulate > 1 and pairs >= 2:
            text = f"objective.contrastive.negatives: micro: an image is told apart from {pairs - 1} others"
            text = f"{text}, not from the {train.batch - 1} of its batch; another train.accumulate is another objective"
            yield Finding(("objective.contrastive.negatives", "train.accumulate"), text, warning=True)
    if contrastive.weight > 0 and pairs < 2:
        where = "in the batch" if pairs == train.batch else "per micro-batch"
        yield Finding(keys, f"train.batch: 1 image {where}, but contrast needs at least two to tell apart")


def optimiser(config: Config) -> Iterator[Finding]:
    optim = config.optim
    if len(optim.betas) != 2:
        yield Finding(("optim.betas",), f"optim.betas: {optim.betas} must be two numbers, as [0.9, 0.95]")
    if optim.name != "adamw" and is_set(config, "optim.betas"):
        yield Finding(("optim.betas",), f"optim.betas: not used by {optim.name}", warning=True)


def hardware(config: Config) -> Iterator[Finding]:
    train = config.train
    if train.accelerator == "cpu" and train.precision == "fp16":
        text = "train.precision: fp16 needs a GPU, but train.accelerator is cpu; use fp32 or bf16"
        yield Finding(("train.precision", "train.accelerator"), text)


def strategy(config: Config) -> Iterator[Finding]:
    train, mode = config.train, config.teacher.mode
    if train.strategy == "fsdp" and config.optim.name == "adafactor":
        text = "train.strategy: fsdp, but adafactor's statistics go over rows and columns of whole matrices"
        yield Finding(("train.strategy", "optim.name"), f"{text}; use optim.name=adamw or train.strategy=ddp")
    if train.strategy == "fsdp" and train.precision == "fp16":
        text = "train.strategy: fsdp cannot scale the loss for fp16"
        yield Finding(("train.strategy", "train.precision"), f"{text}; use train.precision=bf16 or fp32")
    if config.teacher.shard and mode not in ("frozen", "ema"):
        text = f"teacher.shard: only used with teacher.mode frozen or ema (it is {mode}), which has its own towers"
        yield Finding(("teacher.shard", "teacher.mode"), f"{text}; set teacher.shard=false")
    elif config.teacher.shard and mode == "frozen" and config.eval.tasks:
        text = "teacher.shard: a sharded frozen teacher is left out of live evaluations; see it with distill eval"
        yield Finding(("teacher.shard", "eval.tasks"), text, warning=True)
    for key, used in (("train.strategy", train.strategy == "fsdp"), ("teacher.shard", config.teacher.shard)):
        if used and train.devices == 1:
            yield Finding((key, "train.devices"), f"{key}: nothing to spread with train.devices=1", warning=True)


def name(config: Config) -> Iterator[Finding]:
    bad = [c for c in config.name if c in '/\\:*?"<>|' or c.isspace()]
    if bad or config.name in (".", "..") or config.name.startswith("-"):
        text = f"name: '{config.name}' cannot be the name of a folder; use letters, digits, '_', '-' and '.'"
        yield Finding(("name",), text)


def live_evals(config: Config) -> Iterator[Finding]:
    tasks = config.eval.tasks
    if config.eval.every > 0 and not tasks:
        text = f"eval.every: {config.eval.every}, but eval.tasks is empty, so nothing is evaluated"
        yield Finding(("eval.every", "eval.tasks"), f"{text}; as eval.tasks=[zeroshot_seg, knn]", warning=True)
    for task in sorted({task for task in tasks if tasks.count(task) > 1}):
        yield Finding(("eval.tasks",), f"eval.tasks: '{task}' is listed twice")
    for word in config.eval.settings:
        name, equals, value = word.partition("=")
        task = name.partition(".")[0]
        if not equals or not value or task not in tasks:
            text = f"eval.settings: '{word}' is not TASK=DATASET or TASK.OPTION=VALUE with a task of eval.tasks"
            yield Finding(("eval.settings",), f"{text} ({', '.join(tasks) or 'none'})")


RULES = (weights, temperatures, regressed, batch, optimiser, hardware, strategy, name, live_evals)
