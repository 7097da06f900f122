"""From the command line to a run, and the mistakes on the way."""

from pathlib import Path

import pytest
import train
from training.options import Options, UsageError, from_dict, parse, resumed


def test_only_what_was_given():
    given, resume = parse(["--hidden", "8", "--no-both-masks", "--resume"], "")
    assert given == {"hidden": 8, "both_masks": False}
    assert resume


def test_types():
    given, _ = parse(["--size=16", "--activation=exp", "--lr=1", "--data-dir=a/b"], "")
    assert given == {"size": 16, "activation": "exp", "lr": 1.0, "data_dir": Path("a/b")}


def test_there_and_back():
    options = Options(out=Path("somewhere"), size=3, lr=0.5)
    assert from_dict(options.as_dict()) == options


@pytest.mark.parametrize("wrong", [["--host=zuko"], ["--data=imagenet"], ["--batch=many"]])
def test_choices(wrong, capsys):
    with pytest.raises(SystemExit):
        parse(wrong, "")
    assert wrong[0].split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"ema": 1.0}, {"lr": 0.0}, {"log_every": 0}])
def test_ranges(wrong):
    with pytest.raises(UsageError):
        Options(**wrong)


def test_a_continuation_may_change_some_options():
    stored = Options(steps=10).as_dict()
    assert resumed(stored, {"steps": 20, "batch": 64}).steps == 20
    with pytest.raises(UsageError, match="--batch: the checkpoint was made with 64, found 32"):
        resumed(stored, {"batch": 32})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--bf16", "--device=cpu"], "--bf16: expected a GPU"),
        (["--size=9"], "--size: the images of digits have a size of their own"),
        (["--levels=4"], "divisible by 16"),
        (["--data=photographs", "--context=label"], "no labels"),
        (["--data=photographs", "--size=10", "--levels=1", "--context=coarse"], "divisible by 4"),
        (["--data=mnist"], "expected the file train-images-idx3-ubyte in"),
        (["--batch=1"], "larger batch"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, wrong, message):
    empty = ["--out", str(tmp_path / "out"), "--data-dir", str(tmp_path)]
    assert train.main([*empty, *wrong]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("train.py: ")
    assert message in errors
