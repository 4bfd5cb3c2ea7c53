import pytest
import torch

from distill.errors import UserError
from distill.objectives.cls_distillation import cls_distillation_loss, feature_cls_loss


def test_it_is_the_mean_over_locals_and_images(unit, golden):
    student, directions = unit(3, 4, 5), unit(7, 5)  # 3 images, 4 local crops
    teacher = torch.softmax(5 * unit(3, 7), dim=-1)
    loss = cls_distillation_loss(student @ directions.T, teacher, 0.1)
    terms = [
        golden.cross_entropy(student[b, m].numpy(), directions.numpy(), teacher[b].tolist(), 0.1)
        for b in range(3)
        for m in range(4)
    ]
    assert loss.item() == pytest.approx(sum(terms) / 12, rel=1e-12)


def test_the_gradient_reaches_the_student_alone(unit):
    logits, teacher = unit(2, 3, 5).requires_grad_(), torch.softmax(unit(2, 5), dim=-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cls_distillation_loss(z, teacher, 0.5), (logits,))
    cls_distillation_loss(logits, teacher, 0.5).backward()
    assert teacher.grad is None


def test_low_precision_logits_are_raised_first(unit):
    logits, teacher = (10 * unit(2, 3, 5)).bfloat16(), torch.softmax(unit(2, 5), dim=-1).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = cls_distillation_loss(logits, teacher, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(cls_distillation_loss(logits.double(), teacher, 0.1).item(), rel=1e-6)


def test_no_local_crops_are_refused(unit):
    with pytest.raises(UserError, match=r"Set views.locals to 1 or more"):
        cls_distillation_loss(torch.zeros(2, 0, 5), torch.full((2, 5), 0.2), 0.1)


def test_feature_regression_is_the_mean_over_locals_and_images(unit, golden):
    student, target = (3 * unit(3, 4, 5)).requires_grad_(), (2 * unit(3, 5)).requires_grad_()
    terms = [golden.regression(student[b, m].tolist(), target[b].tolist()) for b in range(3) for m in range(4)]
    loss = feature_cls_loss(student, target)
    assert loss.item() == pytest.approx(sum(terms) / 12, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: feature_cls_loss(x, target), (student,))
    loss.backward()
    assert target.grad is None
    with pytest.raises(UserError, match=r"Set views.locals to 1 or more"):
        feature_cls_loss(torch.zeros(2, 0, 5), torch.zeros(2, 5))
