"""Both JPEG decoders: the same pixels, the same refusals, and which one is used."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data import decode as decode_module
from distill.data import decoders
from distill.data.decode import Picture
from distill.data.decoders import choose_decoder, decode_simply, shrink_for
from distill.data.sample import Sample, SampleError
from distill.errors import UserError


def photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Waves and noise of (height, width), so that every frequency and both chroma planes are in use."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = np.stack([127 + 90 * np.sin(x / 9), 127 + 90 * np.cos(y / 7), (x * 3 + y) % 256], axis=2)
    noisy = waves + np.random.default_rng(seed).normal(0, 8, waves.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, options.pop("format", "JPEG"), quality=88, **options)
    return out.getvalue()


def both(data: bytes, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """What each decoder makes of the data: Pillow's, simplejpeg's."""
    plain, fast = (Picture(Sample("k", "s.tar", data), name).decode(scale) for name in ("pillow", "simplejpeg"))
    return plain, fast


@pytest.fixture
def simply(monkeypatch) -> list[bool]:
    """For each call of simplejpeg, whether it gave pixels."""
    calls: list[bool] = []

    def noted(*arguments):
        pixels = decode_simply(*arguments)
        calls.append(pixels is not None)
        return pixels

    monkeypatch.setattr(decode_module, "decode_simply", noted)
    return calls


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.25, 0.1])
@pytest.mark.parametrize("size", [(120, 161), (33, 50), (9, 8), (1, 1), (200, 7)])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"subsampling": 1, "progressive": True}])
def test_both_give_the_same_pixels(size, scale, options, simply):
    plain, fast = both(jpeg(photo(size), **options), scale)
    assert simply == [True]
    np.testing.assert_array_equal(fast, plain)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_both_turn_alike(orientation, scale, simply):
    image = photo((48, 66))
    exif = image.getexif()
    exif[0x0112] = orientation
    plain, fast = both(jpeg(image, exif=exif), scale)
    assert simply == [True]
    np.testing.assert_array_equal(fast, plain)
    assert fast.shape[0] == (33 if orientation >= 5 else 24) * (1 if scale == 0.5 else 2)


def test_grey_is_decoded_simply_and_all_else_by_pillow(simply):
    others = [
        (jpeg(photo((40, 50)).convert("L")), True),
        (jpeg(photo((40, 50)), format="MPO", save_all=True, append_images=[photo((20, 20))]), True),
        (jpeg(photo((40, 50)).convert("CMYK")), None),
        (jpeg(photo((40, 50)), format="PNG"), None),
        (jpeg(photo((40, 50)), format="WEBP"), None),
    ]
    for data, expected in others:
        simply.clear()
        plain, fast = both(data, 0.5)
        assert simply == ([] if expected is None else [expected])
        np.testing.assert_array_equal(fast, plain)


def test_what_simplejpeg_refuses_pillow_may_still_read(simply):
    data = jpeg(photo((40, 50)))
    scan = data.index(b"\xff\xda")
    plain, fast = both(data[:scan] + b"\x00\x01" + data[scan:], 1.0)  # two bytes that belong to nothing
    assert simply == [False]
    np.testing.assert_array_equal(fast, plain)


def test_a_truncated_image_is_refused_in_the_same_words():
    data = jpeg(photo((40, 50)))[:-300]
    words = []
    for name in ("pillow", "simplejpeg"):
        with pytest.raises(SampleError, match=r"s.tar: k: corrupt image \(") as caught:
            Picture(Sample("k", "s.tar", data), name).decode()
        words.append(caught.value.reason)
    assert words[0] == words[1]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), scale=st.floats(1e-6, 1.0))
def test_shrinking_keeps_the_scale_and_a_pixel(height, width, scale):
    shrink = shrink_for((height, width), scale)
    assert shrink in (1, 2, 4, 8)
    assert 1 / shrink >= scale
    assert min(height, width) // shrink >= 1
    double = 2 * shrink
    assert double > 8 or 1 / double < scale or min(height, width) < double  # the next one would not do


def test_auto_takes_simplejpeg_where_it_is(monkeypatch):
    assert choose_decoder("auto") == choose_decoder("simplejpeg") == "simplejpeg"
    assert choose_decoder("pillow") == "pillow"
    monkeypatch.setattr(decoders, "find_spec", lambda name: None)
    assert choose_decoder("auto") == "pillow"
    with pytest.raises(UserError, match=r"pip install 'everypatch\[fast\]', or set data.decoder=pillow"):
        choose_decoder("simplejpeg")
    with pytest.raises(UserError, match=r"data.decoder 'turbo'.* Allowed: auto, pillow, simplejpeg"):
        choose_decoder("turbo")
