"""Metering: what a request cost stands in its log entry and in the worker's counters, and adds up."""

from __future__ import annotations

import time
from typing import Any

import pytest

from genward import meter
from genward.costs import report
from genward.errors import PolicyError
from genward.policy import Policy
from genward.policyset import PolicySet
from genward_audit.entries import encode
from genward_audit.errors import FormatError

_TARIFF = "\npruning: {price_per_vcpu_hour: 3600, target: {cost_per_million_rows: 1.0}}\n"


def _burnt(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_meter_counts_cpu_and_not_waiting() -> None:
    found = meter.Meter()
    with found:
        time.sleep(0.1)
        _burnt(0.02)
    with found:
        meter.count_computed(7)
        _burnt(0.02)
    cost = found.take(tariff=3600.0)
    assert 40_000 <= cost["cpu_us"] < 90_000
    assert cost["computed"] == 7
    assert abs(cost["price_pico"] / 1e12 - cost["cpu_us"] / 1e6) < 1e-6  # 3600 an hour is 1 a second
    assert found.take(tariff=None) == {"cpu_us": 0, "computed": 0, "bytes": 0}


def test_each_request_pays_for_what_it_computed_and_the_cache_is_free(world: Any) -> None:
    client = world.platform.client(world.key)
    first, again = (client.generate("open:1", n=900, start=0, format="arrow") for _ in range(2))
    costs = [world.entries(answer.headers["genward-request"])[0]["cost"] for answer in (first, again)]
    assert costs[0]["computed"] >= 900
    assert costs[1]["computed"] == 0
    assert costs[0]["bytes"] == len(first.body)
    assert costs[0]["cpu_us"] > costs[1]["cpu_us"] > 0
    assert "price_pico" not in costs[0]  # no policy named a tariff


def test_a_stream_settles_what_it_cost(world: Any) -> None:
    answer = world.platform.client(world.key).generate("open:1", n=11_000, start=0, format="csv")
    (settle,) = [e for e in world.entries(answer.headers["genward-request"]) if e["event"] == "settle"]
    assert settle["cost"]["computed"] >= 11_000
    assert 0.9 * len(answer.body) < settle["cost"]["bytes"] <= len(answer.body)
    assert settle["cost"]["cpu_us"] > 0


def test_a_tariff_of_the_policy_makes_a_price_in_entries_metrics_and_the_report(world: Any) -> None:
    world.activate(world.platform.policy_text() + _TARIFF)
    client = world.platform.client(world.key)
    answers = [client.generate("open:1", n=n) for n in (700, 300)]
    costs = [world.entries(answer.headers["genward-request"])[0]["cost"] for answer in answers]
    assert all(abs(c["price_pico"] - 1e6 * c["cpu_us"]) <= 1e6 for c in costs)
    lines = dict(line.rsplit(" ", 1) for line in world.platform.pipeline.metrics().splitlines())
    labels = '{tenant="acme",model="open:1"}'
    assert float(lines[f"genward_cost_rows_total{labels}"]) == 1000
    assert abs(float(lines[f"genward_cost_cpu_seconds_total{labels}"]) * 1e6 - sum(c["cpu_us"] for c in costs)) < 1
    assert abs(float(lines[f"genward_cost_price_total{labels}"]) - sum(c["price_pico"] for c in costs) / 1e12) < 1e-9
    found = report(world.platform, "open:1")
    assert (found["requests"], found["rows"]) == (2, 1000)
    assert found["price"] == pytest.approx(sum(c["price_pico"] for c in costs) / 1e12)
    assert found["predicted_per_million_rows"] is None  # nobody predicted one for this release


def test_refusals_cost_nothing(world: Any) -> None:
    with pytest.raises(Exception, match="NO"):
        world.platform.client(world.key).generate("open:1", n=5, where=["NO > 1"])
    assert "cost" not in world.log()[-1]


def test_two_policies_cannot_both_name_a_tariff() -> None:
    class One(Policy):
        name = "one"
        tariff = 1.0

    class Two(One):
        name = "two"

    assert PolicySet([One(None, None)], "d").tariff == 1.0  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="tariff"):
        PolicySet([One(None, None), Two(None, None)], "d")  # type: ignore[arg-type]


@pytest.mark.parametrize("cost", [{"cpu_us": -1}, {"cpu_us": 1.5}, {"watts": 3}, 7])
def test_the_log_takes_costs_in_whole_numbers_only(cost: Any) -> None:
    assert encode("settle", request="r", status="served", cost={"cpu_us": 3, "price_pico": 1 << 50})
    with pytest.raises(FormatError):
        encode("settle", request="r", status="served", cost=cost)
