"""Numbers of the page on evidence, and of the README, are those of the files with the results."""

import json
import re

import digits
import pytest
from digits_pictures import Shown, gain_over_plain, relative_time
from harness import PLAIN, Run, by_arm, paired_difference

from tests.studies.pages import DOCS, between, rows_below

EVIDENCE = (DOCS / "evidence.md").read_text()
README = (DOCS.parent / "README.md").read_text()

# The demo.


@pytest.fixture(scope="module")
def demo():
    """The runs of `make demo`."""
    rows = json.loads((DOCS / "evidence" / "digits.json").read_text())
    names = "seconds", "train_bits_per_dim", "test_bits_per_dim"
    return [
        Run(
            row["arm"],
            row["seed"],
            row["parameters"],
            {name: row[name] for name in names},
            Shown(row["test_curve"], [], []),
        )
        for row in rows
    ]


def test_the_verdict_of_the_demo_is_that_of_its_runs(demo):
    assert f"```text\n{digits.verdict(demo)}\n```" in EVIDENCE


def test_the_table_of_the_demo_is_that_of_its_runs(demo):
    names = {"plain": PLAIN, "IMap": "imap", "ITrans": "itrans", "AttentionCoupling": "coupling"}
    shown = rows_below(EVIDENCE, "| normflows | parameters | time |")
    assert shown.keys() == names.keys()
    for name, arm in names.items():
        runs = by_arm(demo)[arm]
        head = [f"{runs[0].parameters:,}".replace(",", " "), f"{relative_time(demo, arm):.1f}"]
        if arm == PLAIN:
            head[1] = "1"
        gain = "" if arm == PLAIN else gain_over_plain(demo, arm).text("+.3f", ".3f")
        bits = [f"{run.values['test_bits_per_dim']:.3f}" for run in runs]
        assert [*head, *bits, gain] == [cell.strip("| ") for cell in shown[name]]


# Deep stacks.

KINDS = {
    "imap": "IMap",
    "imap-sigmoid": 'IMap, `activation="sigmoid"`',
    "itrans": "ITrans",
    "affine": "ITrans, `affine=True`",
    "affine-values": "ITrans, `affine`, `value_mixing`, 2 heads",
    "coupling": "AttentionCoupling",
}
ERRORS = ("round trip of samples", "round trip of data", "log-det per dimension")


def stacks():
    """What was measured of each stack, at both learning rates."""
    lines = (DOCS / "evidence" / "deep_stacks.jsonl").read_text().splitlines()
    found: dict[tuple, list] = {}
    for result in sorted(map(json.loads, lines), key=lambda result: result["model"]["rate"]):
        model = result["model"]
        found.setdefault((model["layers"], model["kind"], model["alone"]), []).append(result)
    return found


def number(value):
    """As in the table: large ones in powers of ten."""
    return (f"{value:.1f}" if value < 1000 else f"{value:.0e}").replace("e+0", "e+")


@pytest.mark.parametrize(("stack", "results"), stacks().items(), ids=str)
def test_trained_stacks_are_those_of_their_file(stack, results):
    layers, kind, alone = stack
    text = between(
        EVIDENCE, "With the bounds of single layers (`--alone`)" if alone else "### Trained"
    )
    bits = [f"{result['bits']:.2f}" for result in results]
    largest = number(max(result["largest sample"] for result in results))
    errors = [f"{max(r[name] for r in results):.0e}".replace("e-0", "e-") for name in ERRORS]
    row = " | ".join([str(layers), KINDS[kind], *bits, largest, *errors])
    assert f"| {row} |" in text


# Tables that were made by hand from runs that are gone: what follows from their own numbers.


def differences_of_seeds(text):
    """Rows of tables with a column for each seed, as they are and as they should be."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
        seeds = [i for i, name in enumerate(head) if name.startswith("seed")]
        if not seeds:
            continue
        plain, *others = ({i: float(row[i]) for i in seeds} for row in rows)
        for row, own in zip(rows[1:], others, strict=True):
            gain = paired_difference(own, plain)
            yield row[0], row[head.index("against plain")], gain.text("+.3f", ".3f")


def test_differences_are_those_of_the_seeds_beside_them():
    found = list(differences_of_seeds(EVIDENCE))
    assert len(found) >= 13
    for name, shown, computed in found:
        for pair in zip(shown.split(" ± "), computed.split(" ± "), strict=True):
            assert abs(float(pair[0]) - float(pair[1])) < 0.0021, name  # Seeds are rounded.


# The benchmarks.


@pytest.fixture(scope="module")
def benchmarks():
    return json.loads((DOCS / "benchmarks" / "benchmarks.json").read_text())["tables"]


# Its models by the names that a reader gets.
MODELS = {
    "two ActNorms of normflows in the same places": "two ActNorms of the host in the same places",
    "ITrans, 64 tokens, in the first two levels": "ITrans, 64 tokens",
}


def test_costs_in_the_evidence_are_those_of_the_benchmarks(benchmarks):
    measured = {row["model"]: row for row in benchmarks["bench_glow"]["Whole models in normflows"]}
    shown = rows_below(EVIDENCE, "## Cost")
    assert len(shown) == 8
    for name, cells in shown.items():
        row = measured[MODELS.get(name, name)]
        medians = [f"{row[part][0]:.2f}" for part in ("training step", "density", "sampling")]
        assert [cell.strip("| ") for cell in cells] == medians, name


def test_costs_of_whole_models_are_those_of_the_benchmarks_where_layers_are_chosen(benchmarks):
    measured = {row["model"]: row for row in benchmarks["bench_glow"]["Whole models in normflows"]}
    text = " ".join((DOCS / "choosing.md").read_text().split())
    for model in ("IMap", "AttentionCoupling, windows of 4"):
        median = measured[model]["training step"][0]
        assert f"took [{median:.2f} times as long](benchmarks.md#whole-models)" in text


def test_the_depth_of_the_evidence_is_that_of_the_benchmarks(benchmarks):
    stacks = {(r["stack"], r["layers"]): r for r in benchmarks["bench_depth"]["Depth"]}
    text = " ".join(between(EVIDENCE, "## Depth", "### Trained stacks").split())
    for stack, said in {
        ("IMap, exp", 256): "IMap the round trip is off by {:.0e}",
        ("ITrans, large parameters", 256): "strong attention by up to {:.1f}",
        ("IMap, exp, a gain bound of 2 / layers, large", 256): "off by {:.0e} for IMap",
        ("ITrans, a gain bound of 2 / layers, large", 256): "and {:.0e} for ITrans",
    }.items():
        number = said.format(stacks[stack]["round trip"]).replace("e-0", "e-")
        assert number in text


def test_the_cost_at_real_size_in_the_readme_is_that_of_the_benchmarks(benchmarks):
    title = "Glow in normflows, 3 levels of 4 steps, 256 hidden channels, 16 images of 3x32x32"
    rows = benchmarks["bench_real_size"][title]
    times = [row["training step"][0] for row in rows if row["model"] != "without attention"]
    said = f"{min(times):.1f} to {max(times):.1f} times as long"
    assert said in README


def test_the_cost_at_real_size_against_the_layers_of_the_hosts(benchmarks):
    tables = [rows for title, rows in benchmarks["bench_real_size"].items() if "Glow in" in title]
    assert len(tables) == 3
    longest = []
    for rows in tables:
        times = {row["model"]: row["training step"][0] for row in rows}
        own = times.pop("the host's own layers")
        longest.append(times.pop("AttentionCoupling, windows of 4") / own)
        assert max(times.values()) <= own
    assert max(longest) == pytest.approx(1.25, abs=0.02)
