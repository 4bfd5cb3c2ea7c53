import pytest
import torch
from torch import nn

from distill.evals.packed import SMALLEST, available, packed_linears


@pytest.mark.skipif(not available(), reason="this PyTorch has no oneDNN")
def test_packed_products_are_those_of_the_layers_and_leave_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SMALLEST, 2 * SMALLEST), nn.GELU(), nn.Linear(2 * SMALLEST, SMALLEST, bias=False))
    x = torch.randn(2, 7, SMALLEST)
    with torch.no_grad():
        expected = model(x)
        with packed_linears(model):
            assert "forward" in model[0].__dict__ and "forward" in model[2].__dict__
            torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
        assert "forward" not in model[0].__dict__
        model[0].weight += 1
        assert not torch.allclose(model(x), expected)


def test_small_and_other_layers_stay_as_they_are():
    class Own(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(SMALLEST - 1, SMALLEST), Own(SMALLEST, SMALLEST), nn.Linear(512, 512).double()])
    with packed_linears(model):
        assert not any("forward" in layer.__dict__ for layer in model)
    with packed_linears(object()):
        pass


def test_layers_come_back_after_an_error():
    model = nn.Linear(SMALLEST, SMALLEST)
    with pytest.raises(KeyError), packed_linears(model):
        raise KeyError
    assert "forward" not in model.__dict__
