"""The DPT decoder against transformers' own, and the files of the release."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch

from distill.errors import UserError
from distill.evals import depth, normals
from distill.evals.depth import expected_depth
from distill.evals.dpt import DptHead, default_channels, tap_blocks
from distill.evals.dpt_files import load_head


@pytest.mark.parametrize(
    ("blocks", "taps"),
    [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (27, [6, 13, 20, 26]), (40, [9, 19, 29, 39]), (2, [0, 0, 1, 1])],
)
def test_taps_are_those_of_the_release(blocks, taps):
    assert tap_blocks(blocks) == taps


def test_channels():
    assert [default_channels(width) for width in (1536, 768, 384, 128, 16)] == [256, 256, 128, 40, 8]


def taps(width, grid, batch=2):
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return [(make(batch, width), make(batch, *grid, width)) for _ in range(4)]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Heads of transformers' tipsv2_dpt with noise for weights, saved as they are published; and the model."""
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    module = pytest.importorskip("transformers.models.tipsv2_dpt.modeling_tipsv2_dpt", reason="transformers >= 5.10")
    vision = transformers.Tipsv2VisionConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        num_register_tokens=1,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = transformers.Tipsv2DptConfig(
        backbone_config=vision, neck_hidden_sizes=[4, 8, 16, 32], fusion_hidden_size=12, num_labels=5
    )
    torch.manual_seed(0)
    model = module.Tipsv2DptForDensePrediction(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("dpt")
    model.save_pretrained(folder)
    return model.double(), folder / "model.safetensors"


@pytest.mark.parametrize("grid", [(2, 2), (3, 5)])
@pytest.mark.parametrize("task", ["depth", "normals"])
def test_equals_transformers(published, task, grid):
    model, file = published
    given = [(cls.double(), x.double()) for cls, x in taps(32, grid)]
    ours = load_head(file, task, 32, {"depth": 256, "normals": 3}[task]).double()
    tokens = [torch.cat([cls[:, None], 9 + cls[:, None], x.flatten(1, 2)], 1) for cls, x in given]  # register: unused
    with torch.no_grad():
        found = ours(given)
        neck, decoder = getattr(model, f"{task}_neck"), getattr(model, f"{task}_decoder")
        expected = decoder(neck(tokens, *grid)[-1])
        assert found.shape == (2, found.shape[1], 8 * (grid[0] + grid[0] % 2), 8 * (grid[1] + grid[1] % 2))
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
        if task == "depth":
            mine = expected_depth(found.permute(0, 2, 3, 1), torch.linspace(0.001, 10, 256).double(), 0.001)
            torch.testing.assert_close(mine, model.depth_bin_regressor(expected), atol=1e-5, rtol=1e-5)


def head(task="depth", width=16, outputs=256, channels=8):
    torch.manual_seed(0)
    return DptHead(width, outputs, channels=channels, relu=task == "depth").eval()


LAYOUTS = {
    "flat": lambda name, task: (
        name.replace("head.", {"depth": "pixel_depth_classif.", "normals": "pixel_normals."}[task])
        if name.startswith("head.")
        else name
    ),
    "named": lambda name, task: name.replace("head.", f"{task}_head.") if name.startswith("head.") else name,
    "nested": lambda name, task: name if name.startswith("head.") else f"dpt.{name}",
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("task", ["depth", "normals"])
def test_published_layouts(tmp_path, layout, task):
    written = head(task, outputs=3)
    arrays = {LAYOUTS[layout](name, task): value.numpy() for name, value in written.state_dict().items()}
    np.savez(tmp_path / "head.npz", bin_centers=np.zeros(3), **arrays)
    (tmp_path / "head.npz").rename(tmp_path / "head_dpt_pytorch.zip")
    read = load_head(tmp_path / "head_dpt_pytorch.zip", task, 16, 3)
    assert not read.training
    with torch.no_grad():
        assert torch.equal(read(taps(16, (2, 3))), written(taps(16, (2, 3))))


def write(path, change=lambda arrays: arrays, **options):
    arrays = {name: value.numpy() for name, value in head(**options).state_dict().items()}
    np.savez(path, **change(arrays))
    return path


def without(arrays):
    return {name: value for name, value in arrays.items() if name not in ("project.bias", "convs.2.weight")}


def spoiled(arrays):
    return {**arrays, "head.bias": np.full_like(arrays["head.bias"], np.nan)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"width": 24},
            r"does not fit an encoder of width 16: reassemble\.readout_projects\.0\.weight is \[24, 48\] inst",
        ),
        ({"outputs": 3}, r"head\.weight is \[3, 8\] instead of \[256, 8\]"),
        ({"change": without}, r"convs\.2\.weight is missing; project\.bias is missing\. Give the depth head"),
        ({"change": spoiled}, r"head\.bias holds values that are not finite"),
        ({"change": lambda arrays: {"pos_embed": np.zeros(3)}}, "holds no DPT head for depth"),
        ({"change": lambda arrays: {"x": np.array([{}], dtype=object)}}, r"Cannot read .*head\.npz"),
    ],
)
def test_files_that_do_not_fit(tmp_path, options, words):
    file = write(tmp_path / "head.npz", **options)
    with pytest.raises(UserError, match=words):
        load_head(file, "depth", 16, 256)


