"""The image tower against a plain forward written here from the definition, and its contracts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from distill.errors import UserError
from distill.models.block import Block
from distill.models.vision import VisionTower


def _norm(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * weight + bias


def _gelu(x, kind):
    if kind == "erf":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _feed_forward(x, w, kind):
    if kind == "swiglu":
        gate = x @ w["mlp.fc1_g.weight"].T + w["mlp.fc1_g.bias"]
        hidden = gate * torch.sigmoid(gate) * (x @ w["mlp.fc1_x.weight"].T + w["mlp.fc1_x.bias"])
    else:
        hidden = _gelu(x @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"], kind)
    return hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]


def _attend(x, w, heads):
    width = x.shape[-1]
    q, k, v = (x @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]).split(width, dim=-1)
    out = torch.zeros_like(x)
    size = width // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        out[..., part] = scores.softmax(-1) @ v[..., part]
    return out @ w["attn.proj.weight"].T + w["attn.proj.bias"]


def _value(x, w):
    width = x.shape[-1]
    v = x @ w["attn.qkv.weight"][2 * width :].T + w["attn.qkv.bias"][2 * width :]
    return v @ w["attn.proj.weight"].T + w["attn.proj.bias"]


def _block(x, w, heads, kind, mix):
    x = x + mix(_norm(x, w["norm1.weight"], w["norm1.bias"]))
    return x + _feed_forward(_norm(x, w["norm2.weight"], w["norm2.bias"]), w, kind)


def reference(tower: VisionTower, images, mask=None, values=False):
    """Tokens `[B, C + N, D]` after the final norm, from the weights alone."""
    w, arch = tower.state_dict(), tower.arch
    p = arch.patch
    batch, _, height, width = images.shape
    rows, columns = height // p, width // p
    pixels = images.reshape(batch, 3, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
    x = pixels @ w["embed.proj.weight"].reshape(arch.width, -1).T + w["embed.proj.bias"]
    if mask is not None:
        for b, n in mask.nonzero().tolist():
            x[b, n] = w["embed.mask_token"]
    grid = w["embed.positions"].permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", antialias=True)
    x = x + grid[0].permute(1, 2, 0).reshape(rows * columns, -1)
    cls = [w["trunk.cls_token"][0]] + ([w["trunk.reg_token"][0]] if tower.cls_tokens == 2 else [])
    x = torch.cat([torch.cat(cls).expand(batch, -1, -1), x], dim=1)
    kind = "swiglu" if arch.ffn == "swiglu" else tower.gelu
    for i in range(arch.depth):
        prefix = f"trunk.blocks.{i}."
        block = {key.removeprefix(prefix): value for key, value in w.items() if key.startswith(prefix)}
        ordinary = _block(x, block, arch.heads, kind, lambda y, b=block: _attend(y, b, arch.heads))
        if values and i == arch.depth - 1:
            by_value = _block(x, block, arch.heads, kind, lambda y, b=block: _value(y, b))
            ordinary = torch.cat([ordinary[:, : tower.cls_tokens], by_value[:, tower.cls_tokens :]], dim=1)
        x = ordinary
    return _norm(x, w["trunk.norm.weight"], w["trunk.norm.bias"])


def _shaken(arch, **options) -> VisionTower:
    """A tower whose every parameter is noise, so that no zero or one hides a mistake."""
    torch.manual_seed(0)
    tower = VisionTower(arch, position_grid=6, **options).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return tower


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"cls_tokens": 2, "gelu": "tanh"},
        {"cls_tokens": 1, "gelu": "erf"},
        {"cls_tokens": 2, "ffn": "swiglu"},
        {"cls_tokens": 2, "depth": 1},
    ],
)
def test_forward_equals_the_definition(small, options, masked, values):
    arch = replace(small, ffn=options.pop("ffn", "gelu")) if "ffn" in options else small
    tower = _shaken(arch, **options)
    images = torch.rand(3, 3, 12, 20)
    mask = torch.rand(3, 15) < 0.6 if masked else None
    with torch.no_grad():
        cls, patches = tower(images, mask, values=values)
        expected = reference(tower, images, mask, values)
    assert cls.shape == (3, tower.cls_tokens, 16)
    assert patches.shape == (3, 15, 16)
    torch.testing.assert_close(torch.cat([cls, patches], dim=1), expected, atol=2e-5, rtol=1e-4)


def test_layers_equal_the_definition_of_a_shallower_tower(small):
    tower = _shaken(small, depth=3)
    images = torch.rand(2, 3, 12, 20)
    full, names = tower.arch, list(tower.state_dict())
    with torch.no_grad():
        found = tower.layers(images, [2, 0])
        assert torch.equal(found[0].patches, tower(images).patches)
        for index, output in zip([2, 0], found):
            tower.arch = replace(full, depth=index + 1)
            expected = reference(tower, images)
            torch.testing.assert_close(torch.cat(output, dim=1), expected, atol=2e-5, rtol=1e-4)
    assert list(tower.state_dict()) == names and type(tower.trunk.blocks[0]) is Block
    assert tower.layers(images, []) == []
    for index in (-1, 3):
        with pytest.raises(UserError, match=rf"no block {index}\. Allowed: 0 to 2"):
            tower.layers(images, [0, index])


def test_layers_run_no_later_block_than_asked_for(small):
    tower = _shaken(small)
    tower.trunk.blocks[1].register_forward_pre_hook(lambda module, args: pytest.fail("the second block ran"))
    tower.layers(torch.rand(1, 3, 8, 8), [0])[0].patches.sum().backward()
    assert tower.embed.proj.weight.grad.abs().sum() > 0


def test_pixels_under_the_mask_have_no_influence_and_others_do(small):
    tower = _shaken(small)
    images = torch.rand(1, 3, 8, 8)
    mask = torch.tensor([[True, False, False, False]])
    hidden, seen = images.clone(), images.clone()
    hidden[..., :4, :4] = 0.0
    seen[..., :4, 4:] = 0.0
    out = tower(images, mask)
    assert torch.equal(tower(hidden, mask).patches, out.patches)
    assert not torch.allclose(tower(seen, mask).patches, out.patches)
    assert not torch.allclose(tower(hidden).patches, tower(images).patches)


def test_mask_token_comes_before_positions_and_cls_tokens_have_none(small):
    tower = _shaken(small)
    seen = []
    tower.trunk.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tower(torch.rand(2, 3, 24, 24), torch.ones(2, 36, dtype=torch.bool))
    (x,) = seen  # [2, 2 + 36, 16]
    assert torch.equal(x[0, 0], tower.trunk.cls_token[0, 0])
    assert torch.equal(x[0, 1], tower.trunk.reg_token[0, 0])
    positions = tower.embed.positions.flatten(0, 1)
    torch.testing.assert_close(x[:, 2:], (tower.embed.mask_token + positions).expand(2, -1, -1))


def test_the_two_cls_tokens_differ_from_the_start(small):
    torch.manual_seed(0)
    cls = VisionTower(small)(torch.rand(4, 3, 16, 16)).cls
    assert (cls[:, 0] - cls[:, 1]).norm(dim=-1).min() > 0.05


def test_value_path_leaves_the_trunk_and_the_cls_tokens_alone(small):
    tower = _shaken(small)
    images = torch.rand(2, 3, 16, 16)
    before, names = tower(images), list(tower.state_dict())
    by_value = tower(images, values=True)
    torch.testing.assert_close(by_value.cls, before.cls, rtol=0, atol=1e-5)
    assert not torch.allclose(by_value.patches, before.patches, atol=1e-2)
    assert type(tower.trunk.blocks[-1]) is Block
    assert list(tower.state_dict()) == names
    assert torch.equal(tower(images).patches, before.patches)


def test_the_value_path_alone_is_that_of_both_paths(small):
    """Without the patches' attention the last block gives the same CLS tokens and value path, and their gradients."""
    tower, images = _shaken(small), torch.rand(2, 3, 16, 24)
    results = []
    for outputs in (tower(images, values=True), tower.dense(images)):
        cls, patches = outputs[0], outputs[-1]
        tower.zero_grad()
        (cls.square().sum() + patches.sin().sum()).backward()
        gradients = {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}
        results.append((cls, patches, gradients))
    for one, two in zip(results[0][:2], results[1][:2]):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert results[0][2].keys() == results[1][2].keys()
    for name, gradient in results[0][2].items():
        torch.testing.assert_close(gradient, results[1][2][name], rtol=1e-4, atol=1e-4)


