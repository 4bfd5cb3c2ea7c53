"""The typed recipe: every key, its default, what it accepts and what it does.

Defaults live here and nowhere else. `opt` attaches the accepted values and a help line to each field; validation
(`distill.config.rules`), `distill check` and the configuration page of the docs all read them from there.
Defaults are the paper's where it states them, and otherwise common practice (CLIP's, DINOv2's).
"""

# ruff: noqa: RUF009 (`opt` builds a field)

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def opt(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    above: float | None = None,
) -> Any:
    """A config field: `low <= value <= high`, `above < value < below`, `choices` of words; lists go by item."""
    bounds = {"choices": choices, "low": low, "high": high, "below": below, "above": above}
    metadata = {"help": help, **{k: v for k, v in bounds.items() if v is not None}}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


TEACHER_MODES = ("frozen", "ema", "ema_head", "cotrained", "none")
TOKENS = ("masked", "visible", "all")
SOURCES = ("scenes", "shards")
EVAL_TASKS = (  # `distill.evals.registry`, which cannot be imported here: it needs torch
    "zeroshot_seg",
    "zeroshot_cls",
    "retrieval",
    "knn",
    "linear_patch",
    "locality",
    "linear_cls",
    "linear_seg",
    "depth",
    "normals",
    "instance",
)
DECODERS = ("auto", "pillow", "simplejpeg")
TARGETS = ("auto", "prototypes", "features")
HEAD_KINDS = ("auto", "own", "fitted", "trained")


# ------------------------------------------------------------------------------------------------ data


@dataclass
class ScenesConfig:
    size: int = opt(64, "side of a scene in pixels", low=32, high=448)
    count: int = opt(8192, "how many different training scenes there are", low=1)
    seed: int = opt(0, "which world of scenes; samples are a pure function of (seed, index)", low=0)
    cache: bool = opt(True, "keep rendered scenes in memory")


@dataclass
class DataConfig:
    source: str = opt("scenes", "scenes: the embedded procedural world; shards: webdataset tars", choices=SOURCES)
    scenes: ScenesConfig = opt(ScenesConfig, "the procedural world")
    shards: str | None = opt(None, "tars: glob, brace range, 'pipe:COMMAND' or http(s) url; several joined by '::'")
    shuffle: int = opt(10000, "shuffle window in samples (0: the stored order)", low=0)
    epoch: int | None = opt(None, "samples in an epoch (null: all; required for pipes and urls)", low=1)
    workers: int = opt(2, "loader processes per rank (0: load in the training process)", low=0)
    decoder: str = opt(
        "auto", "of JPEGs; auto: simplejpeg where it is installed (extra: fast), else pillow", choices=DECODERS
    )
    max_error_rate: float = opt(
        0.01, "share of unusable samples (unreadable, no caption) above which the run stops", low=0, high=1
    )


@dataclass
class CaptionsConfig:
    cls1: list[str] = opt(["web"], "caption fields of CLS-1; several: one drawn uniformly per sample and epoch")
    cls2: list[str] = opt(["synthetic", "detailed"], "caption fields of CLS-2; an empty list gives a one-CLS model")
    fallback: str | None = opt(None, "field used where a listed one is missing (null: the sample is left out)")


@dataclass
class ViewsConfig:
    global_size: int = opt(224, "side of the global crop in pixels", low=8)
    local_size: int = opt(98, "side of a local crop in pixels", low=4)
    locals: int = opt(6, "local crops per image", low=0)
    global_scale: list[float] = opt([0.4, 1.0], "area range of the global crop", above=0, high=1)
    local_scale: list[float] = opt([0.05, 0.4], "area range of the local crops", above=0, high=1)
    flip: float = opt(0.5, "probability of a horizontal flip", low=0, high=1)


@dataclass
class MaskConfig:
    ratio: float = opt(0.75, "share of the student's patches replaced by the mask token", low=0, below=1)
    kind: str = opt("random", "random patches or rectangular blocks", choices=("random", "block"))


# ------------------------------------------------------------------------------------------------ models


@dataclass
class MomentumConfig:
    start: float = opt(0.994, "averaging momentum at the first step", low=0, high=1)
    end: float = opt(1.0, "averaging momentum at the last step (cosine in between)", low=0, high=1)


