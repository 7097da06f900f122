"""What the page on training at real size says is what its runs say."""

import math
from itertools import pairwise

import pytest
from ablation.outcomes import lowest, read_results, unpack
from harness import paired_difference

from tests.studies.ablation.support import of_length
from tests.studies.pages import DOCS

COUPLING, TWICE = "coupling-windows-as-inserted", "coupling-windows-twice-the-bounds"
AFFINE = "itrans-affine-as-inserted"


def difference(found, one, other):
    return paired_difference(found[one].scores, found[other].scores)


@pytest.fixture(scope="module")
def real_size(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real-size")
    unpack(DOCS / "real-size" / "ablation.json", folder)
    return folder


def sign(difference):
    """Zero for a difference that is not sure."""
    return 0 if abs(difference.mean) < difference.half_width else math.copysign(1, difference.mean)


def test_what_is_said_of_short_trainings(real_size):
    found = of_length(real_size, "digits-28", "short")
    assert all(len(outcome.scores) == 3 for outcome in found.values())
    layers = ["coupling", "itrans-affine-auto-patches", "imap", "itrans-auto-patches"]
    assert sorted(layers, key=lambda name: found[name].gain.mean) == layers
    for name in ("coupling", "coupling-windows", "itrans-affine-auto-patches"):
        assert sign(found[name].gain) == sign(found[name].at_parameters) == -1
    assert sign(found["wide"].at_parameters) == 1
    for name in ("coupling-windows", "itrans-affine-auto-patches"):
        assert sign(found[name].at_time) == 1
    assert (sign(found["imap"].gain), sign(found["imap"].at_time)) == (-1, 0)
    assert sign(found["itrans-auto-patches"].gain) == 0
    windows, whole = found["coupling-windows"], found["coupling"]
    assert sign(difference(found, "coupling-windows", "coupling")) == 0
    assert 0.5 < windows.time / whole.time < 0.6


def test_what_is_said_of_masks_in_turns_and_of_bounds(real_size):
    found = of_length(real_size, "digits-28", "short")
    windows, in_turns = found["coupling-windows"], found["coupling-windows-in-turns"]
    assert in_turns.gain.mean > 0.5 * windows.gain.mean
    assert in_turns.time - 1 == pytest.approx(0.5 * (windows.time - 1), rel=0.1)
    affine = found["itrans-affine-auto-patches"]
    assert in_turns.gain.mean > affine.gain.mean
    assert in_turns.time == pytest.approx(affine.time, abs=0.06)
    for name, other in {
        "coupling-windows-as-inserted": "coupling-windows",
        "itrans-affine-as-inserted": "itrans-affine-auto-patches",
    }.items():
        assert sign(difference(found, name, other)) == 0
    assert difference(found, "itrans", "itrans-auto-patches").mean == 0


def test_what_is_said_of_the_start_of_the_paper(real_size):
    found = of_length(real_size, "digits-28", "short")
    assert [sign(found[arm].gain) for arm in ("imap-paper", "itrans-paper")] == [1, 1]


def test_what_is_said_of_the_protocol_of_the_paper(real_size):
    found = of_length(real_size, "digits-3x32x32", "short")
    assert all(len(outcome.scores) == 3 for outcome in found.values())
    arms = (AFFINE, "coupling-windows-of-8-as-inserted", "imap")
    affine, coupling, imap = (found[arm].gain for arm in arms)
    assert [sign(gain) for gain in (affine, coupling, imap)] == [-1, -1, -1]
    assert affine.mean / coupling.mean == pytest.approx(1, abs=0.1)
    assert imap.mean / coupling.mean == pytest.approx(0.5, abs=0.1)
    for arm in arms[:2]:
        assert sign(difference(found, arm, "depth-6")) == 0
    assert found[AFFINE].time < found["depth-6"].time < found[arms[1]].time
    other = of_length(real_size, "digits-28", "short")
    assert other["depth-5"].gain.mean < 0.6 * other["depth-6"].gain.mean
    assert affine.mean < other[AFFINE].gain.mean
    assert coupling.mean < other[COUPLING].gain.mean
    assert imap.mean < other["imap"].gain.mean


def test_what_is_said_of_photographs(real_size):
    found = of_length(real_size, "photographs-32", "short")
    assert all(len(outcome.scores) == 3 for outcome in found.values())
    windows = "coupling-windows-of-8-as-inserted"
    layers = [AFFINE, "itrans-auto-patches", windows, "imap"]
    assert sorted(layers, key=lambda name: found[name].gain.mean) == layers
    assert [sign(found[name].gain) for name in layers] == [-1, -1, -1, 0]
    deeper = found["depth-6"]
    for name in layers[:2]:
        assert sign(difference(found, name, "depth-6")) == -1
        assert found[name].time < deeper.time
        assert found[name].parameters < deeper.parameters
    at_least_as_good = difference(found, AFFINE, "depth-8")
    assert at_least_as_good.mean < 0 == sign(at_least_as_good)
    assert sign(difference(found, windows, "depth-8")) == 0
    assert found[windows].time == pytest.approx(found["depth-8"].time, rel=0.05)


def test_what_is_said_of_long_trainings(real_size):
    short, long = (of_length(real_size, "digits-28", length) for length in ("short", "long"))
    seeds = {name: len(outcome.scores) for name, outcome in long.items()}
    assert seeds == dict.fromkeys(long, 3) | {"coupling-windows": 1}
    best = of_length(real_size, "digits-28", "long", lowest)
    for arm in (COUPLING, AFFINE):
        assert sign(long[arm].gain) == sign(best[arm].at_parameters) == -1
        assert 0.4 < long[arm].gain.mean / short[arm].gain.mean < 0.5
    assert long[AFFINE].time < long["depth-6"].time < long[COUPLING].time
    assert long["depth-6"].time == pytest.approx(long[COUPLING].time, abs=0.2)

    def better(one, other):
        return sum(best[one].scores[seed] < best[other].scores[seed] for seed in range(3))

    assert better("depth-6", AFFINE) == 2
    assert better("depth-6", COUPLING) == 1
    assert better(COUPLING, AFFINE) == 3
    assert sign(difference(best, "depth-6", AFFINE)) == 0


def test_what_is_said_of_bounds_in_long_trainings(real_size):
    curves = {
        (result["config"]["arm"], result["config"]["seed"]): dict(result["curve"])
        for result in read_results(real_size)
        if result["config"]["length"] == "long"
    }
    for seed in range(3):
        plain = curves["plain", seed]
        assert 0.01 < plain[3600] - plain[4000] < 0.015
        for arm in (COUPLING, AFFINE):
            assert all(earlier > later for earlier, later in pairwise(curves[arm, seed].values()))
    for seed in (1, 2):
        assert abs(curves[TWICE, seed][4000] - curves[COUPLING, seed][4000]) < 0.01
    first = {arm: curve for (arm, seed), curve in curves.items() if seed == 0}
    assert min(first[TWICE], key=first[TWICE].get) == 2800
    assert all(first[TWICE][step] < first["plain"][step] for step in first["plain"] if step <= 3200)
    assert first[TWICE][4000] > first["plain"][4000] + 10
    assert first["coupling-windows"][2000] < 2
    assert first["coupling-windows"][2400] > 1000
    assert first["coupling-windows"][4000] > 1000 * first[TWICE][4000]
    broken = [seed for seed in range(3) if curves["depth-6", seed][4000] > 2]
    assert broken == [1]
    assert curves["depth-6", 1][2000] < 2
    assert curves["depth-6", 1][2400] > 7
