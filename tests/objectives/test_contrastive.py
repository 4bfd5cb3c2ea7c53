import pytest
import torch

from distill.errors import UserError
from distill.objectives.contrastive import contrastive_loss, contrastive_loss_plain


def test_softmax_is_clips_loss_in_both_directions(unit, golden):
    image, text = 3 * unit(6, 4), 0.2 * unit(6, 4)  # not unit length: the loss normalises
    expected = golden.clip(image.numpy(), text.numpy(), 0.2)
    assert contrastive_loss(image, text, 0.2).item() == pytest.approx(expected, rel=1e-12)
    assert golden.clip(image.numpy()[::-1], text.numpy(), 0.2) != pytest.approx(expected, rel=1e-3)


def test_sigmoid_is_siglips_loss(unit, golden):
    image, text = 3 * unit(5, 4), unit(5, 4)
    bias = torch.tensor(-1.5, dtype=torch.float64)
    loss = contrastive_loss(image, text, 0.3, "sigmoid", bias)
    assert loss.item() == pytest.approx(golden.siglip(image.numpy(), text.numpy(), 0.3, -1.5), rel=1e-12)
    without = contrastive_loss(image, text, 0.3, "sigmoid")
    assert without.item() == pytest.approx(golden.siglip(image.numpy(), text.numpy(), 0.3, 0.0), rel=1e-12)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_gradients_are_those_of_finite_differences(unit, loss):
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=loss == "sigmoid")
    inputs = (unit(3, 4).requires_grad_(), unit(3, 4).requires_grad_(), temperature)
    assert torch.autograd.gradcheck(lambda i, t, s: contrastive_loss(i, t, s, loss, bias), inputs)
    if loss == "sigmoid":
        assert torch.autograd.gradcheck(lambda b: contrastive_loss(*inputs, loss, b), (bias,))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_autocast_does_not_lower_the_precision(unit, loss):
    image, text = unit(6, 32).float(), unit(6, 32).float()
    expected = contrastive_loss(image, text, 0.01, loss)
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive_loss(image, text, 0.01, loss).item() == expected.item()


def test_another_loss_is_refused(unit):
    with pytest.raises(UserError, match=r"Unknown objective.contrastive.loss 'sigmod'. Did you mean 'sigmoid'"):
        contrastive_loss(unit(2, 4), unit(2, 4), 0.1, "sigmod")


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("rows", [None, 3, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_parts_give_the_value_and_gradients_of_the_plain_loss(unit, loss, rows, dtype):
    given = [unit(7, 5), 2 * unit(7, 5), torch.tensor(0.05), torch.tensor(-2.0)]

    def differentiate(contrast, **parts):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in given]
        value = contrast(*inputs[:3], loss, inputs[3], **parts)
        (3 * value).backward()  # a weight of its own
        return [value.detach(), *(x.grad for x in inputs if x.grad is not None)]

    plain = differentiate(contrastive_loss_plain)
    quick = differentiate(contrastive_loss, rows=rows)
    if loss == "softmax":
        assert not quick.pop()  # no bias here
    assert len(plain) == len(quick)
    near = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    for expected, found in zip(plain, quick):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, **near)


def test_without_gradients_only_the_value_is_computed(unit):
    image, text = unit(6, 4), unit(6, 4).requires_grad_()
    for loss in ("softmax", "sigmoid"):
        expected = contrastive_loss_plain(image, text, 0.2, loss)
        with torch.no_grad():
            torch.testing.assert_close(contrastive_loss(image, text, 0.2, loss), expected.detach())
