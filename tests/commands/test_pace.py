"""Rate and time left: from the second unit of work on, and of this run's own work alone."""

from __future__ import annotations

import pytest

from genie_cli.commands.pace import Pace


def paced(*moments: tuple[float, float], total: float = 100) -> Pace:
    """The pace after moments of (seconds, units done)."""
    pace = Pace()
    for seconds, done in moments:
        pace.update(seconds, done, done / total)
    return pace


def test_nothing_is_known_before_the_second_unit_of_work():
    assert (Pace().rate, Pace().seconds_left, Pace().rough_seconds_left, Pace().seconds_watched) == (None,) * 3 + (0,)
    begun = paced((0, 0))
    assert (begun.rate, begun.seconds_left, begun.rough_seconds_left) == (None, None, None)
    one = paced((0, 0), (5, 1))
    assert (one.rate, one.seconds_left) == (None, None)


def test_one_unit_of_work_gives_a_rough_idea():
    assert paced((0, 0), (5, 1)).rough_seconds_left == pytest.approx(99 * 5)


def test_what_comes_before_the_first_unit_of_work_does_not_count():
    pace = paced((0, 0), (1000, 0), (1050, 1), (1060, 2), (1070, 3))
    assert pace.rate == pytest.approx(0.1)
    assert pace.seconds_left == pytest.approx(970)
    assert pace.seconds_watched == pytest.approx(70)


def test_the_rate_is_that_of_all_work_since():
    pace = paced((0, 0), (1, 1), (2, 2), (12, 3))
    assert pace.rate == pytest.approx(2 / 11)
    assert pace.seconds_left == pytest.approx(97 * 11 / 2)


def test_the_work_of_an_earlier_run_does_not_count():
    pace = Pace()
    pace.update(0, 50, 0.5, found=True)
    pace.update(10, 50, 0.5, found=True)
    assert pace.seconds_left is None
    pace.update(12, 51, 0.51)
    assert pace.seconds_left is None
    pace.update(14, 52, 0.52)
    assert pace.rate == pytest.approx(0.5)
    assert pace.seconds_left == pytest.approx(48 * 2)


def test_work_that_is_found_on_the_way_does_not_count():
    pace = paced((0, 0), (2, 1), (4, 2))
    pace.update(4, 42, 0.42, found=True)
    assert pace.rate == pytest.approx(0.5)
    assert pace.seconds_left == pytest.approx(58 * 2)
    pace.update(6, 43, 0.43)
    assert pace.rate == pytest.approx(0.5)
    assert pace.seconds_left == pytest.approx(57 * 2)


def test_time_goes_by_cost_and_the_rate_by_units_of_work():
    """The first ten units of work cost as much as the ninety behind them."""
    pace = Pace()
    for done in range(1, 10):
        pace.update(done * 9, done, 0.05 * done)
    assert pace.rate == pytest.approx(1 / 9)
    assert pace.seconds_left == pytest.approx(0.55 / 0.05 * 9)


def test_a_part_that_starts_anew_is_timed_anew():
    pace = paced((0, 0), (1, 1), (2, 2), (3, 3), (3, 0))
    assert pace.seconds_left is None
    pace.update(13, 1, 0.01)
    pace.update(23, 2, 0.02)
    assert pace.seconds_left == pytest.approx(980)


def test_the_end_leaves_nothing():
    assert paced((0, 0), (1, 50), (2, 100)).seconds_left == 0
