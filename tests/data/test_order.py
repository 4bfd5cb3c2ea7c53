import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.order import RUN_SHARE, Order, keyed_rng
from distill.errors import UserError

sizes = st.integers(1, 300)
shuffles = st.integers(0, 400)


@settings(max_examples=60, deadline=None)
@given(length=sizes, shuffle=shuffles, seed=st.integers(0, 9), epoch=st.integers(0, 5))
def test_an_epoch_of_one_pass_is_a_permutation(length, shuffle, seed, epoch):
    assert sorted(Order(length, seed, shuffle).epoch(epoch)) == list(range(length))


@settings(max_examples=60, deadline=None)
@given(length=sizes, shuffle=shuffles, size=sizes, data=st.data())
def test_access_in_any_order_equals_iteration(length, shuffle, size, data):
    numbers = data.draw(st.lists(st.integers(0, 3 * size - 1), max_size=30))
    iterated = [index for epoch in range(3) for index in Order(length, 1, shuffle, size).epoch(epoch)]
    order = Order(length, 1, shuffle, size)
    assert [order.index(*order.split(number)) for number in numbers] == [iterated[number] for number in numbers]


@settings(max_examples=60, deadline=None)
@given(length=sizes, shuffle=shuffles, size=sizes)
def test_epochs_of_another_size_go_on_through_the_passes(length, shuffle, size):
    order = Order(length, 2, shuffle, size)
    drawn = [index for epoch in range(-(-2 * length // size)) for index in order.epoch(epoch)][: 2 * length]
    passes = [list(Order(length, 2, shuffle).epoch(number)) for number in (0, 1)]
    assert drawn == passes[0] + passes[1]


@settings(max_examples=60, deadline=None)
@given(length=sizes, shuffle=shuffles, size=sizes, repeat=st.integers(1, 4), epoch=st.integers(0, 9))
def test_a_repeating_order_has_the_epochs_of_the_first_period(length, shuffle, size, repeat, epoch):
    order, plain = Order(length, 3, shuffle, size, repeat), Order(length, 3, shuffle, size)
    assert list(order.epoch(epoch)) == list(plain.epoch(epoch % repeat))
    rows = [order.row(number, position) for number in range(repeat) for position in range(size)]
    assert rows == list(range(repeat * size))
    assert order.row(epoch, size - 1) == rows[(epoch % repeat) * size + size - 1]


def test_epochs_and_seeds_differ():
    order = Order(200, 0, 64)
    assert list(order.epoch(0)) != list(order.epoch(1))
    assert list(order.epoch(0)) != list(Order(200, 1, 64).epoch(0))
    assert list(order.epoch(3)) == list(Order(200, 0, 64).epoch(3))


def test_no_shuffling_is_the_stored_order():
    assert list(Order(50, 7, 0).epoch(4)) == list(range(50))


def test_a_window_mixes_runs_from_the_whole_source():
    length, shuffle = 100_000, 3200
    order = Order(length, 0, shuffle)
    window = [order.index(0, position) for position in range(shuffle)]
    assert {index // order.run for index in window} == set(np.array(window) // order.run)
    assert len({index // order.run for index in window}) == RUN_SHARE  # whole runs, and no others
    assert np.ptp(window) > length / 2  # from all over the source
    ranks = np.argsort(np.argsort(window))
    assert abs(np.corrcoef(ranks, np.arange(shuffle))[0, 1]) < 0.1  # and not in order


def test_a_window_as_large_as_the_source_is_a_plain_shuffle():
    firsts = [Order(8, seed, 8).index(0, 0) for seed in range(400)]
    counts = np.bincount(firsts, minlength=8)
    assert counts.min() > 25  # 50 expected of each


def test_memory_stays_small_for_the_paper_s_data():
    order = Order(116_000_000, 0, 10_000)
    seen = {order.index(0, position) for position in (0, 1, 57_999_999, 115_999_999)}
    assert len(seen) == 4
    assert sum(kept.nbytes for kept in order._kept.values()) < 16 * 2**20


def test_bounds():
    with pytest.raises(UserError, match="at least 1"):
        Order(0)
    with pytest.raises(UserError, match=r"data\.epoch 0"):
        Order(5, 0, 0, 0)
    with pytest.raises(IndexError):
        Order(5).index(0, 5)


def test_keyed_rng_depends_on_every_part_of_the_key():
    draws = {
        keyed_rng(*key).integers(2**62) for key in [(0, 1, 2, 3), (1, 1, 2, 3), (0, 2, 2, 3), (0, 1, 3, 2), (0, 1, 2)]
    }
    assert len(draws) == 5
    assert keyed_rng(0, 1).integers(2**62) == keyed_rng(0, 1).integers(2**62)
