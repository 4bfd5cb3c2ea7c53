"""What the tasks that compare images keep of a batch."""

import pytest
import torch

from distill.evals.cache import Store
from distill.evals.datasets.base import Example
from distill.evals.features import Batch
from distill.evals.labelled import Labelled, feature_bytes


def test_images_with_a_label_are_kept_as_unit_features():
    examples = [Example(at + 4, None, None, {}, label) for at, label in enumerate([3, None, 1])]
    cls, patches = torch.randn(3, 2, 5), torch.randn(3, 2, 2, 5)
    kept = Labelled()
    assert kept.add(Batch(examples, torch.zeros(3, 3, 4, 4), cls, patches)) == [0, 2]
    assert (kept.labels, kept.indices, kept.without) == ([3, 1], [4, 6], 1)
    assert kept.targets().tolist() == [3, 1] and list(kept.parts) == ["cls1", "cls2", "patches"]
    torch.testing.assert_close(kept.features("cls2"), cls[[0, 2], 1] / cls[[0, 2], 1].norm(dim=-1, keepdim=True))
    mean = patches[[0, 2]].mean((1, 2))
    torch.testing.assert_close(kept.features("patches"), mean / mean.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("rows", [1, 5, 9, 100])
def test_features_come_in_blocks_from_wherever_they_are_kept(rows):
    store = Store(100e-9, "task.memory")
    inside, stored = Labelled(), Labelled(store)
    for count in (3, 5, 5, 2):
        examples = [Example(at, None, None, {}, 1 if at else None) for at in range(count)]
        batch = Batch(examples, torch.zeros(count, 3, 4, 4), torch.randn(count, 2, 6), torch.randn(count, 2, 2, 6))
        inside.add(batch)
        stored.add(batch)
    assert store.files and feature_bytes(batch) == 3 * 6 * 4
    for name in inside.parts:
        blocks, expected = list(stored.blocks(name, rows)), inside.features(name)
        assert torch.equal(torch.cat(blocks), expected) and torch.equal(stored.features(name), expected)
        assert len(blocks) == {1: 4, 5: 4, 9: 2, 100: 1}[rows] and max(map(len, blocks)) <= max(rows, 4)
