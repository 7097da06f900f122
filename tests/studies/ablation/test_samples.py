"""Samples of models that a run kept."""

import pytest
import torch
from ablation import samples as module
from ablation.runs import ArmTrainer, Job, run_all
from ablation.samples import draw_samples, samples
from trainer.included import digits

from tests.studies.ablation.support import three_steps

__all__ = ["three_steps"]

JOBS = [Job(arm, 0, "digits", "quick") for arm in ("plain", "imap")]


@pytest.mark.usefixtures("three_steps")
def test_samples_are_those_of_the_kept_weights(tmp_path, monkeypatch):
    trained = {}
    evaluate = ArmTrainer.evaluate

    def remembered(self):
        trained[len(trained)] = self.module.best_flow.state_dict()
        return evaluate(self)

    monkeypatch.setattr(ArmTrainer, "evaluate", remembered)
    run_all(JOBS, tmp_path, 1, keep_models=True)
    for job, weights in zip(JOBS, trained.values(), strict=True):
        kept = torch.load(job.weights(tmp_path), weights_only=True)
        assert kept.keys() == weights.keys()
        assert all(torch.equal(kept[name], weights[name]) for name in kept)
    images = samples(JOBS[1], tmp_path)
    assert images.shape == (module.ROWS * module.COLUMNS, 1, 8, 8)
    assert torch.equal(images, samples(JOBS[1], tmp_path))
    torch.save({name: 2 * value for name, value in kept.items()}, JOBS[1].weights(tmp_path))
    assert not torch.equal(images, samples(JOBS[1], tmp_path))
    shown = []
    monkeypatch.setattr(module, "_draw", lambda axes, title, images: shown.append((title, images)))
    draw_samples(JOBS, tmp_path, tmp_path / "samples.png")
    assert [title for title, _ in shown] == ["Test images", "Glow", "Glow + iMap"]
    _, test_images = digits()
    differences = (16 * shown[0][1].unsqueeze(1) - test_images.images).abs().flatten(2).amax(2)
    assert (differences.amin(1) == 0).all()
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_models_that_were_not_kept_are_not_drawn(tmp_path):
    JOBS[0].weights(tmp_path).parent.mkdir(parents=True)
    torch.save({}, JOBS[0].weights(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"weights of plain, imap for one seed"):
        draw_samples(JOBS, tmp_path, tmp_path / "samples.png")
    assert not (tmp_path / "samples.png").exists()
