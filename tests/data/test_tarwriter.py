import errno
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from distill.data import tarwriter
from distill.data.decode import Picture
from distill.data.shards import ShardSource
from distill.data.tarwriter import Item, Shaping, write_shard

KEEP = Shaping()


def put(folder, name, data):
    (folder / name).write_bytes(data)
    return str(folder / name)


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def write(tmp_path, items, shaping=KEEP):
    steps = []
    written = write_shard(tmp_path / "out.tar", items, shaping, lambda: steps.append(1))
    assert len(steps) == len(items)
    return written, ShardSource([str(tmp_path / "out.tar")], masks=True) if written.samples else None


def test_original_bytes_are_kept(make, tmp_path):
    formats = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
    data = {suffix: make.image(1, format=format) for suffix, format in formats.items()}
    items = [
        Item(f"ü/{suffix}", put(tmp_path, f"x.{suffix}", data[suffix]), {"web": ["a ä"], "alt": ["b", "c"]})
        for suffix in data
    ]
    written, source = write(tmp_path, items)
    assert (written.samples, written.problems) == (3, [])
    assert [source[n].image for n in range(3)] == list(data.values())
    assert [source[n].key for n in range(3)] == ["ü/jpg", "ü/png", "ü/webp"]
    assert source[0].captions == {"web": ["a ä"], "alt": ["b", "c"]}
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames()[:2] == ["ü/jpg.jpg", "ü/jpg.json"]
        record = json.load(tar.extractfile("ü/jpg.json"))
    assert record == {"web": "a ä", "alt": ["b", "c"], "height": 24, "width": 32}


@pytest.mark.parametrize("max_side", [None, 60])
def test_photographs_of_several_pictures_stay_jpegs(make, tmp_path, max_side):
    first, second = (Image.open(io.BytesIO(make.image(n, (90, 120)))) for n in range(2))
    out = io.BytesIO()
    first.save(out, "MPO", save_all=True, append_images=[second])
    item = Item("k", put(tmp_path, "x.jpg", out.getvalue()), {"web": ["x"]})
    _, source = write(tmp_path, [item], Shaping(max_side, verify=True))
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames()[0] == "k.jpg"
    if max_side is None:
        assert source[0].image == out.getvalue()
    for decoder in ("pillow", "simplejpeg"):
        pixels = Picture(source[0], decoder).decode()
        wanted = np.asarray(first.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BOX))
        assert np.abs(pixels.astype(int) - wanted).mean() < 4


