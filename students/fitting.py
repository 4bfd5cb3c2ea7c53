"""Whether the weights of one model can start another, by their sizes alone. Knows nothing of torch.

Asked by the rules of recipes where a recipe has both sizes, by `distill check` where it looks at a source, and by a run
before it copies. What is not in an `Arch` (CLS tokens, position grid, vocabulary) is compared tensor by tensor.
"""

from __future__ import annotations

from distill.config.schema import Config, StudentConfig
from distill.errors import UserError
from distill.models.arch import Arch

BLOCK = {"patch": "patch", "width": "width", "heads": "attention heads", "mlp": "hidden channels",
         "ffn": "feed-forward layers"}  # fmt: skip
IMAGE = BLOCK | {"depth": "blocks"}
TEXT = {"width": "width", "heads": "attention heads", "text_mlp": "hidden channels", "text_layers": "layers"}


def key_of(student: StudentConfig, config: Config) -> str:
    """`students.0`, or `students` for one that is not in `config`."""
    return next((f"students.{i}" for i, other in enumerate(config.students) if other.name == student.name), "students")


def check_image(key: str, student: StudentConfig, here: Arch, there: Arch) -> None:
    """Raises `UserError` when an image tower `there` cannot start `student`, whose own is `here`, as its `init` says.

    `depth` of both is the number of blocks they have. `key`: the student's, as `students.0`.
    """
    what = f"{key}.init: {student.init}"
    if student.init in ("layers", "selection"):
        choose_layers(key, student, here.depth, there.depth)
    narrower = "init: selection takes a narrower part" if here.ffn == there.ffn else "or init: scratch"
    if student.init == "selection":
        check_selection(what, here, there)
    elif student.init == "layers":
        fix = f"Choose an arch of the teacher's width; {narrower}."
        _check_same(what, student.name, here, there, BLOCK, fix)
    elif student.init == "teacher":
        only_depth = _differing(here, there, IMAGE) == ["depth"]
        use = f"Set {key}.depth={there.depth}" if only_depth else f"Use its shape, {there.name}"
        fix = f"{use}; init: layers takes fewer of its blocks, {narrower}."
        _check_same(what, student.name, here, there, IMAGE, fix)
    else:
        fix = f"That model is {there.name}, {there.depth} blocks: use its shape."
        _check_same(what, student.name, here, there, IMAGE, fix)


def check_text(init: str, name: str, here: Arch, there: Arch) -> None:
    """As `check_image`, for the text tower of the student `name`; `text_layers` of both is what they have."""
    what = f"text.init: {init}"
    if init != "selection":
        shape = f"width {there.width} and {there.text_layers} layers"
        part = ", text.init=selection" if init == "teacher" else ""
        _check_same(what, name, here, there, TEXT, f"That text tower has {shape}: use its shape{part}, or scratch.")
        return
    check_selection(what, here, there, text=True)
    if here.text_layers > there.text_layers:
        raise UserError(
            f"{what}: the student has {here.text_layers} text layers, the teacher {there.text_layers}: "
            f"set text.layers to {there.text_layers} or less."
        )


def check_selection(what: str, here: Arch, there: Arch, text: bool = False) -> None:
    """Raises `UserError` unless blocks of `here` are a part of those of `there`: no size larger, layers of one kind."""
    sizes = {
        "channels": (there.width, here.width),
        "heads": (there.heads, here.heads),
        "channels in a head": (there.width // there.heads, here.width // here.heads),
        "feed-forward channels": (there.text_mlp, here.text_mlp) if text else (there.mlp, here.mlp),
    }
    for size, (theirs, ours) in sizes.items():
        if ours > theirs:
            raise UserError(
                f"{what}: {here.name} has {ours} {size}, the teacher {there.name} only {theirs}: "
                f"choose a smaller arch, or scratch."
            )
    if not text and there.ffn != here.ffn:
        raise UserError(
            f"{what}: the feed-forward layers of {there.name} are {there.ffn}, those of {here.name} are {here.ffn}: "
            f"choose sizes of one kind, or scratch."
        )


def choose_layers(key: str, student: StudentConfig, depth: int, there: int | None) -> list[int]:
    """Which of a teacher's `there` blocks become the `depth` blocks of `student`: as listed, or evenly spaced ones.

    `there` None: not known yet, then only the list itself is looked at. Raises `UserError`.
    """
    layers = student.layers
    if layers and len(layers) != depth:
        raise UserError(
            f"{key}.layers: {len(layers)} given, but student '{student.name}' has {depth} blocks; list {depth} blocks "
            f"of the teacher, or none to take evenly spaced ones"
        )
    if any(layer < 0 for layer in layers):
        raise UserError(f"{key}.layers: {min(layers)} is not a block; they are counted from 0")
    if there is None:
        return layers
    if max(layers, default=0) >= there:
        raise UserError(f"{key}.layers: block {max(layers)} does not exist; the teacher's are 0 to {there - 1}")
    if depth > there and not layers:
        raise UserError(
            f"{key}.init: {student.init}: student '{student.name}' has {depth} blocks, the teacher {there}: "
            f"set {key}.depth to {there} or less"
        )
    return layers or evenly_spaced(there, depth)


def evenly_spaced(count: int, chosen: int) -> list[int]:
    """`chosen` indices spread over `count`, first and last included: (12, 4) gives [0, 4, 7, 11]; one is the last."""
    if chosen == 1:
        return [count - 1]
    return [round(i * (count - 1) / (chosen - 1)) for i in range(chosen)]


def _check_same(what: str, name: str, here: Arch, there: Arch, sizes: dict[str, str], fix: str) -> None:
    wrong = _differing(here, there, sizes)
    if wrong:
        listed = "; ".join(f"{sizes[size]} {getattr(here, size)} here, {getattr(there, size)} there" for size in wrong)
        raise UserError(f"{what} does not fit student '{name}': {listed}. {fix}")


def _differing(here: Arch, there: Arch, sizes: dict[str, str]) -> list[str]:
    return [size for size in sizes if getattr(here, size) != getattr(there, size)]
