import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.config.schema import MomentumConfig, OptimConfig, TemperatureRamp
from distill.training.schedules import learning_rate, momentum, ramp

steps_and_step = st.integers(2, 5000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))


@given(steps_and_step, st.floats(0, 0.9), st.sampled_from(["cosine", "linear", "constant"]), st.floats(0, 1))
def test_learning_rate_is_positive_and_never_above_peak(pair, warmup, schedule, final):
    steps, step = pair
    rate = learning_rate(step, steps, OptimConfig(lr=2.0, warmup=warmup, schedule=schedule, final=final))
    assert -1e-12 <= rate <= 2.0 + 1e-12


def test_warmup_rises_linearly_to_the_peak_and_then_falls():
    cfg = OptimConfig(lr=1.0, warmup=0.1, schedule="cosine", final=0.0)
    rates = [learning_rate(s, 100, cfg) for s in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))
    assert rates[-1] == pytest.approx(0.0)
    # half-way between the peak (step 10) and the end (step 99): cosine is at one half
    assert learning_rate(54, 99, OptimConfig(lr=1.0, warmup=10 / 99)) == pytest.approx(0.5)


def test_linear_constant_and_final_share():
    linear = OptimConfig(lr=1.0, warmup=0.0, schedule="linear", final=0.2)
    assert learning_rate(50, 101, linear) == pytest.approx(0.6)
    assert learning_rate(100, 101, linear) == pytest.approx(0.2)
    constant = OptimConfig(lr=1.0, warmup=0.0, schedule="constant", final=0.2)
    assert learning_rate(100, 101, constant) == 1.0
    assert learning_rate(0, 10, constant, peak=3.0) == 3.0


def test_momentum_follows_a_cosine_between_its_ends():
    cfg = MomentumConfig(start=0.9, end=1.0)
    assert momentum(0, 101, cfg) == pytest.approx(0.9)
    assert momentum(100, 101, cfg) == pytest.approx(1.0)
    assert momentum(50, 101, cfg) == pytest.approx(0.95)
    assert momentum(25, 101, cfg) == pytest.approx(1.0 - 0.1 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_temperature_ramps_linearly_then_stays():
    cfg = TemperatureRamp(start=0.04, end=0.07, warmup=0.5)
    assert ramp(0, 100, cfg) == pytest.approx(0.04)
    assert ramp(25, 100, cfg) == pytest.approx(0.055)
    assert ramp(50, 100, cfg) == ramp(99, 100, cfg) == 0.07
    assert ramp(0, 100, TemperatureRamp(0.04, 0.07, 0.0)) == 0.07
