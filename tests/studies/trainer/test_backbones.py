"""Every backbone trains, goes on exactly, and refuses what it has no use for."""

import copy
from types import SimpleNamespace
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
import train
from train import parse
from trainer import backbones, keeper, run
from trainer.backbones import PRESETS
from trainer.data import load_data
from trainer.module import FlowModule
from trainer.options import Options, UsageError
from trainer.run import TrainingRun, evaluate
from trainer.schedule import Phase, phase_of

from attnflow_plugin.backbones import encoder_of
from attnflow_plugin.errors import NonFiniteError
from tests.studies.trainer.support import (
    StopAfter,
    arguments,
    assert_equal_runs,
    assert_same,
    prepared,
    stored,
    tiny_options,
    tiny_run,
)

MARFLOW = {"backbone": "marflow", "blocks": 1, "components": 2, "hidden": 4}
SRFLOW = {
    **{"backbone": "srflow", "context": "source", "scale": 2, "data": "faces"},
    **{"rrdb_blocks": 1, "rrdb_channels": 4, "rrdb_growth_channels": 2},
}
FULL_GLOW = {"backbone": "full-glow", "context": "source", "data": "disparity", "size": 8}
MODELS = {
    "marflow": MARFLOW,
    "marflow-gaussian": MARFLOW | {"prior": "gaussian", "attention": "itrans", "heads": 2},
    "srflow": SRFLOW,
    "srflow-pretrained": SRFLOW | {"pretrain_steps": 1, "splits": "all"},
    "full-glow": FULL_GLOW,
    "full-glow-coupling": FULL_GLOW | {"conditioning": "coupling", "source_attention": False},
    "glow-attention-net": {"coupling_net": "attention", "scale_map": "sigmoid"},
    "glow-low-resolution": {"context": "source", "scale": 4, "context_in_attention": True},
    "glow-patches": {"attention": "itrans", "patches": 2, "affine": True},
    "glow-of-pairs": {"context": "source", "data": "disparity", "size": 8},
}


@pytest.fixture(autouse=True)
def _few_test_images(monkeypatch):
    evaluate_all = run.evaluate
    monkeypatch.setattr(
        run,
        "evaluate",
        lambda likelihood, module, data, limit, **how: evaluate_all(
            likelihood, module, data, 32, **how
        ),
    )
    monkeypatch.setattr(keeper, "PICTURE_IMAGES", 4)


@pytest.mark.parametrize("host", ["normflows", "nflows"])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS.keys())
def test_trains_evaluates_and_draws(tmp_path, host, changes):
    steps = {"steps": 2, "batch": 8}
    training = tiny_run(tmp_path, host=host, warmup=0, **changes | steps)
    assert 0 < training.train() < 10
    assert 0 < training.module.values["train"] < 10
    # What learns has a gradient: DistributedDataParallel waits for all of them.
    parameters = training.module.flow.named_parameters()
    assert [n for n, p in parameters if p.requires_grad and p.grad is None] == []
    real, context = training.shown(4)
    assert training.sample(context, 4, 0.5).shape == real.shape
    assert (tmp_path / "progress.png").stat().st_size > 0


def bits_of_some(module, data):
    return evaluate(module.model.likelihood(module.flow), module, data, 32)


@pytest.mark.parametrize("host", ["normflows", "nflows"])
@pytest.mark.parametrize("changes", [{}, MARFLOW | {"dropout": 0.5}, SRFLOW, FULL_GLOW])
def test_the_backbone_is_the_same_with_any_attention(tmp_path, host, changes):
    changes = {"seed": 3, "host": host} | changes
    arms = {
        name: prepared(tmp_path, attention=name, **changes)
        for name in ("none", "imap", "itrans", "imap,itrans")
    }
    bits = {name: bits_of_some(*arm) for name, arm in arms.items()}
    assert bits == pytest.approx(dict.fromkeys(arms, bits["none"]), rel=1e-5)
    assert bits_of_some(*prepared(tmp_path, **changes | {"seed": 4})) != bits["imap"]
    sizes = {len(module.flow.state_dict()) for module, _ in arms.values()}
    assert len(sizes) == 4


