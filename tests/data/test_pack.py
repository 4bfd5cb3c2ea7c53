import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from distill.data import tarwriter
from distill.data.pack import PackOptions, free_key, pack, summary
from distill.data.records import Reading
from distill.data.shards import ShardSource, expand_shards
from distill.errors import UserError

QUIET = Console(file=io.StringIO())


@pytest.fixture
def src(make, tmp_path):
    """A folder of eleven photographs and `captions.jsonl`; three fields, one with two texts."""
    folder = tmp_path / "src"
    (folder / "images" / "münchen").mkdir(parents=True)
    with open(folder / "captions.jsonl", "w", encoding="utf-8") as stream:
        for n in range(11):
            name = f"images/münchen/photo.{n}.jpg"
            (folder / name).write_bytes(make.image(n))
            record = {"image": name, "web": f"web {n}", "captions": {"alt": [f"a {n}", f"b {n}"]}, "id": n}
            stream.write(json.dumps(record) + "\n")
    return folder


def options(src, out="out", **changes):
    return PackOptions(**{"src": src, "out": src.parent / out, "shard_size": 4, **changes})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_everything_arrives(make, src):
    result = pack(options(src), QUIET)
    assert (result.samples, len(result.shards), result.problems) == (11, 3, [])
    source = ShardSource(expand_shards(str(src.parent / "out")))
    samples = [source[n] for n in range(11)]
    assert {sample.key for sample in samples} == {f"münchen/photo_{n}" for n in range(11)}
    for sample in samples:
        number = int(sample.key.rsplit("_")[-1])
        assert sample.image == make.image(number)
        assert sample.captions == {"web": [f"web {number}"], "alt": [f"a {number}", f"b {number}"]}
    assert [sample.key for sample in samples] != sorted(sample.key for sample in samples)  # neighbours are unrelated
    assert "11 samples in 3 shards" in summary(result)
    assert "alt (11), web (11)" in summary(result)


def test_bytes_do_not_depend_on_workers_or_the_order_of_records(src):
    pack(options(src), QUIET)
    pack(options(src, "parallel", workers=2), QUIET)
    lines = (src / "captions.jsonl").read_text().splitlines()
    (src / "captions.jsonl").write_text("\n".join(reversed(lines)))
    pack(options(src, "reversed"), QUIET)
    first = contents(src.parent / "out")
    assert list(first) == ["data-000000.tar", "data-000001.tar", "data-000002.tar"]
    assert contents(src.parent / "parallel") == first
    assert contents(src.parent / "reversed") == first


def test_finished_shards_are_kept(src):
    pack(options(src), QUIET)
    out = src.parent / "out"
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (out / "data-000001.tar").unlink()
    result = pack(options(src), QUIET)
    assert result.skipped == 2
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert {name for name in before if before[name] == after[name]} == {"data-000000.tar", "data-000002.tar"}
    assert "(2 shards were there already)" in summary(result)


KILLED = """
import os, signal, sys
from pathlib import Path
from distill.data import shard_jobs
from distill.data.pack import PackOptions, pack

done = []
def tick(*args):
    done.append(1)
    if len(done) == 7:  # in the middle of the second shard
        os.kill(os.getpid(), signal.SIGKILL)
shard_jobs._tick = tick
pack(PackOptions(src=Path(sys.argv[1]), out=Path(sys.argv[2]), shard_size=4))
"""


