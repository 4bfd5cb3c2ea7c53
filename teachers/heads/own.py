"""`teacher.heads.kind: own`: the heads and centres that a teacher's source has."""

from __future__ import annotations

from distill.config.schema import Config
from distill.errors import UserError
from teachers.heads import prototype_parts, settle


def check_heads(cfg: Config, source: str, prototypes: int) -> str | None:
    """The kind of heads that a frozen teacher gets, None where none are needed; settles what is `auto` in `cfg`.

    `prototypes` is how many its source has, 0 without heads. Raises UserError when its own ones are asked for and it
    has none, or has another number than the recipe.
    """
    settle(cfg, has_heads=prototypes > 0)
    kind = cfg.teacher.heads.kind if prototype_parts(cfg) else None
    if kind == "own" and not prototypes:
        raise UserError(
            f"teacher.heads.kind=own, but teacher.source={source} has no prototype heads. Set "
            f"teacher.heads.kind=fitted or trained, or regress features: objective.patch.target=features "
            f"objective.cls.target=features."
        )
    if kind == "own" and prototypes != cfg.heads.prototypes:
        raise UserError(
            f"heads.prototypes={cfg.heads.prototypes}, but the heads of teacher.source={source} have {prototypes}. "
            f"Set heads.prototypes={prototypes}, or teacher.heads.kind=fitted."
        )
    return kind