@pytest.mark.parametrize(
    ("host", "changes", "stops"),
    [
        ("normflows", MARFLOW | {"dropout": 0.5}, [2]),
        ("nflows", MARFLOW | {"dropout": 0.5}, [0]),
        # In each phase, and where one ends.
        ("normflows", SRFLOW | {"pretrain_steps": 3, "freeze_encoder_until": 3}, [1, 2, 4, 5, 6]),
        ("nflows", SRFLOW | {"pretrain_steps": 3, "freeze_encoder_until": 3}, [2, 3, 5]),
        ("normflows", FULL_GLOW, [1]),
        ("nflows", FULL_GLOW, [3]),
    ],
    ids=lambda value: value["backbone"] if isinstance(value, dict) else str(value),
)
def test_a_continued_run_is_the_same(tmp_path, monkeypatch, host, changes, stops):
    """Stopped after some of the steps."""
    # Drawing takes a third of the time; here is what would be drawn.
    monkeypatch.setattr(keeper, "draw_progress", lambda _, panels, file: torch.save(panels, file))
    changes = changes | {"host": host, "steps": 5, "evaluate_every": 3, "ema": 0.5, "warmup": 2}
    whole = tmp_path / "whole"
    assert train.main(arguments(whole, **changes)) == 0

    parts, before = tmp_path / "parts", None
    for step in stops:
        torch.manual_seed(123)  # What the process before has drawn must not matter.
        stop = StopAfter(step)
        stop.run(tiny_run(parts, stop, stored=before, **changes))
        before = stored(parts)
        assert before["step"] == step + 1
    assert train.main(["--out", str(parts), "--resume"]) == 0
    assert_equal_runs(parts, whole)
    assert_same(*(torch.load(folder / keeper.PICTURE) for folder in (parts, whole)))


class TestPhases:
    OPTIONS = SRFLOW | {"pretrain_steps": 2, "freeze_encoder_until": 3, "lr": 0.01, "warmup": 0}

    def test_by_step(self, tmp_path):
        options = tiny_options(tmp_path, **self.OPTIONS)
        phases = [phase_of(step, options) for step in range(7)]
        assert phases == 2 * [Phase.ENCODER] + 3 * [Phase.FLOW] + 2 * [Phase.ALL]

    @pytest.mark.parametrize("optimizer", ["adam", "adamax"])
    def test_what_changes_in_each(self, tmp_path, optimizer):
        watch = Watch()
        training = tiny_run(tmp_path, watch, optimizer=optimizer, **self.OPTIONS | {"steps": 4})
        training.train()
        assert watch.moved == [
            *2 * [(True, True, False)],
            *3 * [(False, False, True)],
            (True, False, True),
        ]

    def test_the_encoder_learns_to_enlarge(self, tmp_path):
        options = self.OPTIONS | {"pretrain_steps": 40, "steps": 1}
        training = tiny_run(tmp_path, **options)
        training.train()
        errors = [line["encoder"] for line in training.keeper.lines() if "encoder" in line]
        assert len(errors) == 40
        assert errors[-1] < errors[0] / 2

    def test_the_flow_is_initialised_from_the_trained_encoder(self, tmp_path, monkeypatch):
        steps = []
        monkeypatch.setattr(
            FlowModule, "prepare", lambda self: steps.append(self.trainer.global_step)
        )
        tiny_run(tmp_path, **self.OPTIONS | {"steps": 2}).train()
        assert steps == [2]


class Watch(pl.Callback):
    """Which parameters of the encoder, its head, and the flow are changed by each step."""

    def __init__(self):
        self.moved = []

    def on_before_zero_grad(self, trainer, module, optimizer):
        # After the initialisation of the flow, which changes it too.
        self.before = copy.deepcopy(dict(module.flow.named_parameters()))

    def on_train_batch_end(self, trainer, module, *_):
        head = set(map(id, encoder_of(module.flow).head.parameters()))
        encoder = set(map(id, encoder_of(module.flow).parameters())) - head
        named = module.flow.named_parameters()
        changed = {id(p) for name, p in named if not torch.equal(p, self.before[name])}
        self.moved.append(
            (bool(changed & encoder), bool(changed & head), bool(changed - encoder - head))
        )


