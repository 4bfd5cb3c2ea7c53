"""One pass over the images for all tasks: resize, batch by shape, encode, hand out.

Resize rules (`target_size`), one bicubic, anti-aliased step. `keep` brings the short side to `size` with the aspect
ratio kept, `square` makes both sides `size`; each side is then rounded up to a multiple of the model's patch. `short`
is that of TIPSv2's notebook: the short side to `size`, the long one to the whole pixels of its share; what the model
then sees is raised to a multiple of its patch, bicubic (`to_patches`). Pixels are float32 in [0, 1]; normalisation is
the model's own business.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from distill.errors import UserError
from distill.evals.datasets.base import EvalDataset, Example

FITS = ("keep", "square", "short")
PATHS = {"both": ("final", "value"), "final": ("final",), "value": ("value",)}  # option `paths` -> patch features
TOKENS_PER_PART = 1 << 14  # patches that `encode_parts` gives the model at a time
PENDING_IMAGES = 512  # most images that wait for others of their shape


class Encoder(Protocol):
    """What evaluation asks of a model (`distill.models.pair.ImageTextModel` has it)."""

    image: Any  # the vision tower; its `patch` (pixels) is read, and by tasks on earlier blocks `depth` and `layers`

    def encode_image(self, images: Tensor, values: bool = False) -> tuple[Tensor, Tensor]:
        """`[B, 3, H, W]` in [0, 1] -> CLS `[B, C, D]`, patches `[B, h, w, D]` (`values`: the value path's)."""
        ...

    def encode_text(self, texts: list[str]) -> Tensor:
        """Texts -> `[B, D]`."""
        ...


@dataclass
class Batch:
    """Images of one shape and their features, float32."""

    examples: list[Example]
    images: Tensor  # [B, 3, H, W] in [0, 1]
    cls: Tensor | None = None  # [B, C, D]
    patches: Tensor | None = None  # [B, h, w, D] final tokens
    values: Tensor | None = None  # [B, h, w, D] value path of the last block
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # block -> CLS [B, C, D], [B, h, w, D]


@dataclass(frozen=True)
class Needs:
    """What a task reads from a pass."""

    encode: bool = True  # CLS and final patch tokens
    layers: tuple[int, ...] = ()  # blocks whose outputs it reads, from 0
    values: bool = False  # the value path's patch tokens as well
    final: bool = True  # without: CLS and final patch tokens are not read, only the value path's
    masks: bool = False  # the examples' masks
    depth: bool = False  # the examples' depth
    normals: bool = False  # the examples' normals
    fit: str = "keep"  # how images are resized: one of FITS


class Reader(Protocol):
    """A task's hand in a pass: called with every batch; the same image comes exactly once."""

    needs: Needs

    def __call__(self, batch: Batch) -> None: ...


def device_of(model: Any) -> torch.device:
    """Where the model's weights are (CPU for a model without any)."""
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if parameters is not None else None
    return first.device if first is not None else torch.device("cpu")


def round_up(value: int, patch: int) -> int:
    return -(-value // patch) * patch


def target_size(height: int, width: int, size: int, patch: int, fit: str) -> tuple[int, int]:
    """Height and width an image is resized to: see the module's resize rule."""
    if fit == "square":
        return round_up(size, patch), round_up(size, patch)
    short = min(height, width)
    if fit == "short":
        return (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
    return round_up(round(height * size / short), patch), round_up(round(width * size / short), patch)


def to_tensor(image: Image.Image, height: int, width: int) -> Tensor:
    """RGB image -> float32 `[3, height, width]` in [0, 1]; bicubic, untouched where it has that size already."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255


def to_patches(images: Tensor, patch: int) -> Tensor:
    """`[B, 3, H, W]` with each side raised to a multiple of the patch, bicubic; as they are where they fit."""
    size = tuple(round_up(side, patch) for side in images.shape[2:])
    if size == tuple(images.shape[2:]):
        return images
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False)


def encode(
    model: Encoder, images: Tensor, values: bool = False, final: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """CLS `[B, C, D]`, final patches and value-path patches `[B, h, w, D]`, float32, as asked for; any image size.

    Raises UserError for features that are not finite.
    """
    images = to_patches(images, model.image.patch)
    patches = value_patches = None
    if values and not final:
        cls, value_patches = model.encode_image(images, values=True)
    elif values:
        cls, patches, value_patches = encode_both(model, images)
    else:
        cls, patches = model.encode_image(images)
    return (
        finite("images", cls),
        None if patches is None else finite("images", patches),
        None if value_patches is None else finite("images", value_patches),
    )


def finite(of: str, features: Tensor) -> Tensor:
    """The features as float32; UserError where one is NaN or infinite: nothing can be compared with it."""
    features = features.float()
    if not features.isfinite().all():
        raise UserError(
            f"The model's features of {of} are not all finite numbers (there is NaN or infinity in them), so they "
            f"cannot be scored. Check its weights; where training diverged, take an earlier checkpoint."
        )
    return features


def encode_parts(
    model: Encoder, images: Tensor, values: bool = False, final: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`encode` of many images, about TOKENS_PER_PART patches at a time."""
    tokens = round_up(images.shape[2], model.image.patch) * round_up(images.shape[3], model.image.patch)
    most = max(1, TOKENS_PER_PART * model.image.patch**2 // tokens)
    parts = zip(*(encode(model, part, values, final) for part in images.split(most)))
    cls, *paths = ((part[0] if part[0] is None else torch.cat(part)) for part in parts)
    assert cls is not None
    return cls, paths[0], paths[1]


def encode_both(model: Encoder, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CLS, final patches and value-path patches: by the model's `encode_dense`, one pass, where it has it, else two."""
    dense = getattr(model, "encode_dense", None)
    if dense is not None:
        return dense(images)
    return *model.encode_image(images), model.encode_image(images, values=True)[1]


def encode_layers(model: Encoder, images: Tensor, blocks: Iterable[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """By block, after the model's final norm: CLS `[B, C, D]` and patches `[B, h, w, D]`, float32."""
    wanted = sorted(blocks)
    if not wanted:
        return {}
    images = to_patches(images, model.image.patch)
    grid = model.image.grid(*images.shape[-2:])
    outputs = model.image.layers(images, wanted)
    return {
        at: (finite("images", cls), finite("images", patches).unflatten(1, grid))
        for at, (cls, patches) in zip(wanted, outputs)
    }


def run_pass(
    model: Encoder,
    dataset: EvalDataset,
    readers: Sequence[Reader],
    *,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> dict[int, float]:
    """Shows every image of `dataset` to every reader, encoding it once per size that readers ask for.

    `progress(1)` is called for every image loaded.
    Returns seconds by `id(reader)`: its own time plus that of loading and encoding, which readers share.
    """
    spent = {id(reader): 0.0 for reader in readers}
    device = device_of(model)
    started = time.perf_counter()
    own = 0.0
    for examples, images, who in batches(dataset, readers, patch=model.image.patch, batch=batch, progress=progress):
        features = Batch(examples, images.to(device))
        if any(reader.needs.encode for reader in who):
            values = any(reader.needs.values for reader in who)
            final = any(reader.needs.encode and reader.needs.final for reader in who)
            features.cls, features.patches, features.values = encode(model, features.images, values, final)
        features.layers = encode_layers(model, features.images, {at for reader in who for at in reader.needs.layers})
        for reader in who:
            begin = time.perf_counter()
            reader(features)
            spent[id(reader)] += time.perf_counter() - begin
            own += time.perf_counter() - begin
    shared = time.perf_counter() - started - own
    return {key: seconds + shared for key, seconds in spent.items()}


def batches(
    dataset: EvalDataset,
    readers: Sequence[Reader],
    *,
    patch: int,
    batch: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[Example], Tensor, list[Reader]]]:
    """Batches of images of one shape for the readers that want this shape: examples, `[B, 3, H, W]`, readers.

    Images wait until `batch` of their shape have come; when too many wait, the fullest group goes first.
    """
    waiting: dict[tuple, list[tuple[Example, Tensor]]] = defaultdict(list)
    labels = {name: any(getattr(reader.needs, name) for reader in readers) for name in ("masks", "depth", "normals")}
    for index in range(len(dataset)):
        example = dataset.load(index, **labels)
        height, width = example.image.height, example.image.width
        wanted: dict[tuple[int, int], list[int]] = defaultdict(list)  # shape -> positions in `readers`
        for at, reader in enumerate(readers):
            wanted[target_size(height, width, dataset.size, patch, reader.needs.fit)].append(at)
        for shape, who in wanted.items():
            key = (shape, tuple(who))
            waiting[key].append((example, to_tensor(example.image, *shape)))
            if len(waiting[key]) == batch:
                yield _stack(waiting.pop(key), key, readers)
        if progress is not None:
            progress(1)
        if sum(map(len, waiting.values())) > PENDING_IMAGES:
            key = max(waiting, key=lambda k: len(waiting[k]))
            yield _stack(waiting.pop(key), key, readers)
    for key in list(waiting):
        yield _stack(waiting.pop(key), key, readers)


def _stack(
    items: list[tuple[Example, Tensor]], key: tuple, readers: Sequence[Reader]
) -> tuple[list[Example], Tensor, list[Reader]]:
    examples, images = zip(*items)
    return list(examples), torch.stack(images), [readers[at] for at in key[1]]
