from __future__ import annotations

from homeport.node.stock import CALM_S, Stock


def test_it_doubles_when_somebody_had_to_wait_up_to_a_bound() -> None:
    stock = Stock(8, 20)
    assert stock.wanted == 8
    assert not stock.is_raised
    stock.missed(1.0)
    assert stock.wanted == 16
    stock.missed(1.1)
    assert stock.wanted == 20
    assert stock.is_raised


def test_it_comes_down_in_calm_times_only() -> None:
    stock = Stock(8, 64)
    stock.missed(100.0)
    stock.missed(110.0)
    assert stock.calm(120.0) == 110.0 + CALM_S - 120.0
    assert stock.wanted == 32
    assert stock.calm(110.0 + CALM_S) == CALM_S
    assert stock.wanted == 16
    assert stock.calm(110.0 + 2 * CALM_S) == 0.0
    assert stock.wanted == 8
    assert stock.calm(1000.0) == 0.0


def test_without_a_least_it_begins_with_one() -> None:
    stock = Stock(0, 4)
    stock.missed(1.0)
    assert stock.wanted == 1


def test_a_stock_that_may_hold_nothing_stays_empty() -> None:
    stock = Stock(0, 0)
    stock.missed(1.0)
    assert stock.wanted == 0
