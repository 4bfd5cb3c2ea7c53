import json

import numpy as np
import pytest
from PIL import Image

from distill.errors import UserError
from distill.evals.datasets import open_dataset

CLASSES = '{"classes": ["sky", "road"], %s}'


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def grey(value, height=6, width=8):
    return np.full((height, width, 3), value)


@pytest.fixture
def masks_folder(tmp_path):
    """Six images in two splits, one in a sub-folder; class names with words for prompts, 200 = ignore."""
    root = tmp_path / "seg"
    for at, stem in enumerate(["a", "b", "c", "d", "city/e", "city/f"]):
        save(root / "images" / f"{stem}.png", grey(at * 10))
        save(root / "masks" / f"{stem}.png", np.full((6, 8), 200 if at == 3 else at % 2))
    (root / "train.txt").write_text("a\nb\n")
    (root / "val.txt").write_text("d\ncity/e\nc\n")
    content = {"classes": ["sky", "road"], "ignore_index": 200, "prompt_names": {"road": "a grey road"}}
    (root / "classes.json").write_text(json.dumps(content))
    return root


def test_masks_layout(masks_folder):
    dataset = open_dataset(f"folder:{masks_folder}")
    assert dataset.name == "folder:seg val"
    assert (len(dataset), dataset.size, dataset.ignore) == (3, 224, 200)
    assert dataset.class_names == ["sky", "road"] and dataset.prompt_names == ["sky", "a grey road"]
    assert [np.array(dataset.image(i))[0, 0, 0] for i in range(3)] == [30, 40, 20]  # the order of val.txt
    assert [int(dataset.mask(i)[0, 0]) for i in range(3)] == [200, 0, 0]
    assert dataset.prompts == "tcl"
    train = dataset.train()
    assert train is dataset.train() and len(train) == 2 and np.array(train.image(1))[0, 0, 0] == 10
    assert train.class_names == dataset.class_names
    assert dataset.has == {"masks", "a train split"}
    assert len(open_dataset(f"folder:{masks_folder}?split=train")) == 2
    assert len(open_dataset(f"folder:{masks_folder}", split="train")) == 2


def test_lists_of_stems_with_spaces_and_other_text_files(masks_folder):
    for kind in ("images", "masks"):
        (masks_folder / kind / "a.png").rename(masks_folder / kind / "my photo.png")
    (masks_folder / "train.txt").write_bytes(b"my photo\r\nb\r\n\r\n")
    (masks_folder / "half.txt").write_text("\nmy photo\n")
    (masks_folder / "README.txt").write_text("The masks of a city.\nval.txt lists them.\n")
    (masks_folder / "notes.txt").write_bytes("Straße".encode("latin-1"))
    (masks_folder / "empty.txt").write_text("")
    dataset = open_dataset(f"folder:{masks_folder}")
    assert dataset.name == "folder:seg val"
    assert [dataset.train().item(i).key for i in range(2)] == ["my photo", "b"]
    assert len(open_dataset(f"folder:{masks_folder}?split=half")) == 1
    with pytest.raises(UserError, match=r"Unknown split of .*seg 'README'.* Allowed: half, train, val"):
        open_dataset(f"folder:{masks_folder}?split=README")
    for name in ("train", "val", "half"):
        (masks_folder / f"{name}.txt").unlink()
    assert open_dataset(f"folder:{masks_folder}").name == "folder:seg all"


