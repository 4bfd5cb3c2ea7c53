"""Linear classifiers on fixed features: logistic regression, and ridge regression to one-hot classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_STD = 1e-6  # features that vary less than this carry nothing
LIMIT = 1 << 16  # training vectors that the logistic probe keeps
ITERATIONS = 200


class Logistic:
    """Multinomial logistic regression: mean cross-entropy plus `penalty` times the squared weights, by L-BFGS.

    Features are standardised and kept in memory, at most LIMIT of them: when more come, every second one is dropped and
    from then on only every second (fourth, ...) is taken, so that those kept stay evenly spread. Deterministic.
    """

    def __init__(self, classes: int, penalty: float):
        self.classes, self.penalty = classes, penalty
        self.counts = torch.zeros(classes, dtype=torch.float64)  # of all labels seen
        self.features: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.stride, self.seen = 1, 0
        self.weight: Tensor | None = None

    def add(self, features: Tensor, labels: Tensor) -> None:
        """features `[n, D]`, labels `[n]` in `[0, classes)`."""
        self.counts += torch.bincount(labels.cpu(), minlength=self.classes)
        first = -self.seen % self.stride
        self.seen += len(labels)
        self.features.append(features[first :: self.stride].float())
        self.labels.append(labels[first :: self.stride])
        while sum(map(len, self.labels)) > LIMIT:
            self.features = [torch.cat(self.features)[::2]]
            self.labels = [torch.cat(self.labels)[::2]]
            self.stride *= 2

    @torch.inference_mode(False)
    @torch.enable_grad()
    def solve(self) -> None:
        """Finds weight `[D, K]` and bias `[K]` on unstandardised features."""
        x, y = torch.cat(self.features).clone(), torch.cat(self.labels).clone()
        mean, std = x.mean(0), x.std(0, correction=0)
        scale = torch.where(std > SMALLEST_STD, 1 / std.clamp(min=SMALLEST_STD), 0)
        x = (x - mean) * scale
        weight = x.new_zeros(x.shape[1], self.classes).requires_grad_()
        bias = x.new_zeros(self.classes).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ weight + bias, y) + self.penalty * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        self.weight = scale[:, None] * weight.detach()
        self.bias = bias.detach() - mean @ self.weight

    def predict(self, features: Tensor) -> Tensor:
        """Classes `[n]` of features `[n, D]`."""
        if self.weight is None:
            self.solve()
        assert self.weight is not None
        return (features.float() @ self.weight + self.bias).argmax(1)


class Ridge:
    """Ridge regression to one-hot classes from running sums, float64 on the features' device."""

    def __init__(self, classes: int, ridge: float):
        self.classes, self.ridge = classes, ridge
        self.shift: Tensor | None = None  # [D] near the mean, so that the sums lose no digits
        self.outer = self.cross = self.sums = self.counts = torch.zeros(0)
        self.weight: Tensor | None = None

    def add(self, features: Tensor, labels: Tensor) -> None:
        """features `[n, D]`, labels `[n]` in `[0, classes)`."""
        x = features.double()
        if self.shift is None:
            self.shift = x.mean(0)
            width = x.shape[1]
            self.outer, self.sums = x.new_zeros(width, width), x.new_zeros(width)
            self.cross, self.counts = x.new_zeros(width, self.classes), x.new_zeros(self.classes)
        x = x - self.shift
        y = F.one_hot(labels, self.classes).double()  # [n, K]
        self.outer += x.T @ x
        self.sums += x.sum(0)
        self.cross += x.T @ y
        self.counts += y.sum(0)

    def solve(self) -> None:
        """Finds weight `[D, K]` and bias `[K]` on unstandardised features."""
        assert self.shift is not None
        n = self.counts.sum()
        mean, share = self.sums / n, self.counts / n  # [D], [K]
        covariance = self.outer / n - mean.outer(mean)
        std = covariance.diagonal().clamp(min=0).sqrt()
        scale = torch.where(std > SMALLEST_STD, 1 / std.clamp(min=SMALLEST_STD), 0)  # [D]
        correlation = covariance * scale.outer(scale)
        target = (self.cross / n - mean.outer(share)) * scale[:, None]
        penalty = self.ridge * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        self.weight = scale[:, None] * torch.linalg.solve(correlation + penalty, target)  # [D, K]
        self.bias = share - (mean + self.shift) @ self.weight

    def predict(self, features: Tensor) -> Tensor:
        """Classes `[n]` of features `[n, D]`."""
        if self.weight is None:
            self.solve()
        assert self.weight is not None
        return (features.double() @ self.weight + self.bias).argmax(1)
