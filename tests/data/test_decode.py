import io

import numpy as np
import pytest
from PIL import Image

from distill.data.decode import Picture, decode, decode_mask
from distill.data.sample import Sample, SampleError
from distill.pixels import to_rgb


def sample(data) -> Sample:
    return Sample("k", "s.tar", data)


def encoded(image: Image.Image, format: str = "PNG", **options) -> Sample:
    out = io.BytesIO()
    image.save(out, format, **options)
    return sample(out.getvalue())


PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_rgb(format):
    found = decode(encoded(Image.fromarray(PIXELS), format, **({"lossless": True} if format == "WEBP" else {})))
    assert found.dtype == np.uint8
    assert np.array_equal(found, PIXELS)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "CMYK", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(mode):
    grey = Image.new("RGB", (6, 4), (77, 77, 77))
    special = {
        "I;16": lambda: Image.fromarray(np.full((4, 6), 257 * 77, np.uint16)),
        "P": lambda: grey.quantize(2),
        "1": lambda: Image.new("1", (6, 4), 1),
    }
    image = special.get(mode, lambda: grey.convert(mode))()
    assert image.mode == mode
    found = decode(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert found.shape == (4, 6, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - (255 if mode == "1" else 77)).max() <= 2


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert decode(encoded(image)).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_a_colour_that_stands_for_transparency_is_laid_on_white():
    image = Image.fromarray(np.uint8([[[10, 20, 30], [40, 50, 60]]]))
    assert decode(encoded(image, transparency=(40, 50, 60))).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_colours_times_opacity_are_laid_on_white(mode):
    """Modes that no format of ours stores: a picture that a program hands over."""
    image = Image.new(mode[:-1] + "A", (2, 1), (0,) * len(mode[:-1]) + (255,))
    image.putpixel((1, 0), (0,) * len(mode))
    assert np.asarray(to_rgb(image.convert(mode))).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    image = Image.fromarray(np.repeat(np.repeat(PIXELS[:2, :3], 16, 0), 16, 1))  # 32 x 48, blocks of one colour
    exif = image.getexif()
    exif[0x0112] = orientation
    opened = Picture(encoded(image, exif=exif))
    found = opened.decode()
    assert found.shape[:2] == opened.size
    turned = {  # what EXIF's eight values mean
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation]
    assert np.array_equal(found, turned(np.asarray(image)))


def test_scaled_decoding_is_never_smaller_than_asked_for(make):
    data = sample(make.image(3, (400, 600), quality=95))
    for scale, expected in (
        (1.0, (400, 600)),
        (0.6, (400, 600)),
        (0.5, (200, 300)),
        (0.26, (200, 300)),
        (0.01, (50, 75)),
    ):
        found = Picture(data).decode(scale)
        assert found.shape == (*expected, 3)
    full = Image.fromarray(Picture(data).decode()).resize((300, 200), Image.Resampling.BOX)
    assert np.abs(np.asarray(full).astype(int) - Picture(data).decode(0.5)).mean() < 1.5


def test_pixels_are_passed_through():
    assert decode(sample(PIXELS)) is PIXELS
    assert Picture(sample(PIXELS)).size == (4, 6)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut"])
def test_not_an_image(data):
    with pytest.raises(SampleError, match=r"s.tar: k: corrupt image"):
        decode(sample(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated_image(make, format):
    data = make.image(1, (64, 64), format)
    with pytest.raises(SampleError, match="corrupt image"):
        decode(sample(data[: len(data) // 2]))


def test_other_formats_are_refused(make):
    with pytest.raises(SampleError, match="not a JPEG, PNG or WebP file"):
        decode(sample(make.image(format="BMP")))


def test_absurdly_large_image(monkeypatch, make):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SampleError, match="more than 100 pixels"):
        decode(sample(make.image()))


@pytest.mark.parametrize(("mode", "dtype"), [("L", np.uint8), ("P", np.uint8), ("I;16", np.int32)])
def test_mask_keeps_indices(mode, dtype):
    indices = np.array([[0, 7], [255, 1]])
    if mode == "I;16":
        image = Image.fromarray((indices * 256).astype(np.uint16))
    else:
        image = Image.fromarray(indices.astype(np.uint8))
        if mode == "P":
            image.putpalette(bytes(range(256)) * 3)
    found = decode_mask(encoded(image).image, "s.tar", "k")
    assert found.dtype == dtype
    assert found.tolist() == (indices * (256 if mode == "I;16" else 1)).tolist()


def test_bad_masks():
    with pytest.raises(SampleError, match="mode RGB; allowed: greyscale or palette"):
        decode_mask(encoded(Image.fromarray(PIXELS)).image, "s.tar", "k")
    with pytest.raises(SampleError, match="corrupt mask"):
        decode_mask(b"x", "s.tar", "k")
