"""Where a frozen teacher's prototypes come from, one file a kind.

`own`: the heads and centres that its source has. No released encoder ships them. Then features are regressed, which
needs no heads; or prototypes are `fitted` to its features, or heads `trained` on its frozen trunk, once, before the
first step. docs/results/headless_teachers.md compares them.
"""

from __future__ import annotations

from distill.config.schema import Config

MADE = ("fitted", "trained")  # the kinds made before the first step
FALLBACK = "fitted"  # what `auto` is for a source without heads when prototypes are asked for


def prototype_parts(cfg: Config) -> list[str]:
    """Which of `cls` and `patch` compare distributions over prototypes."""
    cls, patch = cfg.objective.cls, cfg.objective.patch
    wanted = {"cls": cls.weight > 0 and cls.target != "features"}
    wanted["patch"] = patch.weight > 0 and patch.target != "features"
    return [part for part, is_wanted in wanted.items() if is_wanted]


def wants_features(cfg: Config) -> bool:
    """Whether any loss regresses the teacher's features."""
    parts = (cfg.objective.cls, cfg.objective.patch)
    return any(part.weight > 0 and part.target == "features" for part in parts)


def feature_widths(cfg: Config, width: int) -> tuple[int | None, int | None]:
    """Widths of the features that patches and CLS regress: the teacher's `width`, or None for prototype targets."""
    parts = (cfg.objective.patch, cfg.objective.cls)
    patch, cls = (width if part.weight > 0 and part.target == "features" else None for part in parts)
    return patch, cls


def settle(cfg: Config, has_heads: bool) -> None:
    """Puts a word in place of every `auto` of targets and, for a frozen teacher, of its heads; changes `cfg`.

    `has_heads`: whether a frozen teacher's source has heads. Without, and unless a kind is asked for, its features are
    the targets.
    """
    heads, frozen = cfg.teacher.heads, cfg.teacher.mode == "frozen"
    bare = frozen and not has_heads and heads.kind == "auto"
    for part in (cfg.objective.cls, cfg.objective.patch):
        if part.target == "auto":
            part.target = "features" if bare else "prototypes"
    if frozen and heads.kind == "auto" and prototype_parts(cfg):
        heads.kind = "own" if has_heads else FALLBACK


def describe(cfg: Config, kind: str | None) -> str:
    """What gives a frozen teacher's targets, for the banner and `distill check`."""
    images = f"{cfg.teacher.heads.steps} batches of {cfg.train.batch} images before the first step"
    words = {
        "own": "prototypes: its own heads",
        "fitted": f"prototypes: {cfg.heads.prototypes} fitted to its features by spherical k-means, {images}, "
        f"targets of entropy {cfg.teacher.heads.entropy:g} log {cfg.heads.prototypes}",
        "trained": f"prototypes: heads trained on its frozen trunk, {images}",
    }
    parts = [words[kind]] if kind else []
    if wants_features(cfg):
        phi_s = cfg.objective.feature_norm == "phi_s"
        parts.append(f"features: PHI-S, measured on {images}" if phi_s else "features: standardised by channel")
    return "; ".join(parts)
