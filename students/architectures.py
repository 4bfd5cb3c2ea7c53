"""Sizes of the family (the paper, tables 15 and 16) and one small enough for a CPU."""

from __future__ import annotations

from dataclasses import replace

from distill.errors import UserError, unknown
from distill.models.arch import Arch

PATCHES = (8, 14, 16)


def _row(size: str, width: int, depth: int, heads: int, mlp: int, text_layers: int = 12, **other) -> Arch:
    numbers = {"patch": 14, "ffn": "gelu", "text_mlp": mlp, **other}
    return Arch(size=size, width=width, depth=depth, heads=heads, mlp=mlp, text_layers=text_layers, **numbers)


ARCHITECTURES: dict[str, Arch] = {
    row.size: row
    for row in (
        _row("tiny", width=128, depth=6, heads=2, mlp=512, text_layers=3, patch=8),
        _row("S", width=384, depth=12, heads=6, mlp=1536),
        _row("B", width=768, depth=12, heads=12, mlp=3072),
        _row("L", width=1024, depth=24, heads=16, mlp=4096),
        _row("So400m", width=1152, depth=27, heads=16, mlp=4304, text_layers=27),
        # 6144 nominal hidden channels, of which a SwiGLU has two thirds; the text tower keeps the plain 6144
        _row("g", width=1536, depth=40, heads=24, mlp=4096, ffn="swiglu", text_mlp=6144),
    )
}


def parse_arch(text: str) -> Arch:
    """The shape named `SIZE/PATCH`, for example `B/14`; the size in any case.

    Raises `UserError` for another form, an unknown size, or a patch that is not 8, 14 or 16.
    """
    size, slash, patch = str(text).partition("/")
    if not slash:
        raise UserError(f"'{text}' is not an architecture: write SIZE/PATCH, for example B/14.")
    sizes = {name.lower(): name for name in ARCHITECTURES}
    if size.lower() not in sizes:
        raise unknown("size", size, ARCHITECTURES, fix="Write SIZE/PATCH, for example B/14.")
    name = sizes[size.lower()]
    if patch not in {str(p) for p in PATCHES}:
        allowed = ", ".join(map(str, PATCHES))
        raise UserError(f"Unknown patch '{patch}' in '{text}'. Allowed: {allowed}; for example {name}/14.")
    return replace(ARCHITECTURES[name], patch=int(patch))