@dataclass
class StudentConfig:
    name: str = opt("student", "used in logs, checkpoints and results")
    arch: str = opt("B/14", "SIZE/PATCH, size one of tiny, S, B, L, So400m, g and patch 8, 14 or 16")
    depth: int | None = opt(None, "number of blocks (null: the size's own)", low=1)
    init: str = opt(
        "scratch", "vision weights: scratch | teacher | layers | selection | a source, as run:PATH or tips:VISION.npz"
    )
    layers: list[int] = opt(
        [], "with init: layers or selection, which teacher blocks, in order (none: evenly spaced ones)"
    )
    freeze: list[str] = opt([], "towers that are not trained", choices=("vision", "text"))
    ema: float | None = opt(
        None,
        "momentum of a spare average of the student, used as run:PATH#NAME.ema and evaluated live (null: none)",
        low=0,
        below=1,
    )


@dataclass
class CacheConfig:
    path: str | None = opt(
        None, "with frozen: folder that keeps what the teacher says, so that it sees each view only once (null: none)"
    )
    epochs: int = opt(1, "with a path: epochs with views of their own; then crops, flips and order begin again", low=1)
    dtype: str = opt("fp16", "with a path: how numbers are kept; fp32 changes none of them", choices=("fp16", "fp32"))
    limit: float = opt(200.0, "with a path: largest size in GiB; a run that needs more is refused", above=0)

    @property
    def repeat(self) -> int | None:
        """After how many epochs the views begin again; None: never."""
        return None if self.path is None else self.epochs


@dataclass
class TeacherHeadsConfig:
    kind: str = opt(
        "auto",
        "a frozen teacher's prototypes; own: those of its source; fitted: spherical k-means on its features; "
        "trained: a head trained on its frozen trunk; auto: own if the source has them, else fitted",
        choices=HEAD_KINDS,
    )
    steps: int = opt(200, "batches before training by which heads are fitted or trained and phi_s is measured", low=2)
    entropy: float = opt(
        0.2, "with fitted: the mean entropy of its targets, as a share of log(prototypes)", above=0, below=1
    )


@dataclass
class TeacherConfig:
    mode: str = opt(
        "ema_head",
        "frozen: a given model; ema: average of the student; ema_head: shared trunk, averaged head; "
        "cotrained: a larger encoder pretraining in the same step; none: the student itself, nothing averaged",
        choices=TEACHER_MODES,
    )
    source: str | None = opt(
        None,
        "with frozen: run:PATH (#NAME picks one of its students), tips:VISION.npz, timm:NAME, open_clip:NAME/TAG, "
        "hf:REPO or file:X.safetensors",
    )
    meet: str = opt(
        "targets",
        "with frozen, where patch sizes differ: targets resizes its patch features to the student's grid; input shows "
        "it the view resized so that the grids agree",
        choices=("targets", "input"),
    )
    arch: str | None = opt(None, "with cotrained: the teacher's SIZE/PATCH")
    depth: int | None = opt(None, "with cotrained: number of blocks (null: the size's own)", low=1)
    tokens: str = opt("masked", "with cotrained: tokens supervised in its own pretraining", choices=TOKENS)
    lr: float | None = opt(None, "with cotrained: its own peak learning rate (null: optim.lr)", above=0)
    shard: bool = opt(
        False,
        "with frozen or ema: spread its towers over ranks, gathered block by block (false: each rank holds all)",
    )
    momentum: MomentumConfig = opt(MomentumConfig, "schedule of the average")
    cache: CacheConfig = opt(CacheConfig, "targets kept on disk")
    heads: TeacherHeadsConfig = opt(TeacherHeadsConfig, "prototypes of a frozen teacher, which released ones lack")


@dataclass
class VisionConfig:
    position_grid: int = opt(32, "side of the learned position grid, resized bilinearly to the crop's grid", low=1)
    gelu: str = opt("tanh", "GELU form", choices=("tanh", "erf"))
    drop_path: float = opt(
        0.0,
        "stochastic depth rate; with teacher.mode ema_head, cotrained or none targets come from the same pass",
        low=0,
        below=1,
    )
    kernels: str = opt(
        "xavier",
        "how the blocks' linear layers start: xavier as the paper; fan_in: smaller, learns faster in short runs",
        choices=("xavier", "fan_in"),
    )


@dataclass
class TextConfig:
    init: str = opt(
        "scratch",
        "text weights: scratch | teacher | selection | a source, as run:PATH or tips:VISION.npz+TEXT.npz+TOKENS.model",
    )
    freeze: bool = opt(False, "do not train any student's text tower")
    layers: int | None = opt(None, "number of layers (null: the size's own)", low=1)
    context: int = opt(64, "longest caption in tokens; longer ones are cut and counted", low=1)
    dropout: float = opt(0.0, "dropout in the text tower", low=0, below=1)
    tokenizer: str = opt(
        "words",
        "words: trained on the captions, or those of the run that text.init names; clip: open_clip's BPE; or a "
        "SentencePiece .model path",
    )
    vocabulary: int = opt(4096, "with words: largest vocabulary", low=8)