def test_positions_follow_every_kind_of_update_and_get_gradients(small):
    tower = VisionTower(small, position_grid=8)
    images = torch.rand(1, 3, 12, 12)
    with torch.inference_mode():
        before = tower(images).patches.clone()
    tower.embed.positions.data.add_(torch.randn_like(tower.embed.positions))
    with torch.inference_mode():
        assert not torch.allclose(tower(images).patches, before)
    tower(images).patches.square().sum().backward()
    assert tower.embed.positions.grad.abs().amin() > 0


def test_query_key_and_value_are_initialised_apart(small):
    torch.manual_seed(0)
    qkv = VisionTower(small).trunk.blocks[0].attn.qkv
    bound = math.sqrt(6 / (16 + 16))
    for part in qkv.weight.chunk(3):
        assert bound * 0.9 < part.abs().max() <= bound
    assert 0 < qkv.bias.abs().max() < 1e-5


def test_position_and_token_scales(small):
    torch.manual_seed(0)
    tower = VisionTower(replace(small, width=64), position_grid=32)
    assert tower.embed.positions.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert tower.trunk.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert tower.embed.mask_token.abs().max() == 0


def test_drop_path_acts_in_training_only(small):
    tower = _shaken(replace(small, depth=4), drop_path=0.9)
    images = torch.rand(8, 3, 8, 8)
    assert torch.equal(tower(images).cls, tower(images).cls)
    tower.train()
    assert not torch.equal(tower(images).cls, tower(images).cls)