def test_masks_without_lists_are_one_split(masks_folder):
    for split in ("train", "val"):
        (masks_folder / f"{split}.txt").unlink()
    dataset = open_dataset(f"folder:{masks_folder}", samples=3, size=64)
    assert dataset.name == "folder:seg all" and dataset.size == 64
    assert [dataset.item(i).key for i in range(3)] == ["a", "c", "city/f"]  # every second of the sorted six
    with pytest.raises(UserError, match="Fitting needs a train split"):
        dataset.train()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r: (r / "masks/d.png").unlink(), r"The mask .*d\.png is missing\. Found in .*masks: city/, a\.png"),
        (lambda r: (r / "classes.json").unlink(), r"no classes\.json.*Found: images/, masks/"),
        (lambda r: (r / "classes.json").write_text("{"), r"Cannot read .*classes\.json"),
        (lambda r: (r / "classes.json").write_text("[]"), "holds no class names"),
        (lambda r: (r / "classes.json").write_text('["sky", "sky"]'), "names the class 'sky' twice"),
        (
            lambda r: (r / "classes.json").write_text('{"classes": ["sky"], "prompt_names": {"tree": "x"}}'),
            "prompt_names has 'tree'",
        ),
        (
            lambda r: (r / "classes.json").write_text(CLASSES % '"ignore_index": null'),
            "ignore_index = null; it must be a",
        ),
        (
            lambda r: (r / "classes.json").write_text(CLASSES % '"ignore_index": "none"'),
            'ignore_index = "none"; it must',
        ),
        (
            lambda r: (r / "classes.json").write_text(CLASSES % '"prompt_names": ["x"]'),
            r'prompt_names = \["x"\]; it must',
        ),
        (
            lambda r: (r / "classes.json").write_text(CLASSES % '"prompt_names": {"sky": 1}'),
            "prompt_names = .* it must",
        ),
        (
            lambda r: (r / "classes.json").write_text(CLASSES % '"colours": [1, 2]'),
            "colours has 1; a colour is a triple",
        ),
        (
            lambda r: (r / "classes.json").write_text(CLASSES % '"colours": 3'),
            "colours = 3; it must be a list of triples",
        ),
        (
            lambda r: (r / "classes.json").write_text(CLASSES % '"colours": [[0, 0, 256], [1, 2, 3]]'),
            r"colours has \[0, 0, 256\]; a colour is .* from 0 to 255",
        ),
        (lambda r: (r / "val.txt").write_text("nope\n"), r"val\.txt lists 'nope', but .*images has no such image"),
        (lambda r: (r / "val.txt").write_text(""), r"The split 'val' of .* has no images \(splits: train, val\)"),
    ],
)
def test_masks_layout_errors(masks_folder, break_it, message):
    break_it(masks_folder)
    with pytest.raises(UserError, match=message):
        open_dataset(f"folder:{masks_folder}")


def test_a_short_class_list_is_found_when_the_mask_is_read(masks_folder):
    (masks_folder / "classes.json").write_text('["sky"]')
    dataset = open_dataset(f"folder:{masks_folder}?split=train")
    with pytest.raises(UserError, match=r"the mask of b has the value 1, but the class list has 1 names"):
        dataset.mask(1)


def test_mask_files(masks_folder):
    """Palette and 16-bit masks are read by value; colour-coded ones are refused."""
    dataset = open_dataset(f"folder:{masks_folder}?split=train")
    path = masks_folder / "masks/a.png"
    indexed = Image.fromarray(np.eye(6, 8, dtype=np.uint8)).convert("P")
    indexed.putpalette([9, 9, 9, 200, 0, 0] + [0] * 762)
    indexed.save(path)
    assert np.array_equal(dataset.mask(0), np.eye(6, 8))
    Image.fromarray(np.eye(6, 8).astype(np.uint16)).save(path)
    assert np.array_equal(dataset.mask(0), np.eye(6, 8))
    save(path, grey(1))
    with pytest.raises(UserError, match="has mode RGB; a mask holds one class index"):
        dataset.mask(0)
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="Cannot read the mask"):
        dataset.mask(0)


