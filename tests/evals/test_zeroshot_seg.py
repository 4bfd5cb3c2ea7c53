import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.errors import UserError
from distill.evals import zeroshot_seg
from distill.evals.zeroshot_seg import argmax_raised, argmax_slide, windows


def stripes(width):
    """Classes of a patch grid that changes along one side only: raising scores bilinearly keeps every pixel's class."""
    return np.arange(width)[None].repeat(4, 0) % 5


def random_table(classes=5, width=8, seed=0):
    return torch.randn(classes, width, generator=torch.Generator().manual_seed(seed))


def test_features_equal_to_the_texts_score_one(stub, arrays, paint):
    grid = stripes(8)
    dataset = arrays([paint(grid, 4)] * 3, [np.kron(grid, np.ones((4, 4), int))] * 3)
    result = zeroshot_seg.run(stub(random_table(), patch=4), dataset)
    assert result.metrics["miou_final"] == result.metrics["miou_value"] == 1
    assert result.metrics["pixel_accuracy_final"] == 1
    assert result.details["iou_final"] == dict.fromkeys(dataset.class_names, 1.0)
    assert result.counts == {"images": 3, "classes": 5, "classes_present": 5, "pixels": 3 * 16 * 32}
    assert (result.task, result.dataset) == ("zeroshot_seg", "arrays")
    assert 0 < result.metrics["miou_chance"] < 0.2


def test_final_tokens_and_value_path_are_scored_apart(stub, arrays, paint):
    """The value path answers with the next class: 0 -> 1 hits nothing, but class 1 is now found where 0 is."""
    grid = np.repeat([[0, 1]], 4, axis=0).repeat(2, axis=1)
    dataset = arrays([paint(grid, 4)], [np.kron(grid, np.ones((4, 4), int))])
    model = stub(torch.eye(5), patch=4, value_shift=1)
    result = zeroshot_seg.run(model, dataset)
    assert result.metrics["miou_final"] == 1
    assert result.metrics["miou_value"] == 0
    iou = result.details["iou_value"]  # classes 3 and 4 occur nowhere
    assert iou == {"cat": 0.0, "dog": 0.0, "tree": 0.0, "sky": None, "road": None}
    assert result.metrics["pixel_accuracy_value"] == 0


def naive_miou(predicted, masks, classes, ignore):
    """Intersections and unions over sets of pixels of all images."""
    truth = np.concatenate([m.ravel() for m in masks])
    guess = np.concatenate([p.ravel() for p in predicted])
    guess, truth = guess[truth != ignore], truth[truth != ignore]
    ious = []
    for c in range(classes):
        union = np.sum((truth == c) | (guess == c))
        if union:
            ious.append(np.sum((truth == c) & (guess == c)) / union)
    return float(np.mean(ious))