@pytest.fixture
def few_pixels(monkeypatch):
    """Training refuses images of more than 5,000 pixels, and nobody opens one of more than 10,000."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_images_that_training_refuses_are_made_smaller_or_left_out(make, tmp_path, few_pixels, recwarn, format):
    items = []
    for height, width in ((80, 100), (90, 120)):
        out = io.BytesIO()
        Image.new("RGB", (width, height)).save(out, format)
        items.append(Item(str(height), put(tmp_path, str(height), out.getvalue()), {"web": ["x"]}))
    written, source = write(tmp_path, items, Shaping(max_side=50))
    assert Picture(source[0]).decode().shape == (40, 50, 3)
    assert [(p.key, p.reason) for p in written.problems] == [("90", "image of more than 10000 pixels")]
    for shaping in (KEEP, Shaping(max_side=90)):
        written, _ = write(tmp_path, items[:1], shaping)
        size = "100 x 80" if shaping is KEEP else "90 x 72"
        reason = f"image of more than 5000 pixels ({size}: make it smaller with --max-side)"
        assert [p.reason for p in written.problems] == [reason]
    assert not [warning for warning in recwarn if "exceeds limit" in str(warning.message)]


def test_bytes_are_deterministic(make, tmp_path):
    image = put(tmp_path, "x.jpg", make.image(1, (90, 120)))
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        items = [Item("k", image, {"b": ["2"], "a": ["1"]} if name == "a" else {"a": ["1"], "b": ["2"]})]
        written, _ = write(tmp_path / name, items, Shaping(max_side=50))
        data = (tmp_path / name / "out.tar").read_bytes()
        assert (written.bytes, written.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        found.append(data)
    assert found[0] == found[1]
    with tarfile.open(tmp_path / "a" / "out.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_max_side(make, tmp_path, format):
    large, small = make.image(1, (90, 120), format), make.image(2, (30, 40), format)
    items = [Item("l", put(tmp_path, "l", large), {"web": ["x"]}), Item("s", put(tmp_path, "s", small), {"web": ["x"]})]
    _, source = write(tmp_path, items, Shaping(max_side=60))
    shrunk = Image.open(io.BytesIO(source[0].image))
    assert (shrunk.size, shrunk.format) == ((60, 45), format)
    assert source[1].image == small
    full = Image.open(io.BytesIO(large)).convert("RGB").resize((60, 45), Image.Resampling.BOX)
    assert np.abs(np.asarray(full).astype(int) - np.asarray(shrunk.convert("RGB"))).mean() < 4


def test_max_side_keeps_images_upright(tmp_path):
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, :60] = 255  # left half white
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif, quality=95)
    _, source = write(
        tmp_path, [Item("k", put(tmp_path, "x.jpg", out.getvalue()), {"web": ["x"]})], Shaping(max_side=40)
    )
    found = Image.open(io.BytesIO(source[0].image))
    assert found.size == (20, 40)
    assert found.getexif().get(0x0112, 1) == 1
    upper, lower = np.asarray(found)[:18], np.asarray(found)[22:]
    assert upper.min() > 200
    assert lower.max() < 50


def test_other_formats_become_png(tmp_path):
    pixels = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "BMP")
    _, source = write(tmp_path, [Item("k", put(tmp_path, "x.bmp", out.getvalue()), {"web": ["x"]})])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(source[0].image))), pixels)


def test_unreadable_images_are_left_out_and_listed(make, tmp_path):
    whole = make.image(1)
    items = [
        Item("gone", str(tmp_path / "gone.jpg"), {"web": ["x"]}),
        Item("text", put(tmp_path, "t.jpg", b"hello"), {"web": ["x"]}),
        Item("cut", put(tmp_path, "c.jpg", whole[:-20]), {"web": ["x"]}),
        Item("good", put(tmp_path, "g.jpg", whole), {"web": ["x"]}),
    ]
    written, source = write(tmp_path, items, Shaping(verify=True))
    assert (written.samples, source[0].key) == (1, "good")
    assert [(p.key, p.reason.split(" (")[0]) for p in written.problems] == [
        ("gone", "cannot read"),
        ("text", "corrupt image"),
        ("cut", "corrupt image"),
    ]
    assert [p.key for p in write(tmp_path, items)[0].problems] == ["gone", "text"]  # without --verify: headers only


def test_masks(make, tmp_path):
    image = put(tmp_path, "x.jpg", make.image(1, (60, 80)))
    indices = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 20, 0), 20, 1)
    mask = put(tmp_path, "m.png", png(indices))
    other = put(tmp_path, "o.png", png(indices[:, :40]))
    text = {"web": ["x"]}
    _, source = write(tmp_path, [Item("k", image, text, mask), Item("n", image, text)])
    assert np.array_equal(source[0].mask, indices)
    assert source[1].mask is None
    _, source = write(tmp_path, [Item("k", image, text, mask)], Shaping(max_side=40))
    assert np.array_equal(source[0].mask, indices[::2, ::2])
    written, _ = write(tmp_path, [Item("k", image, text, other)], Shaping(max_side=40))
    assert "mask does not fit (mask 40 x 60, image 40 x 30)" in written.problems[0].reason


def test_masks_that_training_could_not_read_are_told_while_packing(make, tmp_path):
    image = put(tmp_path, "x.jpg", make.image(1))
    items = [
        Item("colours", image, {"web": ["x"]}, put(tmp_path, "m.png", make.image(1, format="PNG"))),
        Item("cut", image, {"web": ["x"]}, put(tmp_path, "c.png", png(np.zeros((24, 32), np.uint8))[:-30])),
    ]
    written, _ = write(tmp_path, items)
    assert [p.key for p in written.problems] == ["colours", "cut"]
    assert written.problems[0].reason == "mask.png has mode RGB; allowed: greyscale or palette"


def test_masks_of_many_classes_are_made_smaller(make, tmp_path):
    image = put(tmp_path, "x.jpg", make.image(1, (48, 64)))
    mask = put(tmp_path, "m.png", png(np.full((48, 64), 300, np.uint16)))
    _, source = write(tmp_path, [Item("k", image, {"web": ["x"]}, mask)], Shaping(max_side=32))
    assert source[0].mask.shape == (24, 32)
    assert (source[0].mask == 300).all()


def test_a_failed_write_leaves_nothing(make, tmp_path, monkeypatch):
    image = put(tmp_path, "x.jpg", make.image(1))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarwriter.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, [Item("k", image, {"web": ["x"]})])
    assert [path.name for path in tmp_path.iterdir()] == ["x.jpg"]
