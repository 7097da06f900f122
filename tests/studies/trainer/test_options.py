"""From the command line to a run, and the mistakes on the way."""

import math
from pathlib import Path

import pytest
import train
from train import parse
from trainer.backbones import ATTENTIONS, attention, check_options
from trainer.options import Options, UsageError, from_dict, resumed

from tests.studies.trainer.support import stored


def test_only_what_was_given():
    given, resume = parse(["--hidden", "8", "--no-both-masks", "--resume"])
    assert given == {"hidden": 8, "both_masks": False}
    assert resume


def test_types():
    given, _ = parse(["--size=16", "--activation=exp", "--lr=1", "--data-dir=a/b", "--patches=2"])
    assert given == {
        "size": 16,
        "activation": "exp",
        "lr": 1.0,
        "data_dir": Path("a/b"),
        "patches": 2,
    }
    assert parse(["--patches=none"])[0] == {"patches": "none"}


def test_there_and_back():
    options = Options(out=Path("somewhere"), size=3, lr=0.5)
    assert from_dict(options.as_dict()) == options


def test_the_command_repeats_the_run():
    options = Options(out=Path("a folder"), size=3, lr=1e-5, both_masks=False, affine=True)
    command = options.command()
    assert command == (
        "python examples/studies/train.py --out 'a folder' --size 3 --no-both-masks --affine "
        "--lr 1e-05"
    )
    given, _ = parse(command.replace("'a folder'", "a_folder").split()[2:])
    assert Options(**given | {"out": options.out}) == options


def test_a_file_describes_a_run(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: folder\ndata_dir: here\nlr: 3e-4\naffine: true\nboth_masks: false\n")
    given, _ = parse([f"--config={file}", "--lr=1e-3"])
    assert given == {
        **{"data": "folder", "data_dir": Path("here"), "lr": 1e-3},
        **{"affine": True, "both_masks": False},
    }


def test_help_has_groups_and_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for part in ("the flow:", "attention in every step of the flow:", "training:", "the machine:"):
        assert f"\n{part}\n" in text
    assert "\n    python examples/studies/train.py --out outputs/plain --resume" in text
    assert "celeba-sr8" not in text


def test_presets_are_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--list-presets"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 27
    assert lines[1].startswith("mnist-l3k4c96-imap       --attention imap --optimizer adam")


PARSED = [
    (["--host=zuko"], "--host: invalid choice: 'zuko'"),
    (["--data=imagenet"], "--data: invalid choice: 'imagenet'"),
    (["--batch=many"], "--batch: expected a whole number, found many"),
    (["--lr=fast"], "--lr: expected a number, found fast"),
    (["--patches=2.5"], "--patches: "),
    (["--hiden=5"], "unrecognized arguments: --hiden=5"),
    (["--config=missing.yaml"], "--config: File does not exist: "),
    (["--lr=nan"], "--lr: expected a number, found nan"),
    (["--resum"], "unrecognized arguments: --resum"),
]


@pytest.mark.parametrize(("wrong", "message"), PARSED, ids=lambda value: str(value)[:30])
def test_what_is_no_option_is_told_in_one_line(capsys, wrong, message):
    with pytest.raises(SystemExit) as ended:
        parse(wrong)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"train.py: {message}")


RANGES = [
    *[{name: 0} for name in ("batch", "levels", "depth", "hidden", "steps", "log_every", "size")],
    *[{name: -1} for name in ("seed", "warmup", "workers", "pretrain_steps", "size", "clip")],
    *[
        {name: value}
        for name in ("lr", "temperature", "pretrain_lr")
        for value in (0, -1, math.nan)
    ],
    *[{name: math.inf} for name in ("lr", "clip", "temperature")],
    *[{"ema": value} for value in (1.0, -0.1, math.nan)],
    *[{"dropout": value} for value in (2, 1.0, -0.5)],
    *[{name: 0} for name in ("blocks", "components", "heads", "rank", "rrdb_blocks", "patches")],
    {"scale": 1},
    {"clip": math.nan},
]


@pytest.mark.parametrize("wrong", RANGES, ids=str)
def test_ranges(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError) as caught:
        Options(**wrong)
    option = "--" + name.replace("_", "-")
    assert str(caught.value).startswith(f"{option}: expected a number ")
    assert str(caught.value).endswith(f"found {value}")


def test_a_continuation_may_change_some_options():
    before = Options(steps=10).as_dict()
    assert resumed(before, {"steps": 20, "batch": 64}).steps == 20
    with pytest.raises(UsageError, match="--batch: the checkpoint was made with 64, found 32"):
        resumed(before, {"batch": 32})
    with pytest.raises(UsageError, match="expected options of this version, found flavour"):
        resumed(before | {"flavour": "sweet"}, {})


MISTAKES = [
    (["--bf16", "--device=cpu"], "--bf16: expected a GPU"),
    (["--size=9"], "--size: the images of digits have a size of their own"),
    (["--levels=4"], "divisible by 16"),
    (["--data=photographs", "--context=label"], "no labels"),
    (["--data=photographs", "--size=10", "--levels=1", "--context=coarse"], "divisible by 4"),
    (["--data=mnist"], "expected the file train-images-idx3-ubyte in"),
    (["--batch=1"], "larger batch"),
    (["--lr=0"], "--lr: expected a number above 0, found 0.0"),
    (["--seed=-1"], "--seed: expected a number from 0 on, found -1"),
    (["--preset=cifar11"], "--preset: expected a name from --list-presets, found cifar11"),
    (
        ["--attention=imap,coupled"],
        "imap, itrans, attention_coupling with commas between, found 'coupled'",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), MISTAKES, ids=lambda value: str(value)[:30])
def test_mistakes_are_told_in_one_line(tmp_path, capsys, wrong, message):
    empty = ["--out", str(tmp_path / "out"), "--data-dir", str(tmp_path)]
    assert train.main([*empty, *wrong]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("train.py: ")
    assert message in line


def test_a_folder_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train.main(["--out", str(tmp_path / "file" / "out")]) == 1
    assert capsys.readouterr().err.startswith("train.py: --out: expected a folder to write to")


class TestAttention:
    def test_every_attention_with_every_option(self):
        for options in ATTENTIONS.values():
            assert {*Options.__dataclass_fields__} >= options

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"data": "digits"}, (["attention_coupling"], {})),
            ({"data": "photographs"}, (["itrans"], {"affine": True})),
            ({"data": "photographs", "heads": 4}, (["itrans"], {"affine": True, "heads": 4})),
            ({"attention": "itrans", "patches": "none"}, (["itrans"], {"patches": None})),
            (
                {"attention": "coupling,imap", "axis": "channel"},
                (["attention_coupling", "imap"], {"axis": "channel"}),
            ),
            ({"attention": "none"}, ([], {})),
        ],
        ids=str,
    )
    def test_by_data_and_by_name(self, options, expected):
        check_options(Options(**options))
        assert attention(Options(**options)) == expected


def test_options_are_in_the_checkpoint(tmp_path):
    given = ["--levels=1", "--depth=1", "--hidden=4", "--batch=16", "--steps=2", "--seed=5"]
    assert train.main([*given, "--out", str(tmp_path)]) == 0
    assert stored(tmp_path)["options"]["seed"] == 5
