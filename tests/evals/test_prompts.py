import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.errors import UserError
from distill.evals import zeroshot_seg
from distill.evals.prompts import TextCache, prompt_sets, templates


class LengthModel:
    """A text's features are functions of its characters, so every template counts."""

    def __init__(self):
        self.calls = []

    def encode_text(self, texts):
        self.calls.append(list(texts))
        return torch.tensor([[len(t), t.count("a"), t.count("o") + 1, sum(map(ord, t)) / 100] for t in texts])


def test_class_vector_is_the_normalised_mean_of_normalised_prompts():
    found = TextCache(LengthModel()).classes(["cat", "window pane"], "tcl")
    for row, name in zip(found, ["cat", "window pane"]):
        vectors = [F.normalize(LengthModel().encode_text([t.replace("{}", name)])[0], dim=0) for t in templates("tcl")]
        torch.testing.assert_close(row, F.normalize(torch.stack(vectors).mean(0), dim=0))


def test_every_text_is_encoded_once():
    model = LengthModel()
    cache = TextCache(model)
    first = cache.classes(["cat", "dog"], "plain")
    assert torch.equal(cache.classes(["cat", "dog"], "plain"), first)
    assert model.calls == [["cat", "dog"]]
    rows = cache.encode(["cat", "dog", "cat"])
    assert torch.equal(rows[0], rows[2])
    assert model.calls[1:] == [["cat", "dog"]]


def test_shipped_sets():
    assert len(templates("tcl")) == 9
    assert templates("tcl")[7:] == ["a photo of many {}.", "a photo of {}s."]
    assert templates("plain") == ["{}"]
    for name, content in prompt_sets().items():
        assert content["source"], name
        assert all(t.count("{}") == 1 for t in content["templates"])
    with pytest.raises(UserError, match="Did you mean 'plain'"):
        templates("plan")


def test_prompts_reach_the_model(stub, arrays, paint):
    grid = np.zeros((4, 4), int)
    dataset = arrays(
        [paint(grid, 4)], [np.zeros((16, 16), int)], prompt_names=["a cat", "a dog", "a tree", "sky", "road"]
    )
    model = stub(torch.eye(5))
    result = zeroshot_seg.run(model, dataset, prompts="photo")
    assert model.texts[:2] == ["a photo of a a cat.", "a photo of a a dog."]
    assert result.protocol["prompts"] == "photo" and result.protocol["classes"][0] == "a cat"
    assert next(iter(result.details["iou_final"])) == "cat"


def test_clips_prompts_are_those_of_open_clip():
    """Read there by calling them: the package holds functions of the class name."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    assert templates("clip80") == [fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES]
    assert templates("clip7") == [fill("{}") for fill in SIMPLE_IMAGENET_TEMPLATES]
