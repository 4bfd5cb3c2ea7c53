import json

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from distill.errors import UserError
from distill.evals.datasets import open_dataset
from distill.evals.datasets.navi import normals_of, square_around


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def colour(height=6, width=8):
    return np.full((height, width, 3), 90, np.uint8)


@pytest.fixture
def nyu(tmp_path):
    for split, scene in (("train", "office"), ("test", "bathroom"), ("test", "kitchen")):
        folder = tmp_path / "nyu_depth_v2/official_splits" / split / scene
        save(folder / "rgb_00045.jpg", colour())
        save(folder / "sync_depth_00045.png", np.full((6, 8), 2500, np.uint16))
    save(tmp_path / "nyu_depth_v2/sync/office_0001/rgb_00000.jpg", colour())
    save(tmp_path / "nyu_depth_v2/sync/office_0001/sync_depth_00000.png", np.full((6, 8), 900, np.uint16))
    return tmp_path / "nyu_depth_v2"


def test_nyuv2_folders(nyu):
    depth = np.full((6, 8), 2500, np.uint16)
    depth[0], depth[1] = 0, 12_000  # not known, and too far
    save(nyu / "official_splits/test/bathroom/sync_depth_00045.png", depth)
    dataset = open_dataset(f"nyuv2:{nyu.parent}")
    assert (len(dataset), dataset.size, dataset.has) == (2, 448, {"depth", "a train split"})
    found = dataset.load(0, depth=True).depth
    assert found.dtype == np.float32 and np.array_equal(found[:3, 0], np.float32([0, 0, 2.5]))
    assert len(dataset.train()) == 1
    raw = open_dataset(f"nyuv2:{nyu}?train=sync").train()
    assert raw.load(0, depth=True).depth[0, 0] == np.float32(0.9)


def test_nyuv2_normals_where_there_are_any(nyu):
    dataset = open_dataset(f"nyuv2:{nyu}")
    with pytest.raises(
        UserError, match=r"nyuv2 test has only .* or nyuv2:PATH with normal_\*\.npy \(or \.png\) beside"
    ):
        dataset.require("Task 'normals'", "normals")
    for scene in ("bathroom", "kitchen"):
        array = np.zeros((6, 8, 3), np.float32)
        array[1:] = (0.6, 0, 0.8)
        np.save(nyu / f"official_splits/test/{scene}/normal_00045.npy", array)
    dataset = open_dataset(f"nyuv2:{nyu}")
    assert "normals" in dataset.has
    assert np.allclose(dataset.load(1, normals=True).normals, array)


