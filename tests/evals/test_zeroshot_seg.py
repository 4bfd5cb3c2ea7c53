import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.errors import UserError
from distill.evals import features, segment, zeroshot_seg
from distill.evals.per_image import resampled
from distill.evals.segment import argmax_raised, best_raised, best_slide, contenders, cosine, together, windows
from distill.evals.zeroshot_seg import ZeroShotSegmentation


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


def odd_images(count=5, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(37, 53), (53, 37), (37, 53), (16, 16), (41, 90)][:count]
    images = [rng.integers(0, 60, (*s, 3), dtype=np.uint8) for s in sizes]
    masks = [rng.choice([0, 1, 2, 3, 4, 255], s) for s in sizes]
    return images, masks


# What follows is the procedure of the published notebook, written again from its description: one image at a time, one
# window at a time, whole volumes of classes.


def notebook_image(image, size):
    """uint8 `[H, W, 3]` -> `[3, h, w]`: the short side to `size`, the other's fraction cut off."""
    h, w = image.shape[:2]
    if w < h:
        new = (int(size * h / w), size)
    else:
        new = (size, int(size * w / h))
    if min(h, w) != size:
        image = np.array(Image.fromarray(image).resize((new[1], new[0]), Image.Resampling.BICUBIC))
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def notebook_cosines(model, image, text, values):
    """`[3, h, w]` -> cosines `[K, rows, columns]`; a size that the patch does not divide is raised to one it does."""
    patch = model.image.patch
    up = [math.ceil(side / patch) * patch for side in image.shape[1:]]
    image = image[None]
    if up != list(image.shape[2:]):
        image = F.interpolate(image, size=up, mode="bicubic", align_corners=False)
    patches = F.normalize(model.encode_image(image, values)[1][0], dim=-1)
    return torch.einsum("kd,hwd->khw", text, patches)


def notebook_whole(model, image, text, values, shape):
    cosines = notebook_cosines(model, image, text, values)
    return F.interpolate(cosines[None], size=shape, mode="bilinear", align_corners=False)[0]


