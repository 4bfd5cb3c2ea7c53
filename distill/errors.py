"""Errors a user can act on, and the sentences they are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. One line: the value, what is allowed, and the fix.

    The command line prints the message alone and exits with status 2; nothing has been changed when it is raised.
    """


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest allowed word, or an empty string when none is near."""
    near = difflib.get_close_matches(value, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def unknown(kind: str, value: str, allowed: Iterable[str], fix: str = "") -> UserError:
    """An error for a name that is not in `allowed`: names the value, the nearest match, the allowed set and the fix."""
    names = sorted(allowed)
    tail = f" {fix}" if fix else ""
    return UserError(f"Unknown {kind} '{value}'.{did_you_mean(value, names)} Allowed: {', '.join(names)}.{tail}")