def test_missing_damaged_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match=r"No file .*none\.npz\. Give a released DPT head"):
        load_head(tmp_path / "none.npz", "depth", 16, 256)
    for name, content in (("a.npz", b"PK\x03\x04 cut"), ("b.safetensors", b"\x00\x01"), ("c.zip", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="Cannot read"):
            load_head(tmp_path / name, "depth", 16, 256)
    with zipfile.ZipFile(tmp_path / "jax.zip", "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((3, 3)))
        archive.writestr("decoder/dpt/project/kernel.npy", buffer.getvalue())
    with pytest.raises(UserError, match=r"holds no DPT head for depth\. Give the depth file .*PyTorch"):
        load_head(tmp_path / "jax.zip", "depth", 16, 256)


def test_a_released_head_is_scored_without_training(stub, arrays, paint, tmp_path):
    """No train split is needed, and the numbers are those of the head."""
    grids = [np.arange(36).reshape(6, 6) % 5, np.arange(36).reshape(6, 6) % 3]
    dataset = arrays(
        [paint(g, 4) for g in grids],
        depth=[np.full((24, 24), 2.0)] * 2,
        normals=[np.tile([0.0, 0.0, 1.0], (24, 24, 1))] * 2,
        size=24,
    )
    model = stub(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)))
    file = str(write(tmp_path / "depth.npz"))
    result = depth.run(model, dataset, weights=file)
    assert result.counts == {"images": 2, "train_images": 0, "pixels": 2 * 24 * 24}
    assert result.protocol["head"] == "dpt" and result.protocol["weights"] == file
    assert "rmse_constant" not in result.metrics
    with torch.no_grad():
        images = torch.stack([torch.tensor(paint(g, 4)).permute(2, 0, 1) / 255 for g in grids])
        layers = model.image.layers(images, [0, 1, 2, 3])
        raw = head()([(layer.cls[:, 0], layer.patches.unflatten(1, (6, 6))) for layer in layers])
        maps = expected_depth(raw.permute(0, 2, 3, 1), torch.linspace(0.001, 10, 256), 0.001)
        raised = torch.nn.functional.interpolate(maps[:, None], size=(24, 24), mode="bilinear")
    expected = (raised - 2).square().mean((1, 2, 3)).sqrt().mean()
    assert result.metrics["rmse"] == pytest.approx(expected.item(), rel=1e-4)
    file = str(write(tmp_path / "normals.npz", task="normals", outputs=3))
    found = normals.run(model, dataset, weights=file)
    assert found.counts["images"] == 2 and 0 < found.metrics["rmse"] < 180