def notebook_slide(model, image, text, values, shape, side, stride):
    _, height, width = image.shape
    total, cover = torch.zeros(len(text), height, width), torch.zeros(height, width)
    for row in range(max(height - side + stride - 1, 0) // stride + 1):
        for column in range(max(width - side + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + side, height), min(column * stride + side, width)
            top, left = max(bottom - side, 0), max(right - side, 0)
            window = image[:, top:bottom, left:right]
            cosines = notebook_cosines(model, window, text, values)
            cosines = F.interpolate(cosines[None], size=window.shape[1:], mode="bilinear", align_corners=False)[0]
            total[:, top:bottom, left:right] += cosines.softmax(dim=0)
            cover[top:bottom, left:right] += 1
    return F.interpolate((total / cover)[None], size=shape, mode="bilinear", align_corners=False)[0]


def ours(monkeypatch, model, dataset, **options):
    """Scores and labels that the task finds: `{kind: [(highest score, labels) of each image]}`."""
    found = {}

    def count(self, kind, batch, at, labels):
        found.setdefault(kind, {})[batch.examples[at].index] = labels
        return original(self, kind, batch, at, labels)

    original = ZeroShotSegmentation._count
    monkeypatch.setattr(ZeroShotSegmentation, "_count", count)
    result = zeroshot_seg.run(model, dataset, **options)
    return result, {kind: [labels[at] for at in sorted(labels)] for kind, labels in found.items()}


@pytest.mark.parametrize("size", [16, 30])
def test_whole_images_are_labelled_as_by_the_notebook(monkeypatch, stub, arrays, size):
    images, masks = odd_images()
    model = stub(random_table(), patch=4, mixing=random_table(3, seed=1))
    result, labels = ours(monkeypatch, model, arrays(images, masks, size=size), chunk=2)
    text = F.normalize(random_table(), dim=-1)
    for kind, values in (("final", False), ("value", True)):
        expected = [
            notebook_whole(model, notebook_image(image, size), text, values, mask.shape).argmax(0)
            for image, mask in zip(images, masks)
        ]
        assert all(torch.equal(*pair) for pair in zip(labels[kind], expected, strict=True))
        assert result.metrics[f"miou_{kind}"] == pytest.approx(naive_miou(expected, masks, 5, 255), abs=1e-12)
    assert result.protocol["fit"] == "short"


@pytest.mark.parametrize(("size", "window", "stride"), [(30, 16, 10), (32, 32, 24), (32, 32, 16), (30, None, None)])
def test_windows_are_labelled_as_by_the_notebook(monkeypatch, stub, arrays, size, window, stride):
    """The notebook's 448/336 and TCL's 448/224 in small, and windows that no patch divides."""
    images, masks = odd_images()
    model = stub(random_table(), patch=4, mixing=random_table(3, seed=1))
    options = {"mode": "slide", "window": window, "stride": stride}
    result, labels = ours(monkeypatch, model, arrays(images, masks, size=size), **options)
    text = F.normalize(random_table(), dim=-1)
    side, step = window or 32, stride or 24
    for kind, values in (("final", False), ("value", True)):
        expected = [
            notebook_slide(model, notebook_image(image, size), text, values, mask.shape, side, step).argmax(0)
            for image, mask in zip(images, masks)
        ]
        assert all(torch.equal(*pair) for pair in zip(labels[f"{kind}_slide"], expected, strict=True))
        assert result.metrics[f"miou_{kind}_slide"] == pytest.approx(naive_miou(expected, masks, 5, 255), abs=1e-12)
    assert "miou_final" not in result.metrics
    assert (result.protocol["window"], result.protocol["stride"]) == (side, step)


@pytest.mark.parametrize("shape", [(56, 56), (56, 83), (97, 61)])
@pytest.mark.parametrize("strip", [1, 5000, 1 << 22])
def test_scores_equal_the_notebooks(tiny_model, shape, strip):
    """A real model of patch 16: highest cosines and shares to 1e-5, labels exactly, whole and in windows of 48."""
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    text = F.normalize(torch.randn(23, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    size = (101, 75)
    with torch.no_grad():
        _, _, values = features.encode(tiny_model, image[None], values=True)
        expected = notebook_whole(tiny_model, image, text, True, size).max(0)
        found = best_raised(cosine(values, text), size, 4)
        torch.testing.assert_close(found[0][0], expected[0], rtol=0, atol=1e-5)
        assert torch.equal(found[1][0], expected[1])
        boxes = windows(shape, 48, 36)
        crops = torch.stack([image[:, top:bottom, left:right] for top, left, bottom, right in boxes])
        scores = cosine(features.encode_parts(tiny_model, crops, values=True)[2], text)
        expected = notebook_slide(tiny_model, image, text, True, size, 48, 36).max(0)
        found = best_slide(scores, boxes, shape, size, strip)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
        assert torch.equal(found[1], expected[1])


def test_a_background_below_a_threshold(stub, arrays, paint):
    """Class 0 is background. Its text is not asked for; a patch that is like no other class belongs to it."""
    grid = np.repeat([[1, 2, 0, 0]], 4, axis=0).repeat(2, axis=1)  # the table's row 0 is like nothing else
    names = ["background", "dog", "tree", "sky", "road"]
    mask = np.kron(grid, np.ones((4, 4), int))
    dataset = arrays([paint(grid, 4)], [mask], class_names=names, prompt_names=["backdrop cat", *names[1:]])
    model = stub(torch.eye(5), patch=4)
    model.temperature = torch.tensor(0.1)
    result = zeroshot_seg.run(model, dataset, background="threshold")
    assert not any("cat" in text for text in model.texts)
    assert result.metrics["miou_final"] > 0.9 and result.counts["classes"] == 5
    assert result.details["temperature"] == pytest.approx(0.1) and result.protocol["threshold"] == 0.5
    as_class = zeroshot_seg.run(stub(torch.eye(5), patch=4), dataset)
    assert as_class.metrics["miou_final"] == 1 and "temperature" not in as_class.details
    nothing = zeroshot_seg.run(model, dataset, background="threshold", threshold=1.0)
    assert nothing.details["iou_final"]["dog"] == 0 and nothing.details["iou_final"]["background"] == 0.5
    slide = zeroshot_seg.run(model, dataset, background="threshold", mode="slide", window=16, stride=8)
    assert slide.metrics["miou_final_slide"] > 0.9
    model.temperature = torch.tensor(0.05)  # another model's: the two can be compared
    assert zeroshot_seg.run(model, dataset, background="threshold").protocol == result.protocol


def test_the_threshold_is_on_the_share_of_a_softmax_over_the_temperature(stub, arrays, paint):
    rng = np.random.default_rng(3)
    images, masks = [rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)], [rng.integers(0, 5, (16, 16))]
    names = ["background", "dog", "tree", "sky", "road"]
    dataset = arrays(images, masks, class_names=names, prompt_names=["cat", *names[1:]])
    model = stub(random_table(), patch=4, mixing=random_table(3, seed=1))
    model.temperature = torch.tensor(0.5)
    result = zeroshot_seg.run(model, dataset, background="threshold", threshold=0.4)
    cosines = notebook_cosines(model, notebook_image(images[0], 16), F.normalize(random_table()[1:], dim=-1), False)
    shares = F.interpolate((cosines / 0.5).softmax(0)[None], (16, 16), mode="bilinear", align_corners=False)[0]
    expected = torch.cat([torch.full((1, 16, 16), 0.4), shares]).argmax(0)
    assert 0 < (expected == 0).float().mean() < 1
    assert result.metrics["miou_final"] == pytest.approx(naive_miou([expected.numpy()], masks, 5, 255))


def test_one_path_alone(stub, arrays):
    images, masks = odd_images(2)
    model = stub(random_table(), patch=4, mixing=random_table(3, seed=1))
    both = zeroshot_seg.run(model, arrays(images, masks), mode="both", window=16, stride=8)
    for kind, other in (("final", "value"), ("value", "final")):
        one = zeroshot_seg.run(model, arrays(images, masks), paths=kind, mode="both", window=16, stride=8)
        assert one.metrics[f"miou_{kind}"] == both.metrics[f"miou_{kind}"]
        assert one.metrics[f"miou_{kind}_slide"] == both.metrics[f"miou_{kind}_slide"]
        assert not any(other in name for name in one.metrics)


def test_each_image_keeps_what_a_bootstrap_needs(stub, arrays):
    images, masks = odd_images()
    result = zeroshot_seg.run(stub(random_table(), mixing=random_table(3, seed=1)), arrays(images, masks), mode="both")
    assert set(result.per_image) == {"miou_final", "miou_value", "miou_final_slide", "miou_value_slide"}
    for name, samples in result.per_image.items():
        assert len(samples["values"]) == 5
        assert resampled(samples, np.ones((1, 5)))[0] == pytest.approx(result.metrics[name])


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


@pytest.mark.parametrize("budget", [1, 17 * 11, 17 * 11 * 9, 10**9])
def test_what_is_raised_at_a_time_is_bounded_and_changes_no_label(monkeypatch, budget):
    scores = torch.randn(5, 9, 3, 5, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(scores, (17, 11), mode="bilinear", align_corners=False).max(1)
    monkeypatch.setattr(segment, "RAISED", budget)
    raised, volumes = segment.raised, []
    monkeypatch.setattr(segment, "raised", lambda part, size: volumes.append(part) or raised(part, size))
    groups = together(list(range(5)), (17, 11), 4)
    assert [at for some in groups for at in some] == list(range(5))
    found = [best_raised(scores[some], (17, 11), 4) for some in groups]
    torch.testing.assert_close(torch.cat([value for value, _ in found]), full.values, rtol=0, atol=1e-6)
    assert torch.equal(torch.cat([label for _, label in found]), full.indices)
    for part in volumes:  # one class of one image is the least there can be
        assert part.shape[:2].numel() == 1 or part.shape[:2].numel() * 17 * 11 <= budget


def test_images_raised_apart_score_as_those_raised_together(monkeypatch, stub, arrays):
    images, masks = odd_images()
    model = stub(random_table(), patch=4, mixing=random_table(3, seed=1))
    at_once = zeroshot_seg.run(model, arrays(images, masks))
    monkeypatch.setattr(segment, "RAISED", 1)
    apart = zeroshot_seg.run(model, arrays(images, masks))
    assert apart.metrics == at_once.metrics and apart.per_image == at_once.per_image


@given(st.integers(0, 10_000), st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_a_class_that_is_left_out_wins_nowhere(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(1, classes, 4, 5, generator=generator) * 0.1 + torch.rand(1, classes, 1, 1, generator=generator)
    kept = contenders(scores)
    for size in ((4, 5), (37, 29), (3, 2)):
        full = F.interpolate(scores, size, mode="bilinear", align_corners=False).argmax(1)
        assert set(full.unique().tolist()) <= set(kept.tolist())
        assert torch.equal(argmax_raised(scores, size, 3), full)


def test_classes_are_left_out_when_others_are_better_everywhere():
    scores = torch.stack([torch.full((3, 3), level) for level in (0.1, 0.5, 0.2)])[None]
    assert contenders(scores).tolist() == [1]


def test_first_of_equal_classes_wins_whatever_the_chunk():
    assert argmax_raised(torch.zeros(1, 6, 2, 2), (4, 4), 2).max() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "slid"}, ["zeroshot_seg.mode", "slid", "slide"]),
        ({"prompts": "tlc"}, ["tlc", "Did you mean 'tcl'?"]),
        ({"mode": "slide", "window": 18}, ["window = 18", "patch, 4"]),
        ({"chunk": 0}, ["chunk = 0", "at least 1"]),
        ({"paths": "values"}, ["zeroshot_seg.paths", "Did you mean 'value'?"]),
        ({"background": "treshold"}, ["zeroshot_seg.background", "Did you mean 'threshold'?"]),
        ({"background": "threshold"}, ["arrays has no class called background", "background=class"]),
        ({"threshold": 2.0}, ["threshold = 2.0", "from 0 to 1"]),
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