@dataclass
class HeadsConfig:
    prototypes: int = opt(32768, "number of prototypes", low=2)
    hidden: int = opt(2048, "hidden width of the head's MLP", low=1)
    bottleneck: int = opt(256, "width of the normalised bottleneck", low=1)
    layers: int = opt(3, "layers of the head's MLP, the bottleneck's included", low=1)
    tied: bool = opt(True, "one head for CLS and patches")


# ------------------------------------------------------------------------------------------------ objective


@dataclass
class TemperatureRamp:
    start: float = opt(0.04, "teacher temperature at the first step", above=0)
    end: float = opt(0.07, "teacher temperature after the warm-up", above=0)
    warmup: float = opt(0.3, "share of training over which it rises linearly", low=0, high=1)


BALANCE = "what keeps prototypes in use; sinkhorn balances each micro-batch, over all ranks, by itself"


@dataclass
class PatchConfig:
    weight: float = opt(2.0, "weight of the patch loss (beta)", low=0)
    tokens: str = opt("all", "supervised tokens: masked is iBOT, all is iBOT++", choices=TOKENS)
    target: str = opt(
        "auto",
        "cross-entropy over prototypes, or regression of normalised features; auto: prototypes, "
        "and features for a frozen teacher that has no heads",
        choices=TARGETS,
    )
    balance: str = opt("center", BALANCE, choices=("center", "sinkhorn"))
    student_temperature: float = opt(0.1, "sharpening of the student", above=0)
    teacher_temperature: TemperatureRamp = opt(TemperatureRamp, "sharpening of the teacher")


@dataclass
class ClsConfig:
    weight: float = opt(1.0, "weight of the CLS loss, local crops to the teacher's global CLS-1 (alpha)", low=0)
    target: str = opt(
        "auto",
        "cross-entropy over prototypes, or regression of normalised features; auto: prototypes, "
        "and features for a frozen teacher that has no heads",
        choices=TARGETS,
    )
    balance: str = opt("center", BALANCE, choices=("center", "sinkhorn"))
    student_temperature: float = opt(0.1, "sharpening of the student", above=0)
    teacher_temperature: float = opt(0.07, "sharpening of the teacher", above=0)


@dataclass
class ContrastiveConfig:
    weight: float = opt(1.0, "weight of the image-text loss (mean over the CLS tokens)", low=0)
    loss: str = opt("softmax", "softmax as CLIP, sigmoid as SigLIP", choices=("softmax", "sigmoid"))
    negatives: str = opt(
        "global",
        "captions an image is told apart from: global: those of the whole batch, exact under train.accumulate for one "
        "more forward pass; micro: those of its micro-batch, over all ranks",
        choices=("global", "micro"),
    )
    temperature: float = opt(0.07, "initial temperature (learned)", above=0)
    min_temperature: float = opt(0.001, "the learned temperature never falls below this", above=0)


@dataclass
class ObjectiveConfig:
    patch: PatchConfig = opt(PatchConfig, "patch distillation")
    cls: ClsConfig = opt(ClsConfig, "CLS distillation")
    contrastive: ContrastiveConfig = opt(ContrastiveConfig, "image-text contrast")
    center_momentum: float = opt(0.9, "momentum of the prototype centres", low=0, high=1)
    feature_norm: str = opt(
        "standard",
        "how regressed features are normalised; standard: mean 0 and variance 1 by channel; "
        "phi_s: rotated until all channels vary alike, then one scale (frozen teachers)",
        choices=("standard", "phi_s"),
    )


# ------------------------------------------------------------------------------------------------ training


@dataclass
class OptimConfig:
    name: str = opt(
        "adamw",
        "optimiser; adafactor is PyTorch's: it moves a weight by optim.lr times the weight's own root mean square",
        choices=("adamw", "adafactor"),
    )
    lr: float = opt(5e-4, "peak learning rate", above=0)
    weight_decay: float = opt(0.05, "decoupled weight decay (not on biases, norms, tokens, positions)", low=0)
    betas: list[float] = opt([0.9, 0.95], "AdamW betas", low=0, below=1)
    warmup: float = opt(0.03, "share of training with linear warm-up", low=0, below=1)
    schedule: str = opt("cosine", "after the warm-up", choices=("cosine", "linear", "constant"))
    final: float = opt(0.0, "learning rate at the end, as a share of the peak", low=0, high=1)
    clip: float = opt(1.0, "largest gradient norm of a student, or of a co-trained teacher (0: no clipping)", low=0)
    layer_decay: float = opt(1.0, "learning rate factor per block from the top of the vision trunk", above=0, high=1)


