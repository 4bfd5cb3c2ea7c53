from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.decode import decode
from distill.data.sample import Sample
from distill.errors import UserError
from distill.models.preprocess import preprocess


def _picture(width: int, height: int) -> Image.Image:
    """Left half black, right half white."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("fit", "shape"), [("stretch", (28, 28)), ("crop", (28, 28)), ("aspect", (28, 56))])
def test_shapes_and_range(fit, shape):
    tensor = preprocess(_picture(80, 42), 28, 14, fit)
    assert tensor.shape == (3, *shape)
    assert tensor.dtype == torch.float32
    assert tensor.min() == 0
    assert tensor.max() == 1
    assert tensor[:, :, : shape[1] // 2 - 2].max() == 0
    assert tensor[:, :, shape[1] // 2 + 2 :].min() == 1


def test_crop_takes_the_centre():
    pixels = np.zeros((14, 42, 3), dtype=np.uint8)
    pixels[:, 14:28] = 255
    assert preprocess(Image.fromarray(pixels), 14, 14, "crop").min() == 1


def test_resizing_is_bilinear_and_antialiased():
    stripes = np.zeros((8, 8, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    out = preprocess(Image.fromarray(stripes), 4, 4)[:, :, 1:3]  # away from the border, fine stripes average out
    assert out.std() < 0.01
    assert out.mean().item() == pytest.approx(100 / 255, abs=0.01)


def test_a_picture_of_the_asked_size_is_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for fit in ("stretch", "crop", "aspect"):
        out = preprocess(Image.fromarray(pixels), 16, 8, fit)
        assert torch.equal((out * 255).round().byte(), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_colour_modes_become_rgb(mode):
    assert preprocess(_picture(16, 16).convert(mode), 16, 8).shape == (3, 16, 16)


@pytest.mark.parametrize("what", ["turned", "transparent", "16-bit grey"])
def test_a_file_looks_as_it_did_in_training(what):
    image, options = _picture(16, 16), {}
    if what == "turned":
        options["exif"] = image.getexif()
        options["exif"][0x0112] = 6  # a quarter turn: the white half is below
    elif what == "transparent":
        image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    else:
        image = Image.fromarray(np.full((16, 16), 257 * 77, np.uint16))
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    trained_on = torch.from_numpy(decode(Sample("k", "s.tar", file.getvalue())).copy())  # uint8 [H, W, 3]
    out = preprocess(Image.open(file), 16, 8)
    assert torch.equal((out * 255).round().byte(), trained_on.permute(2, 0, 1))


def test_wrong_size_and_fit():
    with pytest.raises(UserError, match="Image size 50 is not a multiple of the patch size 14: use 42 or 56"):
        preprocess(_picture(8, 8), 50, 14)
    with pytest.raises(UserError, match="Did you mean 'crop'"):
        preprocess(_picture(8, 8), 28, 14, "crops")
