import numpy as np
import pytest
import torch
from PIL import Image

from distill.evals.pictures import legend, overlay, palette, pca_maps, principal_axes, segmentation_panels


def test_axes_are_those_of_a_singular_value_decomposition():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(300, 6, generator=generator).double() * torch.tensor([5, 3, 2, 1, 0.5, 0.1]) + 4
    mean, axes = principal_axes(tokens, 3)
    torch.testing.assert_close(mean, tokens.mean(0))
    _, _, right = np.linalg.svd((tokens - mean).numpy(), full_matrices=False)
    np.testing.assert_allclose(np.abs(axes.T.numpy()), np.abs(right[:3]), atol=1e-9)
    for axis in axes.T:
        assert axis[axis.abs().argmax()] > 0


def test_axes_do_not_depend_on_the_sign_the_solver_picks():
    tokens = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(principal_axes(tokens, 3)[1], principal_axes(tokens.flip(0), 3)[1])
    assert principal_axes(tokens[:, :2], 3)[1].shape == (2, 3)
    assert principal_axes(tokens[:, :2], 3)[1][:, 2].eq(0).all()


def test_maps_are_shared_over_images_and_as_large_as_them(stub, paint):
    grids = [np.repeat([[0, 0, 1, 1]], 4, 0), np.repeat([[1, 1, 2, 2]], 6, 0)]
    images = [Image.fromarray(paint(g, 4)) for g in grids]
    table = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    first, second = pca_maps(stub(table), images, 16)
    assert first.shape == (16, 16, 3) and second.shape == (24, 16, 3)
    assert first.dtype == np.uint8
    assert (first[:, 8:] == second[0, 0]).all()  # class 1 has one colour in both
    assert len(np.unique(first.reshape(-1, 3), axis=0)) == 2
    assert (first[0, 0] != first[0, 15]).any() and (second[0, 0] != second[0, 15]).any()
    again = pca_maps(stub(table), images, 16)
    assert np.array_equal(again[0], first) and np.array_equal(again[1], second)


def test_maps_of_the_value_path_and_of_odd_sizes(stub, paint):
    image = Image.fromarray(paint(np.repeat([[0, 0, 1, 1, 2]], 5, 0), 3))  # 15 x 15, patch 4
    model = stub(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), value_shift=1)
    final = pca_maps(model, [image], 16)[0]
    value = pca_maps(model, [image], 16, values=True, smooth=True)[0]
    assert final.shape == value.shape == (15, 15, 3)
    assert not np.array_equal(final, value)


def test_a_constant_model_gives_a_picture(stub, paint):
    image = Image.fromarray(paint(np.zeros((4, 4), int), 4))
    assert pca_maps(stub(torch.ones(5, 8)), [image], 16)[0].shape == (16, 16, 3)


def test_panels_show_truth_and_both_segmentations(stub, arrays, paint):
    grid = np.repeat([[0, 0, 1, 1]], 4, 0)
    mask = np.kron(grid, np.ones((4, 4), int))
    mask[:, 0] = 255
    dataset = arrays([paint(grid, 4)] * 2, [mask] * 2)
    model = stub(torch.eye(5), value_shift=2).train()
    panel = segmentation_panels(model, dataset, [1], alpha=1)[0]
    colours = palette(5)
    assert np.array_equal(panel.image, paint(grid, 4))
    assert np.array_equal(panel.final, colours[np.kron(grid, np.ones((4, 4), int))])
    assert np.array_equal(panel.value, colours[np.kron(grid + 2, np.ones((4, 4), int))])
    assert np.array_equal(panel.truth[:, 1:], panel.final[:, 1:])
    assert (panel.truth[:, 0] == 128).all()
    assert panel.classes == [0, 1, 2, 3]
    assert model.training


def test_overlay_mixes():
    image = np.full((1, 2, 3), 100, np.uint8)
    mixed = overlay(image, np.array([[0, 255]]), np.array([[200, 0, 100]], np.uint8), alpha=0.25)
    assert mixed.tolist() == [[[125, 75, 100], [107, 107, 107]]]


@pytest.mark.parametrize("count", [1, 19, 60])
def test_colours_differ(count):
    colours = palette(count)
    assert colours.shape == (count, 3) and colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == count
    assert np.array_equal(palette(count + 5)[:count], colours)


def test_legend_has_every_colour_and_grows_in_rows():
    colours = palette(12)
    names = [f"class {i}" for i in range(12)]
    picture = legend(names, colours, width=200)
    assert picture.width == 200 and picture.height > 18
    pixels = {tuple(p) for p in np.array(picture).reshape(-1, 3)}
    assert {tuple(int(v) for v in c) for c in colours} <= pixels