def test_nyuv2_as_one_file(tmp_path):
    """MATLAB's order: images [N, 3, W, H], depth [N, W, H]."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 6, 8, 3), dtype=np.uint8)
    depth = np.random.default_rng(1).uniform(1, 9, (3, 6, 8)).astype(np.float32)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = pixels.transpose(0, 3, 2, 1)
        file["rawDepths"] = depth.transpose(0, 2, 1)
    (tmp_path / "test.txt").write_text("3\n1\n")
    (tmp_path / "train.txt").write_text("2\n")
    dataset = open_dataset(f"nyuv2:{tmp_path}")
    assert len(dataset) == 2 and len(dataset.train()) == 1
    for index, number in enumerate((2, 0)):
        example = dataset.load(index, depth=True)
        assert np.array_equal(np.array(example.image), pixels[number])
        assert np.array_equal(example.depth, depth[number])
    (tmp_path / "test.txt").write_text("4\n")
    with pytest.raises(UserError, match="Cannot read images of image 4"):
        open_dataset(f"nyuv2:{tmp_path}").image(0)
    (tmp_path / "test.txt").write_text("0\n")
    with pytest.raises(UserError, match=r"test\.txt: '0' is no image number"):
        open_dataset(f"nyuv2:{tmp_path}")


def test_nyuv2_with_its_official_splits(tmp_path):
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.zeros((4, 3, 8, 6), np.uint8)
        file["rawDepths"] = np.arange(1, 5, dtype=np.float32)[:, None, None] * np.ones((8, 6), np.float32)
    splits = {"trainNdxs": np.array([[3], [4]], np.uint16), "testNdxs": np.array([[2], [1]], np.uint16)}
    savemat(tmp_path / "splits.mat", splits)
    dataset = open_dataset(f"nyuv2:{tmp_path}")
    assert [dataset.load(i, depth=True).depth[0, 0] for i in range(len(dataset))] == [2, 1]
    assert [dataset.train().load(i, depth=True).depth[0, 0] for i in range(len(dataset.train()))] == [3, 4]
    (tmp_path / "test.txt").write_text("4\n")  # one's own split wins
    assert open_dataset(f"nyuv2:{tmp_path}").load(0, depth=True).depth[0, 0] == 4
    (tmp_path / "test.txt").unlink()
    savemat(tmp_path / "splits.mat", {"trainNdxs": splits["trainNdxs"]})
    with pytest.raises(UserError, match=r"Cannot read testNdxs in .*splits\.mat"):
        open_dataset(f"nyuv2:{tmp_path}")


@pytest.fixture
def navi(tmp_path):
    root = tmp_path / "navi_v1"
    for thing in ("keyboard", "shoe"):
        for scene in ("multiview_00", "multiview_01", "wild_set"):
            notes = []
            for at in range(5):
                folder = root / thing / scene
                save(folder / f"images/{at:03d}.jpg", colour(20, 30))
                inverse = np.zeros((20, 30), np.uint16)
                inverse[4:14, 6:22] = 65535 * 10 // 500  # half a metre away
                save(folder / f"depth/{at:03d}.png", inverse)
                notes.append({"filename": f"{at:03d}.jpg", "camera": {"focal_length": 40.0}})
            (folder / "annotations.json").write_text(json.dumps(notes))
    (root / "vase/multiview_00/images").mkdir(parents=True)  # has no image in the wild: left out
    return root


def test_navi(navi):
    dataset = open_dataset(f"navi:{navi.parent}")
    assert (len(dataset), len(dataset.train())) == (3, 5)  # every fourth of 2 x 5 and of 4 x 5
    assert dataset.item(1).key == "keyboard/wild_set/images/004.jpg"
    assert dataset.has == {"depth", "normals", "a train split"}
    example = dataset.load(0, depth=True, normals=True)
    assert example.image.size == (16, 16) and example.depth.shape == (16, 16)
    there = example.depth > 0
    assert there.sum() == 10 * 16
    assert np.allclose(example.depth[there], 65535 * 10 / (65535 * 10 // 500) / 1000)
    inner = example.normals[4:12, 1:-1]
    assert np.allclose(inner[1:-1, 1:-1], (0, 0, 1), atol=1e-5)
    assert not example.normals[~there].any()


def ball(height, width, focal, centre, radius):
    """Depth `[H, W]` and normals `[H, W, 3]` (right, up, towards the viewer) of a ball, by its quadratic equation.

    centre: right, up and away, in the unit of the radius. 0 where the ball is not.
    """
    v, u = np.mgrid[:height, :width] + 0.5
    rays = np.stack([(u - width / 2) / focal, (height / 2 - v) / focal, np.ones_like(u)], -1)
    square, along = (rays**2).sum(-1), rays @ centre
    inside = along**2 - square * (centre @ centre - radius**2)
    depth = np.where(inside > 0, (along - np.sqrt(inside.clip(0))) / square, 0)
    normals = (rays * depth[..., None] - centre) / radius * (1, 1, -1)
    return depth, np.where(depth[..., None] > 0, normals, 0)


def test_navi_normals_do_not_show_the_steps_of_the_stored_depth(navi):
    """A ball off the centre, half a metre away, as the files have it: whole steps of 0.4 mm, pixels of a third."""
    centre, radius, focal = np.array([40.0, -30, 580]), 80.0, 1512.0
    exact, _ = ball(1536, 1800, focal, centre, radius)  # three times 512 x 600
    inverse = np.where(exact > 0, 65535 * 10 / exact.clip(1), 0).round().astype(np.uint16)
    scene = navi / "keyboard/wild_set"
    save(scene / "depth/000.png", inverse)
    save(scene / "images/000.jpg", np.tile(np.uint8([[0, 255], [255, 0]]), (768, 900))[..., None].repeat(3, 2))
    notes = [{"filename": "000.jpg", "camera": {"focal_length": focal}}]
    (scene / "annotations.json").write_text(json.dumps(notes))

    example = open_dataset(f"navi:{navi}").load(0, depth=True, normals=True)
    depth, normals = ball(512, 600, focal / 3, centre, radius)
    left, top, right, bottom = square_around(inverse[1::3, 1::3] > 0, scene)
    depth, normals = depth[top:bottom, left:right], normals[top:bottom, left:right]
    assert example.image.size == (right - left, bottom - top)
    there = example.depth > 0
    assert np.abs(example.depth - depth / 1000)[there & (depth > 0)].max() < 0.5e-3
    inner = there.copy()  # the rim's neighbours are behind it
    for axis in (0, 1):
        for shift in (-2, 2):
            inner &= np.roll(there, shift, axis)
    cosine = (example.normals * normals).sum(-1)[inner].clip(-1, 1)
    assert np.sqrt((np.degrees(np.arccos(cosine)) ** 2).mean()) < 6
    grey = np.array(example.image.convert("L"))
    assert grey.std() < 10 and 110 < grey.mean() < 150  # antialiased: of black and white pixels


def test_navi_images_and_depth_of_different_sizes_are_told(navi):
    save(navi / "keyboard/wild_set/images/000.jpg", colour(30, 20))
    with pytest.raises(UserError, match=r"000\.png is 30x20, its image 20x30\. Download both again"):
        open_dataset(f"navi:{navi}").load(0, depth=True)


def test_navi_folders_as_version_1_5_names_them(navi):
    """Written with dashes, and with the camera's name; videos, which it adds, are not read."""
    for path in sorted(navi.glob("*/multiview_*")):
        path.rename(path.with_name(f"{path.name.replace('_', '-')}-pixel_5"))
    (navi / "shoe/video-00-pixel_5/images").mkdir(parents=True)
    save(navi / "shoe/video-00-pixel_5/images/000.jpg", colour(20, 30))
    navi.rename(navi.with_name("navi_v1.5"))
    train = open_dataset(f"navi:{navi.parent}").train()
    keys = [train.item(at).key for at in range(len(train))]
    assert len(keys) == 5 and all("/multiview-0" in key for key in keys)
    assert keys[0] == "keyboard/multiview-00-pixel_5/images/000.jpg"