def resized(image, size, patch):
    """The resize rule, worked out on its own."""
    h, w = image.shape[:2]
    scale = size / min(h, w)
    new = [int(np.ceil(round(side * scale) / patch) * patch) for side in (h, w)]
    out = Image.fromarray(image).resize((new[1], new[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(out)).permute(2, 0, 1)[None].float() / 255


def odd_images(count=5, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(37, 53), (53, 37), (37, 53), (16, 16), (41, 90)][:count]
    images = [rng.integers(0, 60, (*s, 3), dtype=np.uint8) for s in sizes]
    masks = [rng.choice([0, 1, 2, 3, 4, 255], s) for s in sizes]
    return images, masks


@pytest.mark.parametrize("size", [16, 30])
def test_equals_the_plain_procedure_on_odd_sizes_with_ignore(stub, arrays, size):
    images, masks = odd_images()
    model = stub(random_table(), patch=4, mixing=random_table(3, seed=1))
    result = zeroshot_seg.run(model, arrays(images, masks, size=size), chunk=2)
    text = F.normalize(random_table(), dim=-1)
    for kind, values in (("final", False), ("value", True)):
        predicted = []
        for image, mask in zip(images, masks):
            patches = model.encode_image(resized(image, size, 4), values)[1]
            scores = torch.einsum("bhwd,kd->bkhw", F.normalize(patches, dim=-1), text)
            full = F.interpolate(scores, mask.shape, mode="bilinear", align_corners=False)
            predicted.append(full.argmax(1)[0].numpy())
        assert result.metrics[f"miou_{kind}"] == pytest.approx(naive_miou(predicted, masks, 5, 255), abs=1e-12)


def naive_slide(model, image, shape, text, window, stride):
    """Windows one at a time, softmax over the full volume of classes."""
    _, _, height, width = image.shape
    total, cover = torch.zeros(len(text), height, width), torch.zeros(height, width)
    rows = max(height - window + stride - 1, 0) // stride + 1
    columns = max(width - window + stride - 1, 0) // stride + 1
    for row in range(rows):
        for column in range(columns):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            patches = model.encode_image(image[:, :, top:bottom, left:right])[1]
            scores = (F.normalize(patches, dim=-1) @ text.T).permute(0, 3, 1, 2)
            full = F.interpolate(scores, (bottom - top, right - left), mode="bilinear", align_corners=False)
            total[:, top:bottom, left:right] += full.softmax(1)[0]
            cover[top:bottom, left:right] += 1
    return F.interpolate((total / cover)[None], shape, mode="bilinear", align_corners=False).argmax(1)[0]


def test_sliding_windows_equal_the_plain_procedure(stub, arrays):
    images, masks = odd_images()
    model = stub(random_table(), patch=4, mixing=random_table(3, seed=1))
    result = zeroshot_seg.run(model, arrays(images, masks, size=30), mode="slide", window=16, stride=10, chunk=2)
    text = F.normalize(random_table(), dim=-1)
    predicted = [
        naive_slide(model, resized(image, 30, 4), mask.shape, text, 16, 10).numpy()
        for image, mask in zip(images, masks)
    ]
    assert result.metrics["miou_final_slide"] == pytest.approx(naive_miou(predicted, masks, 5, 255), abs=1e-12)
    assert "miou_final" not in result.metrics
    assert result.protocol["window"] == 16 and result.protocol["stride"] == 10


def test_one_window_gives_the_labels_of_the_whole_image(stub, arrays):
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 60, (32, 32, 3), dtype=np.uint8) for _ in range(4)]
    masks = [rng.integers(0, 5, (32, 32)) for _ in range(4)]
    model = stub(random_table(), mixing=random_table(3, seed=1))
    result = zeroshot_seg.run(model, arrays(images, masks, size=32), mode="both")
    for kind in ("final", "value"):
        assert result.metrics[f"miou_{kind}"] == result.metrics[f"miou_{kind}_slide"]
    assert result.protocol["window"] == 32 and result.protocol["stride"] == 24


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=80, deadline=None)
def test_windows_cover_the_image_and_stay_inside(height, width, window, stride):
    stride = min(stride, window)
    seen = np.zeros((height, width), int)
    for top, left, bottom, right in windows((height, width), window, stride):
        assert 0 <= top < bottom <= height and 0 <= left < right <= width
        assert (bottom - top, right - left) == (min(window, height), min(window, width))
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_argmax_in_chunks_equals_the_full_volume(seed, classes, chunk):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, classes, 3, 5, generator=generator)
    full = F.interpolate(scores, (17, 11), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(argmax_raised(scores, (17, 11), chunk), full)


def test_sliding_argmax_in_chunks_equals_one_chunk():
    scores = torch.rand(4, 7, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1
    boxes = windows((24, 24), 16, 8)
    whole = argmax_slide(scores, boxes, (24, 24), (31, 29), 7)
    assert whole.shape == (31, 29)
    for chunk in (1, 2, 3):
        assert torch.equal(argmax_slide(scores, boxes, (24, 24), (31, 29), chunk), whole)


def test_first_of_equal_classes_wins_whatever_the_chunk():
    assert argmax_raised(torch.zeros(1, 6, 2, 2), (4, 4), 2).max() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "slid"}, ["zeroshot_seg.mode", "slid", "slide"]),
        ({"prompts": "tlc"}, ["tlc", "Did you mean 'tcl'?"]),
        ({"mode": "slide", "window": 18}, ["window = 18", "patch, 4"]),
        ({"chunk": 0}, ["chunk = 0", "at least 1"]),
        ({"windw": 8}, ["windw", "Did you mean 'window'?"]),
        ({"window": "big"}, ["window = 'big'", "int or null"]),
    ],
)
def test_bad_options_name_the_value(stub, arrays, options, words):
    images, masks = odd_images(1)
    with pytest.raises(UserError) as error:
        zeroshot_seg.run(stub(random_table()), arrays(images, masks), **options)
    assert all(word in str(error.value) for word in words)


def test_bad_masks_are_named(stub, arrays):
    images, masks = odd_images(1)
    model = stub(random_table())
    with pytest.raises(UserError, match=r"image 0 is 53x36, its image 53x37"):
        zeroshot_seg.run(model, arrays(images, [masks[0][1:]]))
    with pytest.raises(UserError, match=r"value 5, but the class list has 5 names \(allowed: 0 to 4, and 255 = ignore"):
        zeroshot_seg.run(model, arrays(images, [np.where(masks[0] == 0, 5, masks[0])]))
    with pytest.raises(UserError, match="every pixel"):
        zeroshot_seg.run(model, arrays(images, [np.full_like(masks[0], 255)]))
    with pytest.raises(UserError, match=r"'zeroshot_seg' needs masks, but arrays has only images\. Fix:"):
        zeroshot_seg.run(model, arrays(images))