def test_likelihood_without_dropout(tmp_path):
    training = tiny_run(tmp_path, **MARFLOW, dropout=0.9, steps=2)
    training.train()
    assert training.evaluate() == training.evaluate()
    module, model, flow = training.module, training.module.model, training.module.flow
    flow.train()
    (batch,) = training.data.training(0, 1)
    x, context = module.training_example(batch)
    objective = model.likelihood(flow)
    assert not torch.equal(objective(x, context), objective(x, context))
    # Nor are samples, and training goes on with it, even where nothing could be drawn.
    noise = [torch.manual_seed(0) and model.sample(flow, 2, None, 1.0) for _ in range(2)]
    assert torch.equal(*noise)
    model.host = SimpleNamespace(sample=Mock(side_effect=NonFiniteError("no")))
    with pytest.raises(NonFiniteError):
        model.sample(flow, 2, None, 1.0)
    assert all(each.training for each in flow.modules())


def test_joint_loss_in_training_and_bits_of_the_target_in_evaluation(tmp_path):
    module, data = prepared(tmp_path, **FULL_GLOW, ema=0)
    (batch,) = data.training(0, 1)
    x, source = module.training_example(batch)
    model = module.model
    joint, of_target = model.objective(module.flow), model.likelihood(module.flow)
    log_prob, of_source = model.host.joint_log_prob(module.flow, x, source)
    torch.testing.assert_close(of_target(x, source), -log_prob)
    torch.testing.assert_close(joint(x, source), -log_prob - 1e-4 * of_source)
    module.begin_step(0, module.configure_optimizers())
    bits = joint(x, source).mean() / module.info.dims / torch.log(torch.tensor(2.0)) + 8
    torch.testing.assert_close(module.loss(x, source), bits)


class TestSources:
    def test_full_glow_gets_them_with_noise_except_to_draw(self, tmp_path):
        module, data = prepared(tmp_path, **FULL_GLOW)
        (batch,) = data.training(0, 1)
        _, source = module.training_example(batch)
        assert float(source.min()) >= 0
        assert float(source.max()) < 1
        assert not torch.equal(source * 255, (source * 255).round())
        _, shown = module.example(*data.shown(4))
        torch.testing.assert_close(shown * 255, (shown * 255).round())

    def test_others_get_them_as_they_are(self, tmp_path):
        module, data = prepared(tmp_path, **SRFLOW)
        (batch,) = data.training(0, 1)
        x, source = module.training_example(batch)
        values, low, _ = batch
        assert torch.equal(source, low / 255)
        assert torch.equal((x * 256).floor(), values.float())


