"""A study at another scale: what the recipe's `scales` change, before anything else of it is read."""

from __future__ import annotations

from typing import Any

from distill.errors import UserError, unknown
from distill.study.parts import checked_name, known, mapping

SCALE_KEYS = ("base", "set", "eval", "variants")


def scaled(path: str, tree: dict[str, Any], scale: str | None) -> dict[str, Any]:
    """The recipe's tree with a scale's base, keys for every variant, evaluation, and keys of single variants."""
    scales = tree.get("scales") or {}
    if not isinstance(scales, dict) or not all(isinstance(body, dict) for body in scales.values()):
        raise UserError(f"{path}: scales is {scales!r}; it must map a name to a mapping of {', '.join(SCALE_KEYS)}.")
    for key, body in scales.items():
        known(path, f"key of scale '{checked_name(path, 'scale', key)}'", body, SCALE_KEYS)
        for part in ("variants", "eval"):
            if body.get(part) is not None and not isinstance(body[part], dict):
                raise UserError(f"{path}: {part} of scale '{key}' is {body[part]!r}; it must be a mapping.")
        for variant in body.get("variants") or {}:
            if variant not in tree["variants"]:
                raise unknown(f"variant in scale '{key}' of {path}", str(variant), tree["variants"])
    if scale is None:
        return tree
    if not scales:
        raise UserError(f"{path} has no scales, so scale={scale} means nothing; leave it out.")
    if scale not in scales:
        raise unknown(f"scale of {path}", scale, scales)
    own = scales[scale]
    variants = {name: dict(body or {}) for name, body in tree["variants"].items()}
    for name, changes in (own.get("variants") or {}).items():
        at = f"variants.{name}"
        variants[name]["set"] = {**mapping(path, at, variants[name].get("set")), **mapping(path, at, changes)}
    return {
        **tree,
        "study": f"{tree['study']}_{scale}",
        "base": own.get("base", tree["base"]),
        "set": {**mapping(path, "set", tree.get("set")), **mapping(path, "set", own.get("set"))},
        "eval": {**(tree.get("eval") or {}), **(own.get("eval") or {})},
        "variants": variants,
    }
