"""The comparisons of conditional flows: paired, resumable, with everything they promise."""

import json
import signal
from dataclasses import replace

import conditional
import label_to_photo
import numpy as np
import pytest
import super_resolution
from conditional import compare, table
from harness import Run
from trainer.data import ImageData
from trainer.module import FlowModule
from trainer.options import Options

TITLES = {"plain": "Flow", "imap": "Flow + iMap"}
SCRIPTS = {
    "super_resolution": (super_resolution, ["--data=faces", "--pretrain-steps=3"]),
    "label_to_photo": (label_to_photo, ["--data=disparity", "--size=8"]),
}


def tiny(out, **changes):
    return Options(out=out, **{"depth": 1, "hidden": 4, "steps": 2, "batch": 16} | changes)


def bits(training):
    return {"bits": training.evaluate(training.module.flow, 32)}, None


def run_of(arm, seed, value):
    return Run(arm, seed, 1234, {"bits/dim": value})


class TestTable:
    def test_differences_are_paired(self):
        runs = [
            *(run_of("plain", seed, value) for seed, value in enumerate([1.0, 2.0, 6.0])),
            *(run_of("imap", seed, value) for seed, value in enumerate([0.9, 1.8, 5.7])),
        ]
        lines = table(runs, TITLES).splitlines()
        assert lines == [
            "|  | parameters | bits/dim |",
            "| --- | --- | --- |",
            "| Flow | 1,234 | 3 |",
            "| Flow + iMap | 1,234 | 2.8 |",
            "| Flow + iMap minus Flow |  | -0.2 ± 0.25 |",
        ]

    def test_one_seed_has_no_spread(self):
        runs = [run_of("plain", 0, 1.0), run_of("imap", 0, 0.75)]
        assert table(runs, TITLES).endswith("| -0.25 |")

    def test_others(self):
        runs = [run_of("plain", 0, 1.0)]
        lines = table(runs, TITLES, {"bicubic": {"PSNR": 3.0}}).splitlines()
        assert lines[2] == "| bicubic |  |  |"
        lines = table(runs, TITLES, {"bicubic": {"bits/dim": 3.0}}).splitlines()
        assert lines[2] == "| bicubic |  | 3 |"


class TestCompare:
    def test_pairs_differ_between_seeds_not_within(self, tmp_path):
        runs = compare(tiny(tmp_path, lr=1e-12), ["plain", "imap", "itrans"], 2, bits, workers=1)
        assert [(run.arm, run.seed) for run in runs] == [
            *[("plain", 0), ("imap", 0), ("itrans", 0)],
            *[("plain", 1), ("imap", 1), ("itrans", 1)],
        ]
        values = [run.values["bits"] for run in runs]
        assert values[:3] == pytest.approx(3 * values[:1], rel=1e-5)
        assert values[3:] == pytest.approx(3 * values[3:4], rel=1e-5)
        assert values[0] != pytest.approx(values[3], rel=1e-5)
        assert len({run.parameters for run in runs}) == 3

    def test_an_interrupted_one_goes_on(self, tmp_path, monkeypatch):
        whole = compare(tiny(tmp_path / "whole"), ["plain"], 1, bits, workers=1)
        end = FlowModule.end_step

        def end_with_interruption(self, step):
            end(self, step)
            signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patched:
            patched.setattr(FlowModule, "end_step", end_with_interruption)
            with pytest.raises(KeyboardInterrupt):
                compare(tiny(tmp_path / "parts"), ["plain"], 1, bits, workers=1)
        parts = compare(tiny(tmp_path / "parts"), ["plain"], 1, bits, workers=1)
        assert parts == whole

    def test_in_another_process(self, tmp_path):
        (there,) = compare(tiny(tmp_path / "there"), ["imap"], 1, bits, workers=2)
        (here,) = compare(tiny(tmp_path / "here"), ["imap"], 1, bits, workers=1)
        assert there.values == pytest.approx(here.values, rel=1e-5)


@pytest.fixture
def _small(monkeypatch):
    """Few images and temperatures, and a flow of few steps."""
    testing = ImageData.testing

    def of_few(self, limit, *processes):
        return testing(self, 16 if limit is None else limit, *processes)

    monkeypatch.setattr(ImageData, "testing", of_few)
    monkeypatch.setattr(conditional, "IMAGES", 4)
    monkeypatch.setattr(super_resolution, "TEMPERATURES", (0.1, 0.9))
    whole = conditional.small_flow

    def small_flow(given, **further):
        return replace(whole(given, **further), depth=1, hidden=8)

    monkeypatch.setattr(conditional, "small_flow", small_flow)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(("module", "given"), SCRIPTS.values(), ids=SCRIPTS.keys())
class TestScripts:
    def test_all_that_is_promised(self, tmp_path, capsys, monkeypatch, module, given):
        command = [*given, f"--out={tmp_path}", "--arms", "plain", "itrans", "--workers=1"]
        assert module.main([*command, "--steps=2"]) == 0
        said = capsys.readouterr().out
        assert "cAttnFlow, iTrans minus " + module.COMPARISON.backbone in said
        plain, itrans = json.loads((tmp_path / "results.json").read_text())
        assert (plain["arm"], itrans["arm"]) == ("plain", "itrans")
        assert np.isfinite([plain["bits/dim"], itrans["bits/dim"]]).all()
        assert (tmp_path / "samples.png").stat().st_size > 0

        # The same command has nothing left to train.
        monkeypatch.setattr(FlowModule, "loss", None)
        assert module.main([*command, "--steps=2"]) == 0
        assert json.loads((tmp_path / "results.json").read_text()) == [plain, itrans]

    def test_mistakes_are_told_in_one_line(self, tmp_path, capsys, module, given):
        folder = {"super_resolution": "folder", "label_to_photo": "pairs"}[module.__name__]
        empty = [f"--data={folder}", f"--data-dir={tmp_path}", f"--out={tmp_path / 'out'}"]
        assert module.main([*empty, "--workers=1"]) == 1
        assert capsys.readouterr().err.startswith(f"{module.__name__}.py: --data-dir: expected")


def test_lr_psnr_is_finite_for_exact_images(tmp_path):
    options = super_resolution.options_of(super_resolution.parse(["--data=faces"]))
    targets, low = conditional.test_images(options, 4)
    metrics = super_resolution.metrics(options.scale)
    assert metrics["LR-PSNR"](targets, targets, low).tolist() == 4 * [60.0]
