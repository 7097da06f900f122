import digits
import pytest
from digits_pictures import Shown, plot_summary
from harness import PLAIN, Run

PLAIN_BITS = [2.7, 2.6, 2.65]


def runs(**differences):
    """Three seeds of the plain Glow, and of arms that differ from it by these numbers."""
    found = []
    for arm, by_seed in {PLAIN: [0.0] * 3, **differences}.items():
        for seed, difference in enumerate(by_seed):
            bits = PLAIN_BITS[seed] + difference
            values = {"seconds": 10.0 if arm == PLAIN else 25.0}
            values |= {"train_bits_per_dim": bits - 0.1, "test_bits_per_dim": bits}
            shown = Shown([(0, 5.0), (800, bits)], [], [])
            found.append(Run(arm, seed, 100 if arm == PLAIN else 130, values, shown))
    return found


def test_the_verdict_names_the_best_arm_first():
    text = digits.verdict(runs(imap=[-0.1, -0.12, -0.11], coupling=[-0.2, -0.22, -0.21]))
    head, first, second, *_ = text.splitlines()
    assert head == "Verdict: Glow + attention coupling is the best of the 3."
    assert first == (
        "* Glow + attention coupling helps: -0.210 ± 0.025 bits/dim;"
        " 2.5 times the training time, 30% more parameters"
    )
    assert second.startswith("* Glow + iMap helps: -0.110")


def test_the_verdict_admits_that_nothing_helps():
    text = digits.verdict(runs(imap=[-0.2, 0.01, -0.2], itrans=[0.1, 0.2, 0.3]))
    assert text.startswith("Verdict: No layer helps in every seed.")
    assert "Glow + iMap makes no clear difference:" in text
    assert "Glow + iTrans hurts:" in text


@pytest.mark.slow
def test_every_arm_runs_and_is_drawn(tmp_path):
    found = [digits.run("normflows", arm, 0, 1) for arm in digits.ARMS]
    plain, *others = found
    assert all(run.shown.curve[0] == plain.shown.curve[0] for run in others)  # They start alike.
    data = digits.load_data()[0][:48].squeeze(1).numpy()
    plot_summary(data, found, "normflows", tmp_path / "summary.png")
    assert (tmp_path / "summary.png").stat().st_size > 10_000