@dataclass
class TrainConfig:
    steps: int = opt(90000, "optimiser steps", low=1)
    batch: int = opt(8192, "images per optimiser step, over all ranks and accumulated micro-batches", low=1)
    accumulate: int = opt(1, "micro-batches per optimiser step", low=1)
    precision: str = opt(
        "auto", "auto: bf16 where the hardware has it, else fp32", choices=("auto", "fp32", "bf16", "fp16")
    )
    accelerator: str = opt("auto", "device kind", choices=("auto", "cpu", "cuda"))
    devices: int = opt(1, "processes over all machines (one per GPU, or CPU processes over gloo)", low=1)
    strategy: str = opt(
        "auto",
        "with several devices: ddp: each holds all weights and optimiser state; fsdp: they are spread over the devices "
        "and gathered block by block; auto: ddp",
        choices=("auto", "ddp", "fsdp"),
    )
    checkpointing: str = opt(
        "none",
        "activations made again in the backward pass instead of kept: none; full: all inside a block; selective: all "
        "but what goes into attention and comes out of it",
        choices=("none", "full", "selective"),
    )
    threads: int | None = opt(
        None, "CPU threads per process (null: cores / processes; for one process at most OMP_NUM_THREADS)", low=1
    )
    compile: str = opt(
        "none",
        "torch.compile, worth it on GPUs: none; blocks: transformer blocks and the softmaxes of the prototype loss",
        choices=("none", "blocks"),
    )
    checkpoint_every: int = opt(1000, "steps between checkpoints", low=1)
    keep: int = opt(2, "checkpoints kept", low=1)
    log_every: int = opt(10, "steps between metric rows", low=1)
    stage_from: str | None = opt(None, "run whose weights, heads and centres this run starts from (second stage)")


@dataclass
class GuardConfig:
    every: int = opt(50, "steps between collapse checks (0: only NaN is checked)", low=0)
    min_entropy: float = opt(0.02, "least entropy of mean prototype use, as a share of log(prototypes)", low=0, high=1)
    min_rank: float = opt(1.5, "least effective rank of the CLS embeddings in a batch", low=1)
    patience: int = opt(3, "checks in a row that must fail before the run stops", low=1)


@dataclass
class EvalConfig:
    every: int = opt(0, "steps between live evaluations of student and teacher (0: only at the end)", low=0)
    tasks: list[str] = opt([], "which tasks", choices=EVAL_TASKS)
    dataset: str = opt("scenes", "DATASET or DATASET:PATH, as in `distill eval`")
    settings: list[str] = opt([], "words as in `distill eval`: TASK=DATASET for one of its own, TASK.OPTION=VALUE")
    samples: int = opt(512, "images per task", low=8)


@dataclass
class LogConfig:
    tensorboard: bool = opt(True, "write TensorBoard events")
    wandb: str | None = opt(None, "Weights & Biases project (extra: wandb)")


@dataclass
class Config:
    name: str = opt("", "name of the run's folder (empty: the recipe's file name)")
    seed: int = opt(0, "seed of weights, order, captions, crops and masks", low=0)
    data: DataConfig = opt(DataConfig, "what is learned from")
    captions: CaptionsConfig = opt(CaptionsConfig, "which texts each CLS token is tied to")
    views: ViewsConfig = opt(ViewsConfig, "crops")
    mask: MaskConfig = opt(MaskConfig, "the student's corrupted view")
    teacher: TeacherConfig = opt(TeacherConfig, "where targets come from")
    students: list[StudentConfig] = field(
        default_factory=lambda: [StudentConfig()], metadata={"help": "one or more, all from one teacher pass"}
    )
    vision: VisionConfig = opt(VisionConfig, "image trunks")
    text: TextConfig = opt(TextConfig, "text towers")
    heads: HeadsConfig = opt(HeadsConfig, "prototype heads")
    objective: ObjectiveConfig = opt(ObjectiveConfig, "the loss")
    optim: OptimConfig = opt(OptimConfig, "optimisation")
    train: TrainConfig = opt(TrainConfig, "length, batch, hardware, checkpoints")
    guard: GuardConfig = opt(GuardConfig, "when a run is stopped as collapsed")
    eval: EvalConfig = opt(EvalConfig, "live evaluation")
    log: LogConfig = opt(LogConfig, "where metrics go besides metrics.csv")
