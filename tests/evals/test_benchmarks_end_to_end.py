"""Each task from the command line on a benchmark in its publishers' layout, with a real model."""

import json

import numpy as np
import pytest
from PIL import Image

from distill.cli import main
from distill.models.loading import save_model

RNG = np.random.default_rng(0)


def picture(path, height=24, width=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)


def grey(path, array, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype)).save(path)


@pytest.fixture
def data(tmp_path):
    """A few images of ADE20K, ImageNet, DOCCI, NYUv2 and UnED."""
    for split, count in (("training", 3), ("validation", 2)):
        for at in range(count):
            picture(tmp_path / f"ade/images/{split}/{at}.jpg")
            grey(tmp_path / f"ade/annotations/{split}/{at}.png", RNG.integers(0, 4, (24, 32)))
            for wordnet in ("n01440764", "n01484850"):
                picture(tmp_path / f"imagenet/{'train' if split == 'training' else 'val'}/{wordnet}/{at}.JPEG")
            scene = tmp_path / f"nyu/official_splits/{'train' if split == 'training' else 'test'}/office"
            picture(scene / f"rgb_0000{at}.jpg")
            grey(scene / f"sync_depth_0000{at}.png", RNG.integers(0, 9000, (24, 32)), np.uint16)
            normals = RNG.normal(size=(24, 32, 3))
            np.save(scene / f"normal_0000{at}.npy", normals / np.linalg.norm(normals, axis=-1, keepdims=True))
    rows = []
    for at in range(3):
        picture(tmp_path / f"docci/images/test_{at}.jpg")
        rows.append({"split": "test", "image_file": f"test_{at}.jpg", "description": f"a ball on box {at}"})
    (tmp_path / "docci/docci_descriptions.jsonlines").write_text("\n".join(map(json.dumps, rows)))
    for domain, split, names in (("cars", "test", "abc"), ("met", "test", "de"), ("met", "index", "fg")):
        file = tmp_path / f"uned/info_files/{domain}/{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        listed = [{"path": f"{name}.jpg", "class_id": at % 2} for at, name in enumerate(names)]
        file.write_text(json.dumps(listed))
        for name in names:
            picture(tmp_path / f"uned/images/{name}.jpg")
    return tmp_path


def test_every_task_on_a_benchmark(tiny_model, data, tmp_path, capsys):
    save_model(tiny_model, tmp_path / "model.pt")
    words = [
        f"zeroshot_seg=ade20k:{data}/ade",
        "zeroshot_seg.mode=both",
        f"linear_seg=ade20k:{data}/ade",
        f"linear_patch=ade20k:{data}/ade",
        f"zeroshot_cls=imagenet:{data}/imagenet",
        f"knn=imagenet:{data}/imagenet",
        "knn.k=2",
        f"linear_cls=imagenet:{data}/imagenet",
        f"retrieval=docci:{data}/docci",
        f"depth=nyuv2:{data}/nyu",
        f"normals=nyuv2:{data}/nyu",
        f"instance=uned:{data}/uned",
        *(f"{task}.steps=2" for task in ("linear_seg", "linear_cls", "depth", "normals")),
    ]
    out = tmp_path / "out.json"
    assert (
        main(["eval", str(tmp_path / "model.pt"), *words, "--size", "32", "--device", "cpu", "--json", str(out)]) == 0
    )
    results = json.loads(out.read_text())["results"]
    names = {label: result["dataset"] for label, result in results.items()}
    assert names == {
        "zeroshot_seg": "ade20k validation",
        "linear_seg": "ade20k validation",
        "linear_patch": "ade20k validation",
        "zeroshot_cls": "imagenet val",
        "knn": "imagenet val",
        "linear_cls": "imagenet val",
        "retrieval": "docci test",
        "depth": "nyuv2 test",
        "normals": "nyuv2 test",
        "instance": "uned test",
    }
    assert results["zeroshot_seg"]["counts"]["classes"] == 150
    assert results["zeroshot_cls"]["counts"]["prompts"] == 80
    assert results["instance"]["counts"]["domains"] == 2  # cars among themselves, met in its index
    printed = capsys.readouterr().out
    assert all(label in printed for label in results)
