"""Numbers of studies in the documentation are those of their files: none is stale."""

import re
from collections import Counter
from pathlib import Path

import pytest
from ablation import report as ablation_report
from ablation.outcomes import outcomes, read_results, unpack
from ablation.runs import read_times
from harness import paired_difference
from vectors.models import REFERENCE
from vectors.outcomes import kinds_of, read_published, verdict
from vectors.report import summary, tables

DOCS = Path(__file__).parents[2] / "docs"
CHOOSING = (DOCS / "choosing.md").read_text()
VECTORS = DOCS / "evidence-vectors.md"
WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def rows_below(text, head):
    """The cells of the first table below a head, by the first one of each row."""
    lines = text[text.index(head) :].split("| --- |", 1)[1].split("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: rest for first, *rest in cells}


# Without images.


@pytest.fixture(scope="module")
def published():
    return read_published(DOCS / "evidence-vectors" / "numbers.json")


def test_the_study_without_images_is_that_of_its_numbers(published):
    groups, made = published
    assert summary(groups, made, "evidence-vectors/") in VECTORS.read_text()
    assert tables(groups, VECTORS) == (DOCS / "evidence-vectors" / "tables.md").read_text()


def test_a_deeper_flow_is_ahead_where_it_is_said(published):
    ahead = {
        pair
        for pair, group in published[0].items()
        if verdict(paired_difference(group[REFERENCE].scores, group["deeper, as much time"].scores))
        == "worse"
    }
    assert {backbone for data, backbone in ahead if data != "DW4"} == {"MAF (nflows)"}
    assert {pair for pair in ahead if pair[0] == "DW4"} == {("DW4", "RealNVP (nflows)")}


def count(groups, other):
    """Pairs in which attention coupling is better and worse than another arm, and all pairs."""
    found = [(g[REFERENCE], g[other]) for g in groups.values() if REFERENCE in g and other in g]
    verdicts = Counter(verdict(paired_difference(a.scores, b.scores)) for a, b in found)
    return verdicts["better"], verdicts["worse"], verdicts.total() - verdicts["unknown"]


def test_counts_in_its_sentences(published):
    text = " ".join(VECTORS.read_text().split())
    better, worse, pairs = count(published[0], "plain")
    assert f"it is better in {better} of {pairs} pairs" in text
    assert f"and worse in {WORDS[worse]}." in text
    posteriors = kinds_of(published[0])["posteriors"]
    worse, better, pairs = (WORDS[n] for n in count(posteriors, "deeper, as much time"))
    assert f"gains more**: better in {better} of {pairs} pairs, worse in {worse}." in text
    better, worse, pairs = (WORDS[n] for n in count(posteriors, "deeper, as many parameters"))
    assert f"attention coupling is better in {better} of {pairs}, and worse in {worse}." in text


NAMES = {
    '`"attention_coupling"`': REFERENCE,
    '`"itrans", affine=True`': "itrans, affine",
    '`"itrans"`': "itrans",
    '`"imap"`': "imap",
}


def test_the_table_of_kinds_of_data_is_that_of_the_study():
    there = rows_below(VECTORS.read_text(), "What arms gain over the plain flow")
    here = rows_below(CHOOSING, "## Posteriors, tables, particles and time series")
    assert len(here) >= 7
    for name, cells in here.items():
        assert cells == there[NAMES.get(name, name.removeprefix("control: "))], name


# The ablation.

# Its arms by the names that a reader gets.
ARMS = {
    '`"imap"`': "imap",
    '`"itrans", patches=2`, the paper\'s number': "itrans",
    '`"itrans", patches=2, affine=True`': "itrans-affine",
    '`"attention_coupling"`': "coupling",
    '`["attention_coupling", "imap"]`': "coupling-imap",
    "control: learned constant scales": "scales",
    "control: coupling by a 1x1 convolution": "pointwise",
    "control: fixed mixing of patches": "static",
    "control: fixed mixing, with `affine`": "static-affine",
    "control: convolutional coupling, as large as `affine`": "conv-narrow",
    'control: convolutional coupling, as large as `"attention_coupling"`': "conv",
    "control: attention inside the coupling nets": "attention-net",
    **{f"control: Glow with {depth} steps a level": f"depth-{depth}" for depth in (5, 6, 8, 12)},
}
# On digits what ITrans takes by itself is the paper's number.
OF_DATA = {
    "digits": {
        '`"itrans"`': "itrans",
        '`"itrans", affine=True`': "itrans-affine",
        '`"itrans"`, all options': "itrans-together",
    },
    "photographs": {
        '`"itrans"`': "itrans-auto-patches",
        '`"itrans", affine=True`': "itrans-affine-auto-patches",
        '`"itrans"`, all options': "itrans-together-auto-patches",
    },
}


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    unpack(DOCS / "ablation" / "ablation.json", folder)
    return folder


def test_the_page_of_the_ablation_is_that_of_its_numbers(ablation, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation_report, "draw", lambda *arguments: None)
    page = tmp_path / "ablation.md"
    page.write_text((DOCS / "ablation.md").read_text())
    ablation_report.write_page(ablation, page)
    # Lines may be broken elsewhere.
    assert page.read_text().split() == (DOCS / "ablation.md").read_text().split()


def cells_of(outcome, plain):
    """Parameters, time and gain of an arm as they are shown."""
    more = f"{outcome.parameters / plain.parameters - 1:+.0%}".replace("%", " %")
    return more, f"{outcome.time:.2f}", f"{outcome.gain.mean:+.3f} ± {outcome.gain.half_width:.3f}"


def mistakes(text, folder, data):
    """The cells of a table of the page on choosing that are not what the runs say."""
    results, times = read_results(folder), read_times(folder, data)
    found = {
        length: outcomes(
            [r for r in results if (r["config"]["data"], r["config"]["length"]) == (data, length)],
            times,
        )
        for length in ("short", "long")
    }
    names = ARMS | OF_DATA[data]
    for row, (more, time, *gains) in rows_below(text, f"### {data.capitalize()}").items():
        for length, gain in zip(found, gains, strict=True):
            if row != "plain Glow" and re.search(r"\d", gain):
                known = cells_of(found[length][names[row]], found[length]["plain"])
                if known != (more, time, gain):
                    yield f"{row}, {length}: found {(more, time, gain)}, measured {known}"


@pytest.mark.parametrize("data", OF_DATA)
def test_the_tables_of_the_page_on_choosing_are_what_was_measured(ablation, data):
    assert list(mistakes(CHOOSING, ablation, data)) == []


def test_a_stale_number_is_found(ablation):
    stale = CHOOSING.replace("-0.280 ± 0.045", "-0.290 ± 0.045")
    assert stale != CHOOSING
    (mistake,) = mistakes(stale, ablation, "photographs")
    assert "affine=True`, short: found ('+21 %', '2.22', '-0.290 ± 0.045')" in mistake
