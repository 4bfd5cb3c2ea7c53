import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from distill.data.look import contact_sheet, look, report
from distill.errors import UserError


def test_shards(make, tmp_path):
    mask = io.BytesIO()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(mask, "PNG")
    files = [
        *make.files("a", web="one two three", alt=["x", "y z"]),
        ("b.png", make.image(1, (50, 60), "PNG")),
        ("b.json", b'{"web": "four"}'),
        ("b.mask.png", mask.getvalue()),
        *make.files("c", web=""),
        ("c.mask.png", mask.getvalue()),
        ("d.jpg", make.image(2)[:100]),
        ("d.json", b'{"web": "w"}'),
        ("e.json", b"{}"),
    ]
    found = look(str(make.tar(tmp_path / "x.tar", files)), limit=0)
    assert (found.samples, found.examined, found.shards) == (4, 4, 1)
    assert sorted(found.sizes) == [(24, 32), (24, 32), (50, 60)]
    assert found.formats == {"JPEG": 2, "PNG": 1}
    assert (found.fields["web"].samples, sorted(found.fields["web"].words)) == (4, [0, 1, 1, 3])
    assert found.fields["alt"].words == [1, 2]
    assert found.masks == 2
    assert {(p.key, p.reason.split(" (")[0]) for p in found.problems} == {
        ("e", "no image"),
        ("d", "corrupt image"),
        ("b", "mask does not fit"),
    }
    text = report(found)
    assert "4 samples in 1 shards" in text
    assert "images: smallest 32 x 24, median 32 x 24, largest 60 x 50" in text
    assert "captions 'alt': in 1 samples, 2.0 a sample, words median 2, most 2, empty 0" in text
    assert "most 3, empty 1" in text
    assert "unusable: 3" in text


def test_limit_spreads_over_the_source(make, tmp_path):
    make.shards(tmp_path, 2, 10)
    found = look(str(tmp_path), limit=4)
    assert (found.samples, found.examined, found.shards) == (20, 4, 2)
    assert "20 samples in 2 shards; 4 examined" in report(found)
    assert [text for _, text in found.tiles] == [f"web {n:05d}" for n in (0, 5, 10, 15)]


def test_stream(make, tmp_path):
    make.shards(tmp_path, 2, 3)
    found = look(f"pipe:cat {tmp_path}/s-{{000..001}}.tar", limit=4)
    assert (found.samples, found.examined) == (None, 4)
    assert "a stream of unknown length in 2 shards; 4 examined" in report(found)


def test_scenes():
    found = look("scenes", limit=3)
    assert (found.examined, found.masks) == (3, 3)
    assert set(found.fields) == {"web", "synthetic", "detailed"}
    assert report(found).startswith("8192 samples; 3 examined")


def test_contact_sheet(make, tmp_path):
    found = look(str(make.shards(tmp_path, 1, 8)), limit=0)
    contact_sheet(found.tiles, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert sheet.shape[1] > 6 * 180
    assert sheet.std() > 10  # not blank
    one = Image.new("RGB", (180, 90), "red")
    contact_sheet([(one, "größe 猫 " * 40)], tmp_path / "one.png")
    sheet = np.asarray(Image.open(tmp_path / "one.png"))
    assert (sheet == [255, 0, 0]).all(-1).sum() == 180 * 90


def test_wide_letters_stay_below_their_picture(tmp_path):
    picture = Image.new("RGB", (180, 180), "red")
    contact_sheet([(picture, "W" * 200), (picture, "")], tmp_path / "wide.png")
    sheet = np.asarray(Image.open(tmp_path / "wide.png").convert("L"))
    assert sheet[190:, :188].min() < 128
    assert (sheet[190:, 188:] == 255).all()


def test_nothing_to_look_at(tmp_path):
    with pytest.raises(UserError, match="No shard matches"):
        look(f"{tmp_path}/*.tar")


def test_names_that_are_not_utf_8_can_be_printed(make, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, data in (("Käse.jpg", make.image(1)[:50]), ("Käse.json", b'{"web": "x"}'), *make.files("a")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    text = report(look(str(tmp_path / "x.tar"), limit=0))
    assert "K?se: corrupt image" in text.encode().decode()
