"""What the tasks that compare images keep of a batch."""

import torch

from distill.evals.datasets.base import Example
from distill.evals.features import Batch
from distill.evals.labelled import Labelled


def test_images_with_a_label_are_kept_as_unit_features():
    examples = [Example(at + 4, None, None, {}, label) for at, label in enumerate([3, None, 1])]
    cls, patches = torch.randn(3, 2, 5), torch.randn(3, 2, 2, 5)
    kept = Labelled()
    assert kept.add(Batch(examples, torch.zeros(3, 3, 4, 4), cls, patches)) == [0, 2]
    assert (kept.labels, kept.indices, kept.without) == ([3, 1], [4, 6], 1)
    assert kept.targets("cls1").tolist() == [3, 1] and list(kept.parts) == ["cls1", "cls2", "patches"]
    torch.testing.assert_close(kept.features("cls2"), cls[[0, 2], 1] / cls[[0, 2], 1].norm(dim=-1, keepdim=True))
    mean = patches[[0, 2]].mean((1, 2))
    torch.testing.assert_close(kept.features("patches"), mean / mean.norm(dim=-1, keepdim=True))
