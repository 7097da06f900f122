"""Jobs in other processes, and the statistics, against scipy's paired test and by hand."""

import json
import math
import time

import harness
import numpy as np
import pytest
from ablation.outcomes import at_cost
from harness import paired_difference
from scipy import stats

PLAIN = {0: 2.70, 1: 2.63, 2: 2.68, 3: 2.75, 4: 2.61}
ARM = {0: 2.61, 1: 2.60, 2: 2.57, 3: 2.71, 4: 2.58}


def test_interval_is_that_of_the_paired_t_test():
    found = paired_difference(ARM, PLAIN)
    test = stats.ttest_rel(list(ARM.values()), list(PLAIN.values()))
    expected = test.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(list(ARM.values())) - np.mean(list(PLAIN.values())))
    assert found.mean - found.half_width == pytest.approx(expected.low)
    assert found.mean + found.half_width == pytest.approx(expected.high)
    assert found.seeds == 5


def test_interval_by_hand():
    # Differences -1 and -3: mean -2, standard error 1, and t with one degree of freedom is 12.706.
    found = paired_difference({0: 1.0, 1: 1.0}, {0: 2.0, 1: 4.0})
    assert found.mean == -2
    assert found.half_width == pytest.approx(12.7062, rel=1e-5)


def test_pairs_are_matched_by_seed():
    found = paired_difference({2: 1.0, 7: 2.0}, {7: 2.5, 1: 9.0, 2: 1.5})
    assert found == paired_difference({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5})
    assert found.mean == -0.5
    assert found.half_width == 0


def test_no_interval_from_one_seed():
    found = paired_difference({0: 1.0}, {0: 1.5})
    assert (found.mean, found.seeds) == (-0.5, 1)
    assert math.isnan(found.half_width)


def test_what_is_not_finite_is_counted_and_not_averaged():
    found = paired_difference(ARM | {3: None}, PLAIN)
    assert math.isnan(found.mean)
    assert (found.seeds, found.not_finite) == (5, 1)
    assert paired_difference(ARM, PLAIN | {0: None}).not_finite == 1


def test_a_glow_of_equal_cost_is_between_its_neighbours():
    costs, scores = [1.0, 2.0, 4.0], [{0: 3.0, 1: 5.0}, {0: 2.0, 1: 4.0}, {0: 1.0, 1: 4.0, 2: 0.0}]
    assert at_cost(1.5, costs, scores) == {0: 2.5, 1: 4.5}
    assert at_cost(3.0, costs, scores) == {0: 1.5, 1: 4.0}
    assert at_cost(4.1, costs, scores) == {}
    assert at_cost(1.5, costs, [{0: None}, *scores[1:]]) == {0: None}


def test_a_difference_in_words():
    found = paired_difference({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.0})
    assert found.text("+.2f", ".3f") == "+0.75 ± 3.177"
    assert paired_difference({0: 1.0}, {0: 1.5}).text("+.2f", ".3f") == "-0.50"


def test_numbers_of_runs_are_json_whatever_they_are(tmp_path):
    harness.write_runs([harness.Run("imap", 2, 10, {"bits": math.nan})], tmp_path / "runs.json")
    (row,) = json.loads((tmp_path / "runs.json").read_text())
    assert row == {"arm": "imap", "seed": 2, "parameters": 10, "bits": None}


def test_the_machine_and_the_packages_are_recorded():
    found = harness.environment(("torch", "normflows"))
    assert set(found["versions"]) == {"python", "torch", "normflows"}
    assert found["hardware"]["cores"] > 0
    assert found["hardware"]["processor"]


def note(folder, name):
    """A job that leaves a file; one fails as soon as another waits."""
    if name == "fails":
        deadline = time.monotonic() + 60
        while not (folder / "waits").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        raise ValueError("as it should")
    (folder / name).touch()
    if name == "waits":
        time.sleep(30)
        (folder / "waited").touch()
    return name


def test_results_come_in_the_order_of_the_jobs(tmp_path):
    jobs = [(tmp_path, name) for name in "abc"]
    assert list(harness.do_all(note, jobs, workers=1)) == list("abc")


def test_results_come_in_their_order_until_one_fails_and_ends_the_others(tmp_path):
    names, found = [*"ab", "fails", "waits", *"cdefgh"], []
    with pytest.raises(ValueError, match="as it should"):
        found.extend(harness.do_all(note, [(tmp_path, name) for name in names], workers=2))
    assert found == ["a", "b"]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "waits"}
