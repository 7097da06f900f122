"""Numbers of studies in the documentation are those of their files: none is stale."""

import re
from collections import Counter
from statistics import mean

import pytest
from ablation import report as ablation_report
from ablation.outcomes import unpack
from ablation.runs import read_times
from harness import paired_difference
from vectors.models import REFERENCE
from vectors.outcomes import kinds_of, read_published, verdict
from vectors.report import summary, tables

from tests.studies.ablation.support import of_length
from tests.studies.pages import DOCS, between, rows_below

CHOOSING = (DOCS / "choosing.md").read_text()
EVIDENCE = (DOCS / "evidence.md").read_text()
VECTORS = DOCS / "evidence-vectors.md"
WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


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


@pytest.mark.parametrize("name", ["ablation", "real-size"])
def test_the_page_of_the_ablation_is_that_of_its_numbers(name, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation_report, "draw", lambda *arguments: None)
    published, page = DOCS / f"{name}.md", tmp_path / f"{name}.md"
    page.write_text(published.read_text())
    unpack(DOCS / name / "ablation.json", tmp_path / "runs")
    ablation_report.write_page(tmp_path / "runs", page)
    # Lines may be broken elsewhere.
    assert page.read_text().split() == published.read_text().split()


def cells_of(outcome, plain):
    """Parameters, time and gain of an arm as they are shown."""
    more = f"{outcome.parameters / plain.parameters - 1:+.0%}".replace("%", " %")
    return more, f"{outcome.time:.2f}", f"{outcome.gain.mean:+.3f} ± {outcome.gain.half_width:.3f}"


def mistakes(text, folder, data):
    """The cells of a table of the page on choosing that are not what the runs say."""
    found = {length: of_length(folder, data, length) for length in ("short", "long")}
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


CELL = re.compile(r"[-+]?\d\.\d{3} ± \d\.\d{3}")


def gains_in(text):
    """What stands before and after a ±, without its sign."""
    return {found.lstrip("+-") for found in CELL.findall(" ".join(text.split()))}


ABLATION = gains_in((DOCS / "ablation.md").read_text())


@pytest.mark.parametrize(
    "text",
    [
        (DOCS / "variants.md").read_text(),
        between(CHOOSING, "## The short answer", "### Photographs"),
        between(EVIDENCE, "Two cautions", "## In mARFlow"),
    ],
    ids=["variants", "short answer", "cautions"],
)
def test_gains_in_prose_are_among_those_of_the_ablation(text):
    assert gains_in(text)
    assert gains_in(text) <= ABLATION


# Options of ITrans, each by itself.
OPTIONS = {
    "`position_bias=True`": "bias",
    "`patches=None`, single positions": "positions",
    "both of the above": "positions-bias",
    '`patches="auto"`, the default': "auto-patches",
    "`value_mixing=True`": "values",
    "`affine=True`": "affine",
    "`heads=3`": "3-heads-sum",
    "`heads=7`": "7-heads-sum",
    '`heads=3, head_mode="concat"`': "3-heads-concat",
    '`position="before_actnorm"`': "at-1",
    '`mask="channel"`': "channel-mask",
    '`mask="spatial"`': "spatial-mask",
    '`mask="random"`': "random-mask",
    "one mask instead of both": "one-mask",
    "`patches=None, rank=8`": "low-rank",
}


def test_single_options_are_compared_with_none_of_them(ablation):
    times = read_times(ablation, "photographs")
    found = [of_length(ablation, "photographs", length) for length in ("short", "long")]
    shown = rows_below(CHOOSING, "### Single options of ITrans")
    assert shown.keys() == OPTIONS.keys()
    for name, (*gains, time) in shown.items():
        arm = f"itrans-{OPTIONS[name]}"
        assert time.strip("| ") == f"{times[arm]:.2f}", name
        for arms, gain in zip(found, gains, strict=True):
            if gain:
                measured = paired_difference(arms[arm].scores, arms["itrans"].scores)
                assert gain == measured.text("+.3f", ".3f"), name


def test_the_bounded_coupling_of_the_evidence_is_that_of_the_ablation(ablation):
    found = of_length(ablation, "photographs", "short")
    plain, imap = (mean(found[arm].scores.values()) for arm in ("plain", "imap"))
    assert f"| bounded on both sides | none | {plain:.3f} | |" in EVIDENCE
    gain = found["imap"].gain
    cells = f"{imap:.3f} | {gain.mean:+.3f} ± {gain.half_width:.3f}"
    assert f"| bounded on both sides | IMap, `exp` | {cells} |" in EVIDENCE


def test_all_options_together_are_compared_with_the_affine_part_alone(ablation):
    found = of_length(ablation, "photographs", "short")
    together, affine = (found[f"itrans-{arm}-auto-patches"] for arm in ("together", "affine"))
    gain = paired_difference(together.scores, affine.scores).text("+.3f", ".3f").lstrip("-")
    said = f"gained {gain} more than `affine` alone on photographs, and a step took"
    said += f" {together.time / affine.time - 1:.0%} more time".replace("%", " %")
    assert said in " ".join(CHOOSING.split())


def test_times_in_the_readme_are_those_of_the_ablation(ablation):
    times = {data: read_times(ablation, data) for data in ("digits", "photographs")}
    readme = rows_below((DOCS.parent / "README.md").read_text(), "## Layers")
    shown = {
        re.findall(r'"(\w+)"', name)[0]: cells[1] for name, cells in readme.items() if '"' in name
    }
    low, high = sorted(each["coupling"] for each in times.values())
    assert shown == {
        "imap": f"{times['digits']['imap']:.1f}",
        "itrans": f"{times['photographs']['itrans-affine-auto-patches']:.1f}",
        "attention_coupling": f"{low:.1f} to {high:.1f}",
    }
