"""`--to onnx`: each tower as a graph, for any batch and any image size that is whole patches.

The towers branch on sizes and cache matrices, which a graph cannot; here is the same computation without branches. It
is compared with the towers by onnxruntime.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.export.base import Reloaded, our_image, save_tokenizer
from distill.models.sources.base import OpenedModel
from distill.models.text import TextTower, _pool
from distill.models.values import value_view
from distill.models.vision import VisionTower

ANY_SIZE = True
IMAGE, TEXT, OPSET = "image.onnx", "text.onnx", 20


class ImageGraph(nn.Module):
    """Images `[B, 3, H, W]` in [0, 1] -> CLS `[B, C, D]`, final and value-path patches `[B, N, D]` each."""

    def __init__(self, tower: VisionTower):
        super().__init__()
        self.tower, self.trunk = tower, value_view(tower.trunk)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embed, count = self.tower.embed, self.tower.cls_tokens
        x = embed.proj(images)  # [B, D, h, w]
        rows = linear_matrix(embed.positions.shape[0], x.shape[2])  # [h, G]
        columns = linear_matrix(embed.positions.shape[1], x.shape[3])  # [w, G]
        along = torch.matmul(embed.positions.permute(2, 0, 1), columns.T)  # [D, G, w]
        x = (x + torch.matmul(rows, along)).flatten(2).transpose(1, 2)  # [B, N, D]
        patches = x.shape[1]
        tokens = [token.expand(x.shape[0], -1, -1) for token in (self.trunk.cls_token, self.trunk.reg_token)
                  if token is not None]  # fmt: skip
        x = self.trunk.norm(self.trunk.blocks(torch.cat([*tokens, x], dim=1)))  # [B, C + N + N, D]
        return x[:, :count], x[:, count : count + patches], x[:, count + patches :]


class TextGraph(nn.Module):
    """Ids int64 and valid bool, `[B, L]` each, L at most the context -> `[B, D]`."""

    def __init__(self, tower: TextTower):
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        tower = self.tower
        x = tower.embedding(ids) * tower.width**0.5 + tower.positions[: ids.shape[1]]  # [B, L, D]
        keys = (valid | ~valid.any(dim=1, keepdim=True))[:, None, None, :]  # [B, 1, 1, L]
        for block in tower.blocks:
            x = block(x, attn_mask=keys)
        return _pool(tower.norm(x), valid)


def linear_matrix(source: int, target: int) -> Tensor:
    """`models.positions.resize_matrix` by arithmetic alone, so that `target` can be unknown: `[target, source]`.

    Each target entry weighs the source by a triangle around its centre, one source entry wide, or one target entry
    when that is wider.
    """
    stretch = torch.ones(()) * source / target  # source entries a target entry
    centre = (torch.arange(target)[:, None] + 0.5) * stretch  # [target, 1]
    distance = (torch.arange(source)[None] + 0.5 - centre).abs() / stretch.clamp(min=1.0)
    weight = (1 - distance).clamp(min=0)
    return weight / weight.sum(dim=1, keepdim=True)


def check(opened: OpenedModel) -> None:
    our_image(opened, "onnx")


def write(opened: OpenedModel, folder: Path) -> None:
    model, patch = opened.model, opened.model.image.patch
    batch = torch.export.Dim("batch")
    size = {2: patch * torch.export.Dim("rows"), 3: patch * torch.export.Dim("columns")}
    images = torch.rand(2, 3, 3 * patch, 5 * patch)
    _write(ImageGraph(model.image), (images,), ["images"], ["cls", "patches", "values"], ({0: batch} | size,),
           folder / IMAGE)  # fmt: skip
    if model.text is not None:
        length = torch.export.Dim("length", max=model.text.context)
        ids = torch.ones(2, min(4, model.text.context), dtype=torch.int64)
        both = {0: batch, 1: length}
        _write(TextGraph(model.text), (ids, ids.bool()), ["ids", "valid"], ["text"], (both, both), folder / TEXT)
        save_tokenizer(model.tokenizer, folder)


@torch.no_grad()
def _write(graph: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str], shapes: Any,
           path: Path) -> None:  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name")  # ids and valid share their axes, as they should
        torch.onnx.export(
            graph.eval(), inputs, path, input_names=names, output_names=outputs, dynamic_shapes=shapes, dynamo=True,
            opset_version=OPSET, verbose=False,
        )  # fmt: skip


def reload(folder: Path) -> Reloaded:
    import onnxruntime

    def session(file: str) -> Any:
        return onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])

    image_session = session(IMAGE)

    def image(images: Tensor) -> dict[str, Tensor]:
        found = image_session.run(None, {"images": images.numpy()})
        return dict(zip(("cls", "patches", "values"), map(torch.from_numpy, found)))

    if not (folder / TEXT).is_file():
        return Reloaded(image)
    text_session = session(TEXT)

    def text(ids: Tensor, valid: Tensor) -> Tensor:
        return torch.from_numpy(text_session.run(None, {"ids": ids.numpy(), "valid": valid.numpy()})[0])

    return Reloaded(image, text)


def loading(opened: OpenedModel, name: str) -> tuple[str, list[str]]:
    code = (
        f'import onnxruntime\n\nimage = onnxruntime.InferenceSession("{name}/{IMAGE}")\n'
        f'cls, patches, values = image.run(None, {{"images": images}})  # float32 [B, 3, H, W] in [0, 1]'
    )
    if opened.model.text is not None:
        code += f'\ntext = onnxruntime.InferenceSession("{name}/{TEXT}")\n'
        code += '(texts,) = text.run(None, {"ids": ids, "valid": valid})  # int64 and bool [B, L] -> [B, D]'
    notes = [
        f"Opset {OPSET}. Any batch; any height and width that are multiples of {opened.model.image.patch}.",
        "`values` are the patches by the value path, for zero-shot segmentation.",
    ]
    return code, notes