WRONG = [
    ({"dropout": 0.1}, "--dropout: --coupling-net conv has no use for it"),
    ({"pretrain_steps": 5}, "--pretrain-steps: --backbone glow has no use"),
    ({"pretrain_steps": -1}, "--pretrain-steps: expected a number from 0 on"),
    (MARFLOW | {"learned_priors": True}, "--learned-priors: --backbone marflow has no use"),
    (MARFLOW | {"context": "label"}, "--backbone marflow: expected --context none, found label"),
    (SRFLOW | {"scale": None}, "--scale: --backbone srflow enlarges by a power of two, found N"),
    (SRFLOW | {"scale": 3}, "--scale: --backbone srflow enlarges by a power of two, found 3"),
    (SRFLOW | {"context": "coarse", "scale": None}, "expected --context source, found coarse"),
    (SRFLOW | {"components": 4}, "--components: --backbone srflow has no use"),
    (FULL_GLOW | {"splits": "all"}, "--splits: --backbone full-glow has no use"),
    ({"scale": 2}, "--scale: --context none has no use"),
    ({"attention": "none", "heads": 2}, "--heads: --attention none has no use"),
    ({"attention": "none", "both_masks": False}, "--both-masks: --attention none has no use"),
    ({"attention": "imap", "heads": 2}, "--heads: --attention imap has no use"),
    ({"attention": "imap", "patches": 2}, "--patches: --attention imap has no use"),
    ({"attention": "imap", "affine": True}, "--affine: --attention imap has no use"),
]
WRONG_WITH_DATA = [
    (["--context=source"], "--context source: digits has no sources; --scale makes them"),
    (["--data=faces", "--size=8"], "--size: the images of faces"),
    (["--data=disparity", "--context=source", "--scale=2"], "have sources already"),
    (["--context=source", "--scale=3"], "of the size 8x8, found 3"),
    (["--backbone=full-glow", "--context=source", "--scale=2"], "sources of the shape of the"),
    (["--context-in-attention"], "context_in_attention"),
    (["--backbone=marflow", "--hidden=6"], "hidden_channels"),
    (["--data=cityscapes-pairs"], "leftImg8bit"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_useless_options_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        backbones.check_options(Options(**changes))


@pytest.mark.parametrize(("wrong", "message"), WRONG_WITH_DATA, ids=lambda value: str(value)[:60])
def test_useless_combinations_are_told_in_one_line(tmp_path, capsys, wrong, message):
    out = ["--out", str(tmp_path / "out"), "--data-dir", str(tmp_path)]
    assert train.main([*out, *wrong]) == 1
    assert message in capsys.readouterr().err


class TestPresets:
    def test_every_row_of_the_tables(self):
        assert len(PRESETS) == 27
        for name in PRESETS:
            options = Options(**parse([f"--preset={name}"])[0])
            backbones.check_options(options)
            levels, depth = f"l{options.levels}", f"k{options.depth}"
            assert levels + depth in name
            assert (options.attention == "none") == (not name.endswith(("imap", "itrans")))

    def test_settings(self):
        given, _ = parse(["--preset=cifar10-l3k4c256-itrans"])
        options = Options(**given)
        assert (options.data, options.backbone, options.hidden) == ("cifar10", "marflow", 256)
        assert (options.attention, options.heads, options.patches) == ("itrans", 5, 2)
        assert (options.batch, options.lr, options.optimizer) == (32, 8e-4, "adam")
        assert (options.steps, options.clip, options.ema) == (90_000, 0, 0)

    def test_given_options_come_first(self):
        given, _ = parse(["--hidden=16", "--preset=mnist-l3k2c48-imap", "--data=digits"])
        assert (given["hidden"], given["data"], given["depth"]) == (16, "digits", 2)

    def test_the_size_belongs_to_the_data(self):
        preset = "--preset=celeba-sr8-l1k1"
        assert parse([preset])[0]["size"] == 160
        assert "size" not in parse([preset, "--data=faces"])[0]
        assert parse([preset, "--data=folder", "--size=80"])[0]["size"] == 80

    @pytest.mark.parametrize(
        ("preset", "changes", "kind"),
        [
            ("mnist-l3k2c48-imap", {"data": "digits", "levels": 2, "blocks": 1}, "IMap"),
            (
                "celeba-sr8-l1k1-itrans",
                {"data": "faces", "rrdb_blocks": 1, "pretrain_steps": 1},
                "ITrans",
            ),
            ("cityscapes-l2k8-imap", {"data": "segmentation", "size": 32}, "IMap"),
        ],
    )
    def test_train_small(self, tmp_path, preset, changes, kind):
        changes = {"hidden": 4, "depth": 1, "batch": 16, "steps": 1} | changes
        given = [f"--{k.replace('_', '-')}={v}" for k, v in changes.items()]
        options = Options(**parse([f"--preset={preset}", f"--out={tmp_path}", *given])[0])
        training = TrainingRun(options, load_data(options))
        kinds = {type(module).__name__ for module in training.module.flow.modules()}
        assert kind in kinds
        training.train()
        assert training.finished