def test_the_square_stays_in_the_picture(tmp_path):
    def square(top, left, bottom, right, shape=(20, 30)):
        there = np.zeros(shape, bool)
        there[top:bottom, left:right] = True
        return square_around(there, tmp_path / "x.png")

    assert square(4, 6, 14, 22) == (6, 1, 22, 17)  # left, top, right, bottom: 16 px, the object in the middle
    assert square(0, 0, 4, 10) == (0, 0, 10, 10)
    assert square(16, 25, 20, 30) == (25, 15, 30, 20)
    assert square(5, 2, 9, 28) == (5, 0, 25, 20)  # wider than the picture is high: its middle
    with pytest.raises(UserError, match=r"x\.png shows no object"):
        square(0, 0, 0, 0)


@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.3, 0.0), (0.0, -0.5), (0.2, 0.4)])
def test_normals_of_a_plane(slope):
    """The plane z = 2 + a x + b y in camera coordinates (x right, y up, z away); its normal is (a, b, 1) / length."""
    a, b = slope
    focal, height, width = 50.0, 12, 16
    v, u = np.mgrid[:height, :width] + 0.5
    x, y = (u - width / 2) / focal, (height / 2 - v) / focal  # per unit of depth
    depth = 2 / (1 - a * x - b * y)
    found = normals_of(depth.astype(np.float32), focal)
    expected = np.array([a, b, 1]) / np.sqrt(a * a + b * b + 1)
    assert np.allclose(found[1:-1, 1:-1], expected, atol=1e-3)
    assert not found[0].any() and not found[:, -1].any()
