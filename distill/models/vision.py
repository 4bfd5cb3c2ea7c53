"""The image tower: timm's vision transformer with two CLS tokens, a learned position grid and a mask token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import Mlp, SwiGLU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import UserError
from distill.models.arch import Arch
from distill.models.attention import Attention, Layout
from distill.models.block import Block
from distill.models.init import init_block
from distill.models.positions import resize_grid
from distill.models.values import value_view, with_blocks

NORM_EPS = 1e-6
CLS_STD = 0.02
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25  # of natural images in [0, 1], roughly


class ImageOutput(NamedTuple):
    """Tokens after the final norm, not L2-normalised."""

    cls: Tensor  # [B, C, D]
    patches: Tensor  # [B, N, D], row by row


class Views(NamedTuple):
    """What a trunk makes of the views of a batch; None for a view that was not asked for."""

    clean: ImageOutput
    masked: ImageOutput | None
    crops: ImageOutput | None


class PatchEmbedding(nn.Module):
    """Pixels to patch tokens: projection, then the mask token, then positions."""

    def __init__(self, patch: int, width: int, position_grid: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.empty(position_grid, position_grid, width))
        self.start()
        nn.init.normal_(self.positions, std=width**-0.5)

    @torch.no_grad()
    def start(self) -> None:
        """Starts as if pixels in [0, 1] were standardised to mean 0 and std 1.

        The input stays unnormalised, as in the paper. But with zero biases the mean brightness, common to all patches,
        would drown what tells them apart, and training would spend its first thousands of steps on getting rid of it.
        """
        fan_in = self.proj.weight[0].numel()
        nn.init.trunc_normal_(self.proj.weight, std=fan_in**-0.5 / PIXEL_STD)
        assert self.proj.bias is not None
        self.proj.bias.copy_(-PIXEL_MEAN * self.proj.weight.sum((1, 2, 3)))

    def forward(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """`images [B, 3, H, W]`, `mask [B, N]` (True: replaced by the mask token) -> `[B, N, D]`."""
        x = self.proj(images)  # [B, D, h, w]
        grid = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.at(*grid)  # [B, N, D]
        return x if mask is None else self.corrupt(x, mask, *grid)

    def at(self, height: int, width: int) -> Tensor:
        """Positions `[height * width, D]`."""
        return resize_grid(self.positions, height, width).flatten(0, 1)

    def corrupt(self, tokens: Tensor, mask: Tensor, height: int, width: int) -> Tensor:
        """Clean `tokens [B, N, D]` with the mask token, at its position, where `mask [B, N]` is True."""
        return torch.where(mask[..., None], self.mask_token + self.at(height, width), tokens)


class Tap(nn.Module):
    """A block that keeps its last output."""

    output: Tensor  # [B, C + N, D]

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        self.output = self.block(x)
        return self.output


class VisionTower(nn.Module):
    """Image encoder of the paper: pre-LN blocks without LayerScale, LN eps 1e-6, final norm over all tokens.

    `embed` makes the patch tokens; `trunk` is timm's VisionTransformer with `embed` in front of it instead of its own
    patch embedding, so that timm's forward runs unchanged: it prepends the CLS tokens (`cls_token`, and `reg_token` for
    the second), runs the blocks and the final norm. The CLS tokens have no position.

    The CLS tokens start as normal noise of std 0.02, not at zero as in the paper's released code. Two zero tokens
    without positions stay equal in every block until the first update, and a zero token enters the first norm with
    variance 0, where that norm multiplies its gradient by 1 / sqrt(eps) = 1000.

    Input is in [0, 1], with no mean or variance removed. `gelu`: "tanh" (the paper) or "erf" (faster on CPU).
    `depth` overrides the size's number of blocks. `pad`: an image whose sides are no multiples of the patch is padded
    with black on all sides, the odd pixel at the bottom and right, as in the paper's released code; else it is refused.
    """

    def __init__(
        self,
        arch: Arch,
        *,
        cls_tokens: int = 2,
        position_grid: int = 32,
        gelu: str = "tanh",
        drop_path: float = 0.0,
        depth: int | None = None,
        kernels: str = "xavier",
        pad: bool = False,
    ):
        super().__init__()
        if cls_tokens not in (1, 2):
            raise UserError(f"cls_tokens is {cls_tokens}. Allowed: 1, 2.")
        if gelu not in ("tanh", "erf"):
            raise UserError(f"Unknown gelu '{gelu}'. Allowed: erf, tanh.")
        arch = replace(arch, depth=depth or arch.depth)
        self.arch, self.cls_tokens, self.gelu, self.drop_path, self.pad = arch, cls_tokens, gelu, drop_path, pad
        self.width, self.patch, self.depth, self.position_grid = arch.width, arch.patch, arch.depth, position_grid
        self.embed = PatchEmbedding(arch.patch, arch.width, position_grid)
        self.trunk = _trunk(arch, cls_tokens, gelu, drop_path, kernels)

    def forward(self, images: Tensor, mask: Tensor | None = None, values: bool = False) -> ImageOutput:
        """Encodes `images`, float `[B, 3, H, W]` in [0, 1], H and W multiples of the patch (any, if it pads).

        `mask`: bool `[B, N]`, True where a patch is replaced by the mask token. `values`: patches by the value path of
        the last block (see `ValueBlock`); the CLS tokens are the same either way. Raises `UserError` for other sizes or
        types.
        """
        if values:
            return self._split(value_view(self.trunk, only=True).forward_features(self._tokens(images, mask)))
        return self._split(self.trunk.forward_features(self._tokens(images, mask)))

    @property
    def packs(self) -> bool:
        """Whether `views` may replace separate passes: not while whole sequences are dropped at random."""
        return self.drop_path == 0 or not self.training

    def views(self, images: Tensor, mask: Tensor | None, crops: Tensor | None) -> Views:
        """Clean, masked and local views through the trunk together: what three calls of `forward` give.

        `images` `[B, 3, H, W]` and `crops` `[B', 3, h, w]` (None: without), in [0, 1]; `mask` bool `[B, N]` (None: no
        masked view). All tokens lie end to end, so that every layer but attention sees one long row of them.
        """
        parts = [self._tokens(images, None)]  # [B, N, D] each
        if mask is not None:
            parts.append(self.embed.corrupt(parts[0], mask, *self.grid(*images.shape[-2:])))
        if crops is not None:
            parts.append(self._tokens(crops, None))
        outputs = [self._split(x) for x in self._packed(parts)]
        return Views(outputs[0], None if mask is None else outputs[1], None if crops is None else outputs[-1])

    def _packed(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Patch tokens `[B_i, N_i, D]` through the trunk: all tokens `[B_i, C + N_i, D]` after the final norm."""
        trunk = self.trunk
        whole = [trunk._pos_embed(part) for part in parts]  # CLS tokens in front
        layout = Layout.of(whole)
        x = layout.join(whole)[None]  # [1, T, D]
        for block in trunk.blocks:
            x = block(x, attn_mask=layout)
        return layout.cut(trunk.norm(x)[0])

    def dense(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """CLS `[B, C, D]`, final patches and value-path patches, each `[B, N, D]`, in one pass."""
        tokens = self._tokens(images, mask)  # [B, N, D]
        x = value_view(self.trunk).forward_features(tokens)  # [B, C + N + N, D]
        cls, final, values = x.split([self.cls_tokens, tokens.shape[1], tokens.shape[1]], dim=1)
        return cls, final, values

    def layers(self, images: Tensor, indices: Sequence[int]) -> list[ImageOutput]:
        """Outputs of the blocks at `indices` (from 0, any order), the final norm over each; later blocks are not run.

        That of the last block is what `forward` gives. Raises `UserError` for an index that is no block.
        """
        for index in indices:
            if not 0 <= index < self.depth:
                raise UserError(f"There is no block {index}. Allowed: 0 to {self.depth - 1}.")
        if not indices:
            return []
        taps = {index: Tap(self.trunk.blocks[index]) for index in indices}
        blocks = [taps.get(index, self.trunk.blocks[index]) for index in range(max(indices) + 1)]
        with_blocks(self.trunk, blocks).forward_features(self._tokens(images, None))
        return [self._split(self.trunk.norm(taps[index].output)) for index in indices]

    def _split(self, x: Tensor) -> ImageOutput:  # [B, C + N, D]
        return ImageOutput(x[:, : self.cls_tokens], x[:, self.cls_tokens :])

    def _tokens(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Checks the input and embeds it: `[B, N, D]`."""
        height, width = self.grid(*images.shape[-2:])
        check_images(images)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (len(images), height * width)):
            shape = list(mask.shape)
            raise UserError(f"Mask is {mask.dtype} {shape}; allowed: bool [{len(images)}, {height * width}].")
        return self.embed(self._padded(images, height, width), mask)

    def _padded(self, images: Tensor, rows: int, columns: int) -> Tensor:
        """`images` on a whole number of patches; only a tower that pads ever gets others."""
        high, wide = rows * self.patch - images.shape[-2], columns * self.patch - images.shape[-1]
        if not (high or wide):
            return images
        return F.pad(images, (wide // 2, wide - wide // 2, high // 2, high - high // 2))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size in pixels; `UserError` when it is not a whole number.

        A tower that pads rounds up.
        """
        if self.pad and height > 0 and width > 0:
            return -(-height // self.patch), -(-width // self.patch)
        if height % self.patch or width % self.patch or not (height and width):
            near = " or ".join(f"{h}x{w}" for h, w in nearest_sizes(height, width, self.patch))
            raise UserError(
                f"Image size {height}x{width} is not a multiple of the patch size {self.patch}: resize it to {near}."
            )
        return height // self.patch, width // self.patch

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able: `VisionTower.from_config` makes a tower of the same shape."""
        return {
            "arch": asdict(self.arch),
            "cls_tokens": self.cls_tokens,
            "position_grid": self.position_grid,
            "gelu": self.gelu,
            "drop_path": self.drop_path,
            "pad": self.pad,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VisionTower:
        return cls(Arch(**config["arch"]), **{key: value for key, value in config.items() if key != "arch"})


def _trunk(arch: Arch, cls_tokens: int, gelu: str, drop_path: float, kernels: str) -> VisionTransformer:
    norm: Any = partial(nn.LayerNorm, eps=NORM_EPS)
    activation: Any = partial(nn.GELU, approximate="tanh" if gelu == "tanh" else "none")
    if arch.ffn == "swiglu":
        activation = nn.SiLU
    trunk = VisionTransformer(
        patch_size=arch.patch,
        embed_dim=arch.width,
        depth=arch.depth,
        num_heads=arch.heads,
        mlp_ratio=arch.mlp / arch.width,
        num_classes=0,
        class_token=True,
        reg_tokens=cls_tokens - 1,
        pos_embed="none",
        no_embed_class=True,
        drop_path_rate=drop_path,
        weight_init="skip",
        norm_layer=norm,
        act_layer=activation,
        block_fn=Block,
        attn_layer=Attention,
        mlp_layer=SwiGLU if arch.ffn == "swiglu" else Mlp,
    )
    trunk.patch_embed = nn.Identity()  # the tower's own `embed` stands in front
    for token in (trunk.cls_token, trunk.reg_token):
        if token is not None:
            nn.init.normal_(token, std=CLS_STD)
    for block in trunk.blocks:
        init_block(block, kernels)
    return trunk


def check_images(images: Tensor) -> None:
    """Raises `UserError` for another shape than `[B, 3, H, W]`, and for whole numbers: pixels from 0 to 255 are far
    from all that was trained on.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        fix = "images[None] makes a batch of one image" if images.ndim == 3 else "convert them to RGB, channels first"
        raise UserError(f"Images have the shape {list(images.shape)}. Allowed: [batch, 3, height, width]; {fix}.")
    if not images.is_floating_point():
        raise UserError(f"Images are {images.dtype}: convert to float in [0, 1], for example images.float() / 255.")


def nearest_sizes(height: int, width: int, patch: int) -> list[tuple[int, int]]:
    """The allowed sizes just below and just above, smallest first, without those that have no patch at all."""
    below = (height // patch * patch, width // patch * patch)
    above = (-(-max(height, 1) // patch) * patch, -(-max(width, 1) // patch) * patch)
    return [size for size in (below, above) if min(size) > 0]
