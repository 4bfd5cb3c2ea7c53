from types import SimpleNamespace

import pytest

from distill.data.failures import Failures
from distill.data.sample import SampleError
from distill.errors import UserError


class Batch(SimpleNamespace):
    def __len__(self):
        return self.size


def batch(size, *errors):
    return Batch(size=size, failures=[SampleError(*error) for error in errors])


def test_report_counts_by_reason_and_names_each_sample_once():
    failures = Failures(0.5)
    failures.add(batch(10, ("a.tar", "1", "corrupt image (x)"), ("a.tar", "2", "corrupt image (y)")))
    failures.add(batch(10, ("a.tar", "1", "corrupt image (x)"), ("b.tar", "9", "empty caption (field 'web')")))
    text = failures.report()
    assert "4 of 20 samples (20.00%) were skipped:" in text
    assert "2 x corrupt image\n" in text
    assert "1 x empty caption\n" in text
    assert text.count("a.tar: 1: corrupt image (x)") == 1
    assert "b.tar: 9: empty caption" in text


def test_nothing_to_report():
    failures = Failures(0.1)
    failures.add(batch(10))
    assert failures.report() == ""


def test_what_was_damaged_on_opening_is_reported_but_not_in_the_rate():
    failures = Failures(0.0, [SampleError("a.tar", "-", "truncated tar")])
    failures.add(batch(500))
    assert failures.rate == 0
    assert "a.tar: -: truncated tar" in failures.report()


def test_too_many_stop_the_run_with_names():
    failures = Failures(0.05)
    failures.add(batch(99, *[("a.tar", str(n), "corrupt image") for n in range(20)]))  # too few to judge
    with pytest.raises(UserError, match=r"20 of 109 samples \(18.3%\).*5.0%.*a.tar: 0: corrupt image; a.tar: 1"):
        failures.add(batch(10))


def test_the_set_rate_itself_is_allowed():
    failures = Failures(0.1)
    failures.add(batch(100, *[("a.tar", str(n), "x") for n in range(10)]))
    assert failures.rate == 0.1
    with pytest.raises(UserError):
        failures.add(batch(1, ("a.tar", "10", "x")))


def test_state_continues():
    first = Failures(0.5)
    first.add(batch(10, ("a.tar", "1", "corrupt image (x)")))
    second = Failures(0.5)
    second.load(first.state())
    assert second.report() == first.report()
    second.add(batch(10, ("a.tar", "1", "corrupt image (x)")))
    assert (second.drawn, second.failed, len(second.samples)) == (20, 2, 1)


def test_ranks_are_added_up():
    ranks = [Failures(0.5, [SampleError("a.tar", "-", "truncated tar")]) for _ in range(2)]
    ranks[0].add(batch(10, ("a.tar", "1", "corrupt image (x)"), ("a.tar", "2", "corrupt image (y)")))
    ranks[1].add(batch(10, ("a.tar", "1", "corrupt image (x)"), ("b.tar", "9", "empty caption")))
    text = Failures.together(ranks).report()
    assert "4 of 20 samples (20.00%) were skipped:" in text
    assert "2 x corrupt image\n" in text
    assert text.count("a.tar: 1: corrupt image (x)") == 1
    assert "b.tar: 9: empty caption" in text
    assert "1 records were left out" in text
