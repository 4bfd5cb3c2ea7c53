"""`distill plan`: memory, step time, tokens and days of a recipe on given devices, worked out without training."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.preflight.plan import Plan, Way

HELP = "work out memory, step time and days of a recipe on given devices"
TEXT = """Work out memory, step time, tokens and days of a recipe on given devices.

gpu=NAME is one of a small table (a100-80, h100, h200, b200, ...; default h100),
or cpu: then this machine is probed for some seconds. gpus=N sets train.devices.
All other words are settings of the recipe, as for distill run."""


def register(subparsers: Any) -> None:
    """Adds the verb `plan`."""
    parser = subparsers.add_parser(
        "plan", help=HELP, description=TEXT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a name from distill ls, or a recipe file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="gpu=NAME, gpus=N, settings of the recipe")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Prints the plan; returns 0 when the run fits into memory, else 1."""
    from distill.preflight.plan import make_plan

    plan, _ = make_plan(args.recipe, args.overrides)
    if args.json:
        print(json.dumps(plan.as_dict(), indent=2))
    else:
        print("\n".join(lines(plan)))
    return 0 if plan.fits else 1


def lines(plan: Plan) -> list[str]:
    """The plan as text."""
    cost, seconds = plan.cost, plan.seconds
    device = f"{plan.devices:,} x {plan.device}" if plan.devices > 1 else plan.device
    found = [f"{plan.recipe} on {device} ({plan.source}), {plan.precision}", ""]
    found.append(f"A step of {plan.batch:,} images, {plan.images:,} at once on each device: {_time(seconds)}")
    found += [f"  {name:<32}{share:4.0%}  {_time(part)}" for name, part, share in _shares(plan.parts)]
    tokens = cost.image_tokens + cost.text_tokens
    speed = f"  {cost.flops:.3g} operations, {tokens:,} tokens, {plan.batch / seconds:,.0f} images/s"
    found.append(speed + ("" if plan.utilisation is None else f", {plan.utilisation:.0%} of the peak"))
    verdict = "fits" if plan.fits else "does not fit"
    found += ["", f"Memory on each device: {_gib(cost.total_memory)} of {_gib(plan.capacity)}: {verdict}"]
    found += [f"  {name:<32}{share:4.0%}  {_gib(part)}" for name, part, share in _shares(cost.memory)]
    found += ["", f"The run: {plan.steps:,} steps, {plan.steps * plan.batch:,} images, {plan.tokens:.3g} tokens"]
    found.append(f"  {cost.flops * plan.steps:.3g} operations, {_time(plan.days * 86400)}" + _device_time(plan))
    found += ["", f"Bound by: {max(plan.parts, key=lambda name: plan.parts[name])}"]
    if not plan.fits:
        found += ["", _ways_title(plan)]
        found += [f"  {' '.join(way.settings)}: {_gib(way.memory)}{_step_time(way)}" for way in plan.ways]
    return found + (["", "Notes", *(f"  {note}" for note in plan.notes)] if plan.notes else [])


def _shares(parts: dict[str, float]) -> list[tuple[str, float, float]]:
    """(name, value, share) of what is at least half a per cent, the largest first."""
    total = sum(parts.values())
    ranked = sorted(parts.items(), key=lambda item: -item[1])
    return [(name, value, value / total) for name, value in ranked if value >= 0.005 * total]


def _ways_title(plan: Plan) -> str:
    if not plan.ways:
        return "Not one image at a time fits."
    return "To make it fit" if plan.ways[0].seconds is None else "To make it fit, the quickest first"


def _step_time(way: Way) -> str:
    return "" if way.seconds is None else f", {_time(way.seconds)} a step"


def _device_time(plan: Plan) -> str:
    if plan.devices == 1:
        return ""
    return f", {plan.days * 24 * plan.devices:,.0f} device hours"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _time(seconds: float) -> str:
    """Three digits in the unit that reads best."""
    for unit, length in (("days", 172800), ("h", 7200), ("min", 120)):
        if seconds >= length:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
