"""The program of each recipe runs as it stands, and prints what its page shows."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "recipes"
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(r"^```text\n(.*?)^```", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")
COVARIANCE = [1, 1, 1, 2]


def is_calibrated(printed):
    """Ranks are uniform, and the gain is one of a density: more would not integrate to one."""
    p_values = numbers(printed, "P-values of uniform ranks:")
    assert len(p_values) == 4
    assert min(p_values) > 1e-3
    assert 1 < numbers(printed, "The true parameters gain")[0] < 3
    assert "The same after pickling: True" in printed


def fits_better(printed):
    """Insertion changes nothing, training on gains, and no density beats the true one."""
    assert numbers(printed, "4 attention layers;")[-1] == 0
    (before,) = numbers(printed, "log-likelihood before:")
    (after,) = numbers(printed, "log-likelihood after:")
    (true,) = numbers(printed, "of the true density:")
    assert before < after < true + 0.02


def finds_evidence_and_posterior(printed):
    """Within four standard errors, and the covariance of the likelihood."""
    found, error = numbers(printed, "log-evidence:")
    (exact,) = numbers(printed, "exact log-evidence:")
    assert abs(found - exact) < 4 * error < 1
    assert numbers(printed, "covariance:") == pytest.approx(COVARIANCE, abs=0.4)


def loss_nears_entropy(printed):
    """The loss falls to the entropy, and not below."""
    (before,) = numbers(printed, "test loss before:")
    (after,) = numbers(printed, "test loss after:")
    (entropy,) = numbers(printed, "entropy of the data:")
    assert entropy - 0.15 < after < entropy + 0.2 < before - 0.5


def bounds_beat_independent_pixels(printed):
    """Independent pixels have 42 nats; attention does no harm."""
    (plain,) = numbers(printed, "plain: at least")
    (attention,) = numbers(printed, "attention: at least")
    assert plain > -25
    assert attention > plain - 1


def divergence_falls_and_samples_count(printed):
    """Reverse KL falls, the effective sample size rises, and log Z is the exact one."""
    untrained, plain, attention = (
        numbers(printed, f"{name}: KL") for name in ("untrained", "plain", "attention")
    )
    (exact,) = numbers(printed, "exact log Z:")
    assert attention[0] < plain[0] < untrained[0]
    assert attention[1] > max(untrained[1], plain[1])
    assert attention[2] == pytest.approx(exact, abs=0.05)


def compiled_equals_eager(printed):
    """In both hosts, with the gradients."""
    for host in ("normflows", "nflows"):
        assert max(numbers(printed, f"attnflow_plugin.{host}: losses differ by")) < 1e-5


def average_is_another_density(printed):
    """A finite one, nearer to the data than the last weights, and no nearer than possible."""
    (last,) = numbers(printed, "last weights:")
    (averaged,) = numbers(printed, "averaged weights:")
    (entropy,) = numbers(printed, "entropy of the data:")
    assert math.isfinite(averaged)
    assert entropy - 0.1 < averaged < last


CHECKS = {
    "boltzmann": divergence_falls_and_samples_count,
    "compile": compiled_equals_eager,
    "ema": average_is_another_density,
    "glasflow": fits_better,
    "lightning": loss_nears_entropy,
    "nessai": finds_evidence_and_posterior,
    "sbi": is_calibrated,
    "vae": bounds_beat_independent_pixels,
}


def numbers(printed, label):
    """What stands behind a label in the line that begins with it."""
    (rest,) = re.findall(rf"^{re.escape(label)}(.*)$", printed, re.MULTILINE)
    return [float(number) for number in NUMBER.findall(rest)]


def run(script):
    """Run a script in a process of its own, since some libraries read variables at their import."""
    done = subprocess.run(
        [sys.executable, script],
        cwd=script.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_program_runs_and_prints_what_its_page_shows(name, tmp_path):
    page = (PAGES / f"{name}.md").read_text()
    (program,), (shown,) = PROGRAM.findall(page), SHOWN.findall(page)
    script = tmp_path / "recipe.py"
    script.write_text(program)
    printed = run(script)
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    CHECKS[name](printed)


def test_every_page_is_run():
    assert {page.stem for page in PAGES.glob("*.md")} == set(CHECKS)
