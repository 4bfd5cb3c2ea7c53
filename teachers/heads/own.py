"""`teacher.heads.kind: own`: the heads and centres that a teacher's source has."""

from __future__ import annotations

from dataclasses import dataclass

from distill.config.schema import Config, HeadsConfig
from distill.errors import UserError
from teachers.heads import prototype_parts, settle


@dataclass(frozen=True)
class OwnHeads:
    """What heads a source has: their sizes, and which of them, `cls` and `patch`, were trained."""

    sizes: HeadsConfig
    trained: tuple[str, ...]


def check_heads(cfg: Config, source: str, own: OwnHeads | None) -> str | None:
    """The kind of heads that a frozen teacher gets, None where none are needed; settles what is `auto` in `cfg`.

    Raises UserError when its own ones are asked for and its source has none, lacks one, or has another number of
    prototypes than the recipe.
    """
    settle(cfg, has_heads=own is not None)
    kind = cfg.teacher.heads.kind if prototype_parts(cfg) else None
    if kind == "own":
        _check_own(cfg, source, own)
    return kind


def _check_own(cfg: Config, source: str, own: OwnHeads | None) -> None:
    if own is None:
        raise UserError(
            f"teacher.heads.kind=own, but teacher.source={source} has no prototype heads. Set "
            f"teacher.heads.kind=fitted or trained, or regress features: objective.patch.target=features "
            f"objective.cls.target=features."
        )
    prototypes = own.sizes.prototypes
    if prototypes != cfg.heads.prototypes:
        raise UserError(
            f"heads.prototypes={cfg.heads.prototypes}, but the heads of teacher.source={source} have {prototypes}. "
            f"Set heads.prototypes={prototypes}, or teacher.heads.kind=fitted."
        )
    for part in prototype_parts(cfg):
        if part not in own.trained:
            raise UserError(
                f"objective.{part}.weight is above 0, but teacher.source={source} was trained with it at 0: it has no "
                f"{part} head to teach with. Set objective.{part}.weight=0, objective.{part}.target=features, or "
                f"teacher.heads.kind=fitted."
            )