@pytest.fixture
def caption_folder(tmp_path):
    root = tmp_path / "photos"
    rows = []
    for at in range(4):
        save(root / "images" / f"{at}.png", grey(at * 10))
        captions = [{"kind": "alt", "text": f"alt {at}"}, {"kind": "alt", "text": f"again {at}"}]
        captions += [{"kind": "topic", "text": "things"}, {"kind": "empty", "text": "  "}]
        rows.append({"image": f"images/{at}.png", "split": "train" if at < 2 else "test", "captions": captions})
    rows[3]["captions"] = {"alt": "one text", "topic": ["two", "texts"]}
    (root / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return root


def test_captions_layout(caption_folder):
    dataset = open_dataset(f"folder:{caption_folder}?field=alt")
    assert dataset.has == {"captions", "a train split"} and len(dataset) == 2
    assert dataset.captions(0) == {"alt": ["alt 2", "again 2"], "topic": ["things"]}
    assert dataset.captions(1) == {"alt": ["one text"], "topic": ["two", "texts"]}
    assert dataset.caption_fields == ["alt", "topic"] and dataset.caption_field == "alt"
    assert np.array(dataset.train().image(0))[0, 0, 0] == 0
    with pytest.raises(UserError, match=r"Unknown caption field .* 'atl'\. Did you mean 'alt'"):
        open_dataset(f"folder:{caption_folder}?field=atl")


def test_a_caption_may_hold_unicodes_line_ends(caption_folder):
    file = caption_folder / "captions.jsonl"
    row = {"image": "images/1.png", "split": "val", "captions": {"alt": "one\u2028two\x85three"}, "mask": None}
    file.write_text(file.read_text() + json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert open_dataset(f"folder:{caption_folder}?split=val").captions(0) == {"alt": ["one\u2028two\x85three"]}


def test_captions_with_masks(caption_folder):
    lines = [json.loads(line) for line in (caption_folder / "captions.jsonl").read_text().split("\n") if line]
    for at, row in enumerate(lines):
        row["mask"] = f"masks/{at}.png"
        save(caption_folder / row["mask"], np.full((6, 8), at % 2))
    (caption_folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert open_dataset(f"folder:{caption_folder}").has == {"captions", "a train split"}  # no class names yet
    (caption_folder / "classes.json").write_text('["sky", "road"]')
    dataset = open_dataset(f"folder:{caption_folder}")
    assert dataset.has == {"captions", "masks", "a train split"}
    assert dataset.mask(1).max() == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"captions\.jsonl, line 5: "),
        ('{"split": "test"}', r'line 5: no "image"'),
        ('{"image": "images/9.png", "split": "test"}', r"The image .*9\.png is missing"),
        (
            '{"image": "images/1.png", "split": "test", "captions": {"alt": [3]}}',
            "line 5: the caption 'alt' is no text: 3",
        ),
        ('{"image": "images/1.png", "captions": {"alt": 3}}', "line 5: the caption 'alt' is no text: 3. Allowed: "),
        ('{"image": "images/1.png", "captions": ["a dog"]}', r'line 5: captions = \["a dog"\]\. Allowed: \[{"kind"'),
        ('{"image": "images/1.png", "captions": "a dog"}', 'line 5: captions = "a dog". Allowed'),
        ('{"image": "images/1.png", "captions": null}', "line 5: captions = null. Allowed"),
        ('{"image": "images/1.png", "captions": [{"kind": 3, "text": "x"}]}', "line 5: the caption '3' is no text"),
        ('{"image": "images/1.png", "split": 3}', "line 5: split = 3; it must be a text"),
        ('{"image": "images/1.png", "mask": [1]}', r"line 5: mask = \[1\]; it must be a text"),
    ],
)
def test_captions_layout_errors(caption_folder, line, message):
    file = caption_folder / "captions.jsonl"
    file.write_text(file.read_text().strip() + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        open_dataset(f"folder:{caption_folder}")


@pytest.fixture
def class_folder(tmp_path):
    root = tmp_path / "pets"
    for split, count in (("train", 3), ("val", 2), ("test", 4)):
        for at, name in enumerate(("dog", "cat")):
            for i in range(count):
                save(root / split / name / f"{i}.png", grey(100 * at + i))
    return root


def test_class_layout(class_folder):
    dataset = open_dataset(f"folder:{class_folder}")
    assert dataset.class_names == ["cat", "dog"] and len(dataset) == 8
    assert [dataset.label(i) for i in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert np.array(dataset.image(0))[0, 0, 0] == 100
    assert len(dataset.train()) == 6
    few = open_dataset(f"folder:{class_folder}?split=val", samples=2)
    assert [few.label(0), few.label(1)] == [0, 1]  # spread: both classes
    (class_folder / "classes.json").write_text('{"classes": ["dog", "cat"], "prompt_names": {"cat": "a kitten"}}')
    ordered = open_dataset(f"folder:{class_folder}")
    assert ordered.label(0) == 1 and ordered.prompt_names == ["dog", "a kitten"]
    (class_folder / "classes.json").write_text('["dog"]')
    with pytest.raises(UserError, match=r"cat is not a class of .*classes\.json \(1 names\)"):
        open_dataset(f"folder:{class_folder}")


def test_class_without_images_keeps_its_place(class_folder):
    (class_folder / "train" / "bird").mkdir()
    assert open_dataset(f"folder:{class_folder}").class_names == ["bird", "cat", "dog"]


def test_what_is_missing_is_said(tmp_path, class_folder):
    with pytest.raises(UserError) as error:
        open_dataset(f"folder:{tmp_path / 'pet'}")
    for word in (
        "No folder",
        "images/ with masks/ (and classes.json)",
        "captions.jsonl",
        "<class>/",
        "Found in",
        "pets/",
    ):
        assert word in str(error.value)
    (tmp_path / "odd" / "pictures").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Unknown layout of .*odd\. Expected: captions\.jsonl; or .* Found: pictures/"):
        open_dataset(f"folder:{tmp_path / 'odd'}")
    with pytest.raises(UserError, match=r"Unknown split of .*pets 'tset'\. Did you mean 'test'"):
        open_dataset(f"folder:{class_folder}?split=tset")
    with pytest.raises(UserError, match="Unknown train split"):
        open_dataset(f"folder:{class_folder}?train=trian")
    with pytest.raises(UserError, match="Asking for captions needs captions, but folder:pets test has only images"):
        open_dataset(f"folder:{class_folder}").captions(0)


def test_images_are_upright_and_rgb(class_folder):
    """Grey, CMYK and EXIF-rotated files come out as RGB, upright; a broken one is named."""
    folder = class_folder / "test" / "cat"
    Image.fromarray(np.full((6, 8), 77, np.uint8)).save(folder / "0.png")
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(folder / "1.jpg")
    (folder / "1.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.fromarray(np.uint8(grey(50))).save(folder / "2.jpg", exif=exif)
    (folder / "2.png").unlink()
    (folder / "3.png").write_bytes(b"nothing")
    dataset = open_dataset(f"folder:{class_folder}")
    assert dataset.image(0).mode == "RGB" and dataset.image(0).getpixel((0, 0)) == (77, 77, 77)
    red = dataset.image(1).getpixel((0, 0))
    assert dataset.image(1).mode == "RGB" and red[0] > 200 and max(red[1:]) < 60
    assert dataset.image(2).size == (6, 8)
    with pytest.raises(UserError, match=r"Cannot read the image .*3\.png"):
        dataset.image(3)


@pytest.fixture
def dense_folder(tmp_path):
    """Two images with depth (one a PNG, one an array) and normals, no masks."""
    for stem in ("a", "b"):
        save(tmp_path / f"images/{stem}.jpg", grey(50))
    depth = np.arange(48, dtype=np.uint16).reshape(6, 8) * 100
    (tmp_path / "depth").mkdir()
    Image.fromarray(depth).save(tmp_path / "depth/a.png")
    np.save(tmp_path / "depth/b.npy", depth / 1000)
    normals = np.full((6, 8, 3), (128, 128, 255), np.uint8)
    normals[0] = 0
    save(tmp_path / "normals/a.png", normals)
    np.save(tmp_path / "normals/b.npy", np.float32(np.broadcast_to((0, 0.6, 0.8), (6, 8, 3))))
    return tmp_path


def test_depth_and_normals(dense_folder):
    dataset = open_dataset(f"folder:{dense_folder}")
    assert dataset.has == {"depth", "normals"} and dataset.class_names == []
    first, second = (dataset.load(i, depth=True, normals=True) for i in range(2))
    assert first.depth.dtype == np.float32 and np.array_equal(first.depth, second.depth)
    assert first.depth[0, 1] == np.float32(0.1) and first.depth[5, 7] == np.float32(4.7)
    assert not first.normals[0].any() and np.allclose(first.normals[1:], (0, 0, 1), atol=6e-3)
    assert np.allclose(np.linalg.norm(first.normals[1:], axis=-1), 1) and np.allclose(second.normals, (0, 0.6, 0.8))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("depth/a.png", np.zeros((6, 8), np.uint8), "mode L; depth is a 16-bit grey PNG or a .npy file"),
        ("normals/a.png", np.zeros((6, 8), np.uint8), "mode L; they are an RGB PNG, or a .npy"),
        ("depth/b.npy", np.zeros((6, 8, 1)), r"b\.npy has 3 dimensions \(6, 8, 1\); it must have 2"),
        ("depth/b.npy", np.zeros((5, 8)), r"the depth map of b is 8x5, its image 8x6"),
        ("depth/b.npy", np.array([{}]), r"Cannot read .*b\.npy.*Object arrays"),
    ],
)
def test_depth_and_normals_of_another_kind(dense_folder, name, content, message):
    path = dense_folder / name
    np.save(path, content) if path.suffix == ".npy" else Image.fromarray(content).save(path)
    dataset = open_dataset(f"folder:{dense_folder}")
    with pytest.raises(UserError, match=message):
        [dataset.load(index, depth=True, normals=True) for index in range(2)]


def test_colour_coded_masks(masks_folder):
    content = {"classes": ["sky", "road"], "colours": [[9, 9, 9], [200, 0, 0]], "ignore_colours": [[0, 0, 0]]}
    (masks_folder / "classes.json").write_text(json.dumps(content))
    coded = np.full((6, 8, 3), 9)
    coded[2], coded[3] = (200, 0, 0), 0
    save(masks_folder / "masks/a.png", coded)
    dataset = open_dataset(f"folder:{masks_folder}?split=train")
    assert dataset.mask(0)[:4, 0].tolist() == [0, 0, 1, 255]
    content["colours"].pop()
    (masks_folder / "classes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has 1 colours for 2 classes"):
        open_dataset(f"folder:{masks_folder}")
    (masks_folder / "classes.json").write_text(json.dumps(content | {"colours": [[9, 9, 9], [9, 9, 9]]}))
    with pytest.raises(UserError, match="must be different triples"):
        open_dataset(f"folder:{masks_folder}")


def test_colour_coded_masks_of_a_caption_file(masks_folder):
    content = {"classes": ["sky", "road"], "colours": [[9, 9, 9], [200, 0, 0]]}
    (masks_folder / "classes.json").write_text(json.dumps(content))
    save(masks_folder / "masks/a.png", np.full((6, 8, 3), (200, 0, 0)))
    row = {"image": "images/a.png", "mask": "masks/a.png", "captions": {"alt": "a road"}}
    (masks_folder / "captions.jsonl").write_text(json.dumps(row))
    assert open_dataset(f"folder:{masks_folder}").mask(0).tolist() == [[1] * 8] * 6


def test_16_bit_grey_images_keep_their_shades(masks_folder):
    shades = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1300
    Image.fromarray(shades).save(masks_folder / "images/a.png")
    found = np.array(open_dataset(f"folder:{masks_folder}?split=train").image(0))
    assert found.shape == (6, 8, 3) and np.array_equal(found, np.rint(shades / 257)[:, :, None].repeat(3, 2))


def test_transparent_images_lie_on_white_as_in_training(masks_folder):
    Image.new("RGBA", (8, 6), (9, 9, 9, 0)).save(masks_folder / "images/a.png")
    assert np.array(open_dataset(f"folder:{masks_folder}?split=train").image(0)).min() == 255


def test_grey_cmyk_and_turned_images(masks_folder):
    """All become RGB; a turned one stands upright, so that its mask fits."""
    images = masks_folder / "images"
    Image.new("L", (8, 6), 77).save(images / "a.png")
    (images / "b.png").unlink()
    Image.new("CMYK", (8, 6), (0, 0, 0, 0)).save(images / "b.jpg")
    dataset = open_dataset(f"folder:{masks_folder}?split=train")
    assert np.array(dataset.load(0, masks=True).image)[0, 0].tolist() == [77, 77, 77]
    assert np.array(dataset.load(1, masks=True).image)[0, 0].tolist() == [255, 255, 255]
    lying = Image.fromarray(np.uint8([[[i * 30] * 3] * 6 for i in range(8)]))  # 6 wide, 8 high
    exif = lying.getexif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    lying.save(images / "a.png", exif=exif)
    turned = dataset.load(0, masks=True).image
    assert turned.size == (8, 6) and np.array(turned)[0, :, 0].tolist() == [210 - 30 * i for i in range(8)]
