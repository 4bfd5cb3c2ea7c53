"""Contrast over the whole batch while it comes in micro-batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning.fabric.plugins.precision import MixedPrecision
from torch import Tensor

from distill.training.negatives import Features, Replay, first_pass, whole_batch_slopes
from distill.views.batch import Batch

ONLY_CONTRAST = {"objective.patch.weight": 0.0, "objective.cls.weight": 0.0}


def part(batch: Batch, rows: slice) -> Batch:
    return replace(batch, **{name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)})


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_gradients_are_those_of_one_big_batch_with_dropout_drawn_alike(build, loss):
    noise = {"text.dropout": 0.3, "vision.drop_path": 0.3, "students.0.depth": 2}
    _, assembly, batch = build(**ONLY_CONTRAST, **noise, **{"objective.contrastive.loss": loss})
    distiller = assembly.distiller.train()
    micro = [part(batch, slice(0, 4)), part(batch, slice(4, 8))]
    torch.manual_seed(5)
    replay = Replay(2)
    state = torch.get_rng_state()

    # the reference keeps both graphs until the one loss over all eight pairs is known
    seen = []
    for i in range(2):
        replay.start(i)
        seen.append(distiller.features(micro[i])["student"])
    pairs = (torch.cat([f.cls for f in seen]), torch.cat([f.text for f in seen]))
    whole = Features(*pairs, *seen[0][2:]).loss(loss)
    whole.backward()
    expected = {name: p.grad.clone() for name, p in distiller.named_parameters() if p.grad is not None}
    distiller.zero_grad()

    slopes = first_pass(distiller, micro, torch.device("cpu"), loss, replay)
    for i in range(2):
        replay.start(i)
        output = distiller(micro[i], 0.07, slopes[i])
        torch.testing.assert_close(output.loss, whole)
        (output.loss / 2).backward()
    found = {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    replay.end()
    assert torch.equal(torch.get_rng_state(), state)  # what comes next does not depend on what was drawn in between
    other = distiller.features(micro[0])["student"]
    assert not torch.allclose(other.text, seen[0].text)  # dropout did act


def test_how_many_captions_an_image_is_told_apart_from(small_run, column):
    keys = {"train.accumulate": 4, "train.steps": 1, **ONLY_CONTRAST}
    losses = {
        negatives: column(small_run(negatives, **keys, **{"objective.contrastive.negatives": negatives}).folder, "loss")
        for negatives in ("global", "micro")
    }
    whole = column(small_run("whole", **keys | {"train.accumulate": 1}).folder, "loss")
    assert losses["global"] == pytest.approx(whole, abs=1e-5)
    assert whole[0] > 1.8  # near log 8
    assert losses["micro"][0] < 0.9  # near log 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_does_not_round_the_slopes(precision):
    features = Features(torch.randn(4, 2, 8), torch.randn(4, 2, 8), torch.tensor(0.07), None)
    slopes = whole_batch_slopes([features, features], "softmax")
    given = MixedPrecision(precision, "cpu").convert_input({"student": slopes[0]})["student"]  # what Fabric passes on
    assert given.value.dtype == given.by.cls.dtype == given.by.temperature.dtype == torch.float32
    assert torch.equal(given.by.cls, slopes[0].by.cls)
