"""Crops: torchvision's distribution and pixels, drawn before pixels are touched."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2.functional import hflip, resized_crop

from distill.config.schema import ViewsConfig
from distill.views.crops import Crops, apply_crops, draw_crops

steady = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise over a gradient, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([y * 255 / height, x * 255 / width, (x + y) * 255 / (height + width)], axis=2)
    noise = np.random.default_rng(seed).normal(0, 30, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


@steady
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    local=st.integers(0, 7),
    low=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_boxes_lie_inside_the_image_and_are_whole_pixels(height, width, local, low, seed):
    cfg = ViewsConfig(locals=local, global_scale=[low, 1.0], local_scale=[low / 2, low])
    crops = draw_crops((height, width), cfg, np.random.default_rng(seed))
    left, top, right, bottom = crops.boxes.T
    assert crops.boxes.shape == (1 + local, 4)
    assert crops.flips.shape == (1 + local,)
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    assert (right > left).all()
    assert (bottom > top).all()
    assert (crops.boxes == np.rint(crops.boxes)).all()


@pytest.mark.parametrize(
    ("size", "scale"), [((120, 160), (0.4, 1.0)), ((160, 120), (0.05, 0.4)), ((60, 400), (0.2, 1.0))]
)
def test_boxes_are_distributed_as_torchvisions(size, scale):
    height, width = size
    count = 3000
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(count)])
    cfg = ViewsConfig(locals=count - 1, local_scale=list(scale), global_scale=list(scale))
    left, top, right, bottom = draw_crops(size, cfg, np.random.default_rng(0)).boxes.T
    ours = np.stack([top, left, bottom - top, right - left], axis=1)  # torchvision's order: top, left, height, width

    def quantiles(boxes: np.ndarray) -> np.ndarray:
        y, x, h, w = boxes.T.astype(float)
        values = np.stack([y / height, x / width, h / height, w / width, h * w / (height * width), np.log(w / h)])
        return np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9], axis=1)

    np.testing.assert_allclose(quantiles(ours), quantiles(theirs), atol=0.03)
    full = [(b[:, 2] == height).mean() for b in (ours, theirs)]  # the share that fills the height, fallbacks among it
    assert full[0] == pytest.approx(full[1], abs=0.03)


def test_area_aspect_left_and_top_are_independent_and_the_aspect_is_log_uniform():
    cfg = ViewsConfig(locals=5999, local_scale=[0.05, 0.3])
    left, top, right, bottom = draw_crops((1000, 1000), cfg, np.random.default_rng(0)).boxes[1:].T
    w, h = right - left, bottom - top  # every first try fits: nothing is rejected
    values = np.stack([w * h, np.log(w / h), left / (1000 - w), top / (1000 - h)])
    assert np.abs(np.corrcoef(values) - np.eye(4)).max() < 0.05
    np.testing.assert_allclose(values.mean(axis=1), [0.175e6, 0, 0.5, 0.5], rtol=0.03, atol=0.01)
    np.testing.assert_allclose(np.quantile(values[1], [0.25, 0.75]), [np.log(3 / 4) / 2, np.log(4 / 3) / 2], atol=0.01)


def test_each_kind_of_crop_has_its_own_area():
    cfg = ViewsConfig(locals=50, global_scale=[0.5, 0.5], local_scale=[0.1, 0.1])
    left, top, right, bottom = draw_crops((2000, 2000), cfg, np.random.default_rng(0)).boxes.T
    np.testing.assert_allclose((right - left) * (bottom - top) / 2000**2, [0.5] + [0.1] * 50, rtol=5e-3)


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10)])
def test_an_image_too_long_for_any_try_gets_torchvisions_central_box(size):
    theirs = RandomResizedCrop.get_params(torch.empty(3, *size), [0.9, 1.0], [3 / 4, 4 / 3])
    cfg = ViewsConfig(locals=0, global_scale=[0.9, 1.0])
    left, top, right, bottom = draw_crops(size, cfg, np.random.default_rng(0)).boxes[0]
    assert (top, left, bottom - top, right - left) == theirs


def test_flips_follow_their_probability():
    def share(p: float) -> float:
        return draw_crops((32, 32), ViewsConfig(locals=3999, flip=p), np.random.default_rng(0)).flips.mean()

    assert share(0.0) == 0
    assert share(1.0) == 1
    assert share(0.25) == pytest.approx(0.25, abs=0.02)


def test_the_same_generator_state_gives_the_same_crops_and_takes_the_same_draws_for_any_image():
    one, two = np.random.default_rng(5), np.random.default_rng(5)
    first, second = draw_crops((90, 70), ViewsConfig(), one), draw_crops((90, 70), ViewsConfig(), two)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    draw_crops((64, 64), ViewsConfig(), one)
    draw_crops((10, 1000), ViewsConfig(), two)
    assert one.random() == two.random()


def each_crop(image: np.ndarray, seed: int):
    """(box as torchvision's top, left, height, width; flip; the crop's pixels) of one global and two local crops."""
    crops = draw_crops(image.shape[:2], ViewsConfig(24, 10, 2, local_scale=[0.05, 0.4]), np.random.default_rng(seed))
    global_, local = apply_crops(image, crops)
    for (left, top, right, bottom), flip, pixels in zip(
        crops.boxes.astype(int).tolist(), crops.flips, [global_, *local]
    ):
        yield (top, left, bottom - top, right - left), flip, pixels


@steady
@given(height=st.integers(2, 90), width=st.integers(2, 90), seed=st.integers(0, 1000))
def test_pixels_are_torchvisions_resized_crop(height, width, seed):
    image = picture(height, width, seed)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for box, flip, pixels in each_crop(image, seed):
        expected = resized_crop(tensor, *box, [pixels.shape[1]] * 2, InterpolationMode.BICUBIC, antialias=True)
        np.testing.assert_array_equal(pixels, hflip(expected) if flip else expected)


@pytest.mark.parametrize("size", [(30, 30), (64, 64), (97, 131), (240, 180)])
def test_pixels_are_pillows_to_rounding(size):
    image = (60 + picture(*size) * 0.5).astype(np.uint8)  # away from black and white, where overshoot is clipped midway
    for box, flip, pixels in each_crop(image, 0):
        expected = resized_crop(Image.fromarray(image), *box, [pixels.shape[1]] * 2, InterpolationMode.BICUBIC)
        expected = np.asarray(hflip(expected) if flip else expected).transpose(2, 0, 1)
        difference = np.abs(pixels.astype(int) - expected)
        assert difference.max() <= 2  # both round twice, to 8 bits
        assert difference.mean() < 0.4


def test_a_read_only_or_mirrored_image_is_cut_like_any_other():
    image = picture(40, 30)
    crops = draw_crops((40, 30), ViewsConfig(16, 8, 1), np.random.default_rng(0))
    expected = apply_crops(image, crops)[0]
    frozen = image.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(apply_crops(frozen, crops)[0], expected)
    np.testing.assert_array_equal(apply_crops(image[:, ::-1].copy()[:, ::-1], crops)[0], expected)


def test_no_locals_gives_an_empty_array_of_the_right_shape():
    global_, local = apply_crops(picture(40, 40), draw_crops((40, 40), ViewsConfig(16, 8, 0), np.random.default_rng(0)))
    assert global_.shape == (3, 16, 16)
    assert global_.dtype == np.uint8
    assert local.shape == (0, 3, 8, 8)


def test_boxes_are_scaled_to_a_smaller_decoding():
    y, x = np.mgrid[:200, :160]
    image = np.stack([127 + 100 * np.sin(x / 25), 127 + 100 * np.cos(y / 30), x * 1.5], axis=2).astype(np.uint8)
    crops = Crops((200, 160), np.array([[21.0, 30.0, 121.0, 151.0], [3, 5, 63, 65]]), np.array([False, True]), 32, 16)
    small = np.asarray(Image.fromarray(image).resize((80, 50), Image.Resampling.BOX))
    for whole, scaled in zip(apply_crops(image, crops), apply_crops(small, crops)):
        assert np.abs(whole.astype(int) - scaled).max() <= 9
    shifted = Crops((200, 160), crops.boxes + 8, crops.flips, 32, 16)  # the comparison would see a misplaced box
    assert np.abs(apply_crops(image, shifted)[0].astype(int) - apply_crops(small, crops)[0]).max() > 15


@pytest.mark.parametrize(
    ("boxes", "scale"),
    [
        ([[0, 0, 448, 448], [0, 0, 100, 200]], 0.5),  # 224 / 448 asks for more than 40 / 100
        ([[0, 0, 2240, 2000], [0, 0, 50, 60]], 0.8),  # 40 / 50
        ([[0, 0, 100, 100], [0, 0, 50, 60]], 1.0),  # already enlarged
    ],
)
def test_least_scale_is_where_the_first_crop_would_be_enlarged(boxes, scale):
    crops = Crops((4000, 4000), np.array(boxes, dtype=float), np.zeros(2, dtype=bool), 224, 40)
    assert crops.least_scale() == pytest.approx(scale)


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))])
def test_pixels_that_are_not_uint8_rgb_are_refused(image):
    crops = draw_crops((8, 8), ViewsConfig(8, 4, 1), np.random.default_rng(0))
    with pytest.raises(ValueError, match="uint8 image"):
        apply_crops(image, crops)
