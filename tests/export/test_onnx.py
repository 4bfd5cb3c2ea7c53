"""Exports that onnxruntime runs."""

from __future__ import annotations

import pytest
import torch

import distill
from distill.export.to_onnx import linear_matrix
from distill.models.positions import resize_matrix

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'everypatch[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'everypatch[onnx]'")


@pytest.mark.parametrize(("source", "target"), [(4, 4), (4, 7), (4, 3), (16, 5), (32, 1), (1, 3)])
def test_the_matrix_by_arithmetic_is_the_towers(source, target):
    expected = resize_matrix(source, target, torch.device("cpu"))
    assert torch.allclose(linear_matrix(source, target), expected, atol=1e-6)


def test_one_graph_serves_other_batches_and_sizes(saved, tmp_path, recwarn):
    path = saved(ffn="swiglu")
    done = distill.export(path, "onnx", tmp_path / "out")
    assert not [one for one in recwarn if "axis name" in str(one.message)]
    model = distill.load(path)
    session = onnxruntime.InferenceSession(done.folder / "image.onnx")
    for shape in [(1, 3, 56, 56), (3, 3, 28, 98), (2, 3, 14, 14)]:
        images = torch.rand(*shape)
        with torch.no_grad():
            expected = model.image.dense(images)
        for ours, theirs in zip(expected, session.run(None, {"images": images.numpy()})):
            assert torch.allclose(ours, torch.from_numpy(theirs), atol=2e-4)
    session = onnxruntime.InferenceSession(done.folder / "text.onnx")
    ids, valid, _ = model.tokenizer.encode(["a red disc", "a blue square on a wall", "red"], 16)
    (texts,) = session.run(None, {"ids": ids, "valid": valid})
    expected = model.encode_text(["a red disc", "a blue square on a wall", "red"])
    assert torch.allclose(torch.from_numpy(texts), expected, atol=2e-4)
