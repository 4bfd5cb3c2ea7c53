import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from distill.objectives.prototypes import PrototypeTargets


def load(name: str) -> ModuleType:
    """A helper module beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    return load("golden")


@pytest.fixture
def unit():
    """`unit(*shape)`: random unit vectors along the last axis, float64, the same at every run."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)

    return make


@pytest.fixture
def targets(unit):
    """`targets(*shape)`: centred prototype targets for tokens of that shape; 11 prototypes in 5 dimensions."""

    def make(*shape: int) -> PrototypeTargets:
        return PrototypeTargets(unit(*shape, 5), unit(11, 5), 0.2 * unit(11), 0.07)

    return make
