"""What the keys of a recipe must satisfy together. Every rule yields findings; none raises; all are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distill.config import rules_cache, rules_data, rules_models, rules_training
from distill.config.finding import Finding
from distill.config.schema import Config

Rule = Callable[[Config], Iterator[Finding]]

RULES: tuple[Rule, ...] = (*rules_data.RULES, *rules_models.RULES, *rules_cache.RULES, *rules_training.RULES)


def check(config: Config) -> list[Finding]:
    """All findings of all rules."""
    return [finding for rule in RULES for finding in rule(config)]