def test_depth_overrides_the_size_and_config_round_trips(small):
    tower = VisionTower(small, depth=3, cls_tokens=1, position_grid=5, gelu="erf", drop_path=0.1)
    assert tower.depth == len(tower.trunk.blocks) == 3
    again = VisionTower.from_config(tower.config())
    assert again.config() == tower.config()
    again.load_state_dict(tower.state_dict())


def test_a_size_that_is_no_multiple_of_the_patch_names_the_sizes_next_to_it(small):
    tower = VisionTower(replace(small, patch=14))
    with pytest.raises(UserError, match=r"448x597 .* patch size 14: resize it to 448x588 or 448x602"):
        tower(torch.rand(1, 3, 448, 597))
    with pytest.raises(UserError, match=r"resize it to 14x14\.$"):
        tower.grid(5, 14)


@given(st.integers(1, 300), st.integers(1, 300))
def test_grid_accepts_exactly_the_multiples(height, width):
    tower = _BARE
    if height % 4 == 0 and width % 4 == 0:
        assert tower.grid(height, width) == (height // 4, width // 4)
    else:
        with pytest.raises(UserError) as caught:
            tower.grid(height, width)
        for size in str(caught.value).split("resize it to ")[1].rstrip(".").split(" or "):
            h, w = map(int, size.split("x"))
            assert h > 0 and w > 0 and h % 4 == w % 4 == 0 and abs(h - height) < 4 and abs(w - width) < 4


@pytest.mark.parametrize(
    ("mask", "message"),
    [(torch.ones(1, 3, dtype=torch.bool), r"allowed: bool \[1, 4\]"), (torch.ones(1, 4), "float32")],
)
def test_wrong_masks_are_refused(small, mask, message):
    with pytest.raises(UserError, match=message):
        VisionTower(small)(torch.rand(1, 3, 8, 8), mask)


def test_bytes_and_unknown_options_are_refused(small):
    with pytest.raises(UserError, match="uint8"):
        VisionTower(small)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="Allowed: 1, 2"):
        VisionTower(small, cls_tokens=3)
    with pytest.raises(UserError, match="Allowed: erf, tanh"):
        VisionTower(small, gelu="fast")


class _Bare(VisionTower):
    """Only what `grid` needs."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.patch, self.pad = 4, False


_BARE = _Bare()


def test_a_fresh_patch_embedding_sees_standardised_pixels(small):
    """A flat mid-grey image gives zero, and pixels of std 0.25 give features of std 1, whatever their brightness."""
    torch.manual_seed(0)
    tower = VisionTower(small, position_grid=4)
    grey = torch.full((1, 3, 32, 32), 0.5)
    assert tower.embed.proj(grey).abs().max() < 1e-5
    noise = 0.5 + 0.25 * torch.randn(8, 3, 32, 32)
    assert 0.8 < float(tower.embed.proj(noise).std()) < 1.1


@pytest.mark.parametrize("wanted", ["all", "no mask", "no crops"])
def test_packed_views_are_those_of_separate_passes(small, wanted):
    """Forward and gradient, in float64."""
    tower = _shaken(small).double()
    images, crops = torch.rand(2, 3, 12, 20).double(), torch.rand(5, 3, 8, 8).double()
    mask = None if wanted == "no mask" else torch.rand(2, 15) < 0.6
    crops = None if wanted == "no crops" else crops
    packed = tower.views(images, mask, crops)
    single = [tower(images), None if mask is None else tower(images, mask), None if crops is None else tower(crops)]
    for one, other in zip(packed, single):
        assert (one is None) == (other is None)
    flat = [[x for view in views if view is not None for x in view] for views in (packed, single)]
    for a, b in zip(*flat):
        torch.testing.assert_close(a, b)
    used = [(n, p) for n, p in tower.named_parameters() if mask is not None or n != "embed.mask_token"]
    ours, theirs = (torch.autograd.grad(sum((x**2).sum() for x in xs), [p for _, p in used]) for xs in flat)
    for (name, _), a, b in zip(used, ours, theirs):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_views_are_not_packed_while_sequences_are_dropped(small):
    tower = VisionTower(small, position_grid=6, drop_path=0.1)
    assert not tower.train().packs
    assert tower.eval().packs
    assert VisionTower(small, position_grid=6).train().packs