def test_continues_after_a_kill(src):
    out = src.parent / "out"
    process = subprocess.run([sys.executable, "-c", KILLED, str(src), str(out)], capture_output=True, timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert list(contents(out)) == ["data-000000.tar"]
    assert (out / ".data-000001.tar.part").exists()
    with open(out / "data.manifest.jsonl", "a") as stream:
        stream.write('{"file": "data-000001.tar", "sam')  # as if killed while writing this line
    result = pack(options(src), QUIET)
    assert (result.skipped, result.samples) == (1, 11)
    pack(options(src, "whole"), QUIET)
    assert contents(out) == contents(src.parent / "whole")
    assert not list(out.glob(".*"))
    assert pack(options(src), QUIET).skipped == 3


def test_another_pack_in_the_folder_is_refused(src):
    pack(options(src), QUIET)
    with pytest.raises(UserError, match=r"already holds data.manifest.jsonl, made from other input or options"):
        pack(options(src, shard_size=5), QUIET)
    with open(src / "images/münchen/photo.0.jpg", "ab") as stream:
        stream.write(b"x")
    with pytest.raises(UserError, match="made from other input"):
        pack(options(src), QUIET)
    assert pack(options(src, name="second"), QUIET).samples == 11
    (src.parent / "out" / "data.manifest.jsonl").unlink()
    with pytest.raises(UserError, match=r"already holds data-000000.tar"):
        pack(options(src), QUIET)


def test_losses_are_counted_named_and_limited(src):
    (src / "images/münchen/photo.3.jpg").unlink()
    (src / "images/münchen/photo.4.jpg").write_bytes(b"no image")
    with open(src / "captions.jsonl", "a") as stream:
        stream.write('{"image": "images/münchen/photo.11.jpg"\n')
        stream.write('{"image": "münchen/photo.1.jpg", "web": " "}\n')
    with pytest.raises(
        UserError, match=r"3 of 13 records unusable \(23.1%; .* 1.0%\). First: .*line 12.*Nothing was written"
    ):
        pack(options(src), QUIET)
    assert not (src.parent / "out").exists()
    result = pack(options(src, max_error_rate=0.5), QUIET)
    assert result.samples == 9
    assert {problem.reason.split(" (")[0] for problem in result.problems} == {
        "bad JSON",
        "missing image",
        "empty captions",
        "corrupt image",
    }
    text = summary(result)
    assert "left out: " in text
    assert "images/münchen/photo.3.jpg: missing image" in text
    again = pack(options(src, max_error_rate=0.5), QUIET)  # those of finished shards are not forgotten
    assert len(again.problems) == len(result.problems) == 4


def test_fields_that_are_not_in_every_sample_are_told(src):
    lines = (src / "captions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[2]["web"], rows[5]["web"] = "", None
    (src / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = summary(pack(options(src), QUIET))
    assert "caption fields: alt (11), web (9)" in text
    assert "not in every sample: web (2 of 11 lack it)" in text
    (src / "images/münchen/photo.5.jpg").write_bytes(b"no image")  # a sample that is left out lacks nothing
    text = summary(pack(options(src, "other", max_error_rate=0.5), QUIET))
    assert "not in every sample: web (1 of 10 lack it)" in text
    (src / "captions.jsonl").write_text("\n".join(lines))
    assert "not in every sample" not in summary(pack(options(src, "third", max_error_rate=0.5), QUIET))


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "\ud800.jpg", "a\0.jpg", "x" * 251 + ".j"])
def test_names_that_no_file_can_have_are_missing_images(make, src, name):
    with open(src / "captions.jsonl", "a") as stream:
        stream.write(json.dumps({"image": name, "web": "x"}) + "\n")
    masks = src / "masks"
    masks.mkdir()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(masks / "photo.1.png")
    result = pack(options(src, max_error_rate=0.5, masks=masks), QUIET)
    assert (result.samples, [problem.reason for problem in result.problems]) == (11, ["missing image"])
    summary(result).encode()  # can be printed


def test_a_long_name_without_a_mask(make, src):
    name = "y" * 252 + ".j"  # the mask's name would be too long
    (src / name).write_bytes(make.image(1))
    with open(src / "captions.jsonl", "a") as stream:
        stream.write(json.dumps({"image": name, "web": "x"}) + "\n")
    masks = src / "masks"
    masks.mkdir()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(masks / "photo.1.png")
    assert pack(options(src, masks=masks), QUIET).samples == 12


def test_losses_found_while_writing(src):
    (src / "images/münchen/photo.4.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 of 11 records unusable .*photo_4: corrupt image.*written without them"):
        pack(options(src), QUIET)


def test_what_was_repaired_is_packed(make, src):
    masks = src / "masks"
    masks.mkdir()
    for n in range(11):
        Image.new("L", (32, 24) if n != 4 else (9, 9)).save(masks / f"photo.{n}.png")
    asked = options(src, masks=masks, captions=src / "captions.jsonl")
    with pytest.raises(UserError, match=r"1 of 11 records unusable .*photo_4"):
        pack(asked, QUIET)
    Image.new("L", (32, 24)).save(masks / "photo.4.png")
    result = pack(asked, QUIET)
    assert (result.samples, result.skipped, result.problems) == (11, 2, [])
    assert pack(asked, QUIET).skipped == 3


def test_a_picture_named_by_its_whole_path_is_not_its_own_mask(src):
    masks = src / "masks"
    masks.mkdir()
    Image.new("L", (32, 24), 7).save(src / "p.png")
    Image.new("L", (32, 24), 3).save(masks / "p.png")
    (src / "captions.jsonl").write_text(json.dumps({"image": str(src / "p.png"), "web": "x"}))
    pack(options(src, masks=masks, captions=src / "captions.jsonl"), QUIET)
    mask = ShardSource(expand_shards(str(src.parent / "out")), masks=True)[0].mask
    assert (mask == 3).all()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_full_or_read_only_disk(src, monkeypatch, code):
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 3:  # manifest, first shard, manifest, then the second shard
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(tarwriter.os, "fsync", full)
    wanted = (
        "No space left in .*finished shards stay" if code == errno.ENOSPC else "Cannot write .*Read-only file system"
    )
    with pytest.raises(UserError, match=wanted):
        pack(options(src), QUIET)
    monkeypatch.undo()
    assert list(contents(src.parent / "out")) == ["data-000000.tar"]
    assert pack(options(src), QUIET).skipped == 1


def test_masks_and_class_names_come_along(make, src):
    masks = src / "masks"
    masks.mkdir()
    for n in range(10):
        Image.fromarray(np.full((24, 32), n, np.uint8)).save(masks / f"photo.{n}.png")
    (src / "classes.json").write_text("[]")
    pack(options(src, masks=masks, captions=src / "captions.jsonl"), QUIET)
    source = ShardSource(expand_shards(str(src.parent / "out")), masks=True)
    for n in range(11):
        sample = source[n]
        number = int(sample.key.rsplit("_")[-1])
        assert (sample.mask is None) if number == 10 else (sample.mask == number).all()
    assert (src.parent / "out" / "classes.json").read_text() == "[]"
    shutil.rmtree(masks)
    masks.mkdir()
    with pytest.raises(UserError, match="no PNG there has the name of an image"):
        pack(options(src, "other", masks=masks, captions=src / "captions.jsonl"), QUIET)


def test_a_pack_into_its_own_folder_can_be_called_again(src):
    assert pack(options(src, "src"), QUIET).samples == 11
    assert pack(options(src, "src"), QUIET).skipped == 3


def test_max_side_and_field_names(src):
    reading = Reading(caption_fields={"short": "web"})
    pack(options(src, shaping=tarwriter.Shaping(max_side=16), reading=reading), QUIET)
    source = ShardSource(expand_shards(str(src.parent / "out")))
    assert set(source[0].captions) == {"short"}
    assert Image.open(io.BytesIO(source[0].image)).size == (16, 12)


def test_which_captions_file(src):
    (src / "more.csv").write_text("image,caption\n")
    with pytest.raises(UserError, match=r"Which captions file\? .* has captions.jsonl, more.csv"):
        pack(options(src), QUIET)
    with pytest.raises(UserError, match="is not a folder"):
        pack(options(src / "nowhere"), QUIET)


@pytest.mark.parametrize("change", [{"shard_size": 0}, {"workers": 0}, {"masks": Path("/nowhere")}])
def test_bad_options(src, change):
    with pytest.raises(UserError, match=r"--(shard-size|workers|masks)"):
        pack(options(src, **change), QUIET)
    with pytest.raises(UserError, match="--max-side is 0"):
        pack(options(src, shaping=tarwriter.Shaping(max_side=0)), QUIET)


def test_keys():
    assert free_key("images/a/b.c.jpg", {}) == "a/b_c"
    assert free_key("../x/猫.png", {}) == "x/猫"
    assert free_key("images/a.jpg", {"a": 1}) == "a-2"
    assert free_key("a.png", {"a": 1, "a-2": 1}) == "a-3"
