"""What a job will take: by what was measured of its like, or not at all."""

from __future__ import annotations

import os

from curation.costs import Pace, estimate, pace_of, told
from curation.events import Begun, Ended, Entry
from curation.standing import Spent


def attempt(name: str, like: str, done: int, worker_s: float, at: float) -> list[Entry]:
    begun = Begun("curate", "heap", 1, "inputs", 10, 0, {}, 2, "here", 1, like)
    spent = {"worker_s": {"cpu_node": worker_s / 2, "gpu_node": worker_s / 2}}
    return [Entry(at, name, begun), Entry(at + 1, name, Ended("finished", "", {"measure": done}, {}, spent))]


def test_the_pace_is_that_of_the_newest_attempt_at_the_like_of_it() -> None:
    entries = [
        *attempt("one", "x", 100, 10.0, 1),
        *attempt("two", "x", 300, 10.0, 3),
        *attempt("other", "y", 7, 1.0, 5),
        *attempt("nothing was left", "x", 0, 0.0, 7),
    ]
    assert pace_of(entries, "x", "measure") == Pace(30.0, "two")
    assert pace_of(entries, "x", "decide") is None
    assert pace_of(entries, "z", "measure") is None


def test_node_hours_follow_from_pace_and_workers() -> None:
    found = estimate(7200, 2, Pace(0.5, "one"), cpus=2 * (os.cpu_count() or 1), gpus=0, prices={"cpu_node": 0.25})
    assert (found.worker_hours, found.wall_hours) == (4.0, 2.0)
    assert (found.nodes, found.node_hours, found.price) == ({"cpu_node": 2}, {"cpu_node": 4.0}, {"cpu_node": 1.0})
    assert found.basis == "measured: 0.5 a second and worker, in attempt one"
    on_gpus = estimate(3600, 4, Pace(1.0, "one"), cpus=4, gpus=4, prices={})
    assert (on_gpus.nodes, on_gpus.node_hours, on_gpus.price) == ({"gpu_node": 4}, {"gpu_node": 1.0}, {})


def test_what_is_not_known_is_not_made_up() -> None:
    unknown = estimate(10, 1, None, cpus=1, gpus=0, prices={"cpu_node": 1.0})
    assert (unknown.node_hours, unknown.wall_hours, unknown.price) == (None, None, {})
    assert unknown.basis.startswith("unknown")
    done = estimate(0, 1, None, cpus=1, gpus=0, prices={})
    assert (done.basis, done.node_hours) == ("nothing is left to do", {"cpu_node": 0.0})


def test_what_it_took_in_a_line() -> None:
    spent = Spent(3600.0, {"cpu_node": 7200.0}, {"cpu_node": 5000.0}, 1800.0, {"cpu_node": 0.5})
    assert told(spent) == "took 1 h: 2 h of cpu_node; 30 min of CPU; at the prices given 0.5"
    assert told(Spent(90.0, {"cpu_node": 180.0}, {}, 20.25)) == "took 1.5 min: 3 min of cpu_node; 20.2 s of CPU"
    long = Spent(3.6e6, {"gpu_node": 4.5e7}, {}, 0.0, {"gpu_node": 31_250.0})
    assert told(long) == "took 1,000 h: 12,500 h of gpu_node; 0 s of CPU; at the prices given 31,250"
    assert told(Spent(59.0, {"cpu_node": 59.0}, {}, 0.0)) == "took 59 s: 59 s of cpu_node; 0 s of CPU"
