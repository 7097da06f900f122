"""The module and its data in a Trainer of the user's own."""

import lightning.pytorch as pl
import pytest
from trainer.data import ImageData, fingerprint, read_data
from trainer.module import FlowModule
from trainer.options import UsageError

from tests.studies.trainer.support import assert_same, tiny_options, tiny_run, write_images


def own_trainer(folder, **changes):
    return pl.Trainer(
        **{"max_steps": 6, "accelerator": "cpu", "logger": False, "default_root_dir": folder}
        | {"enable_progress_bar": False, "enable_model_summary": False, "val_check_interval": 3}
        | changes
    )


def test_it_trains_as_in_train_py(tmp_path):
    options = tiny_options(tmp_path, steps=6)
    module, data = (FlowModule(options, ImageData(options).info), ImageData(options))
    trainer = own_trainer(tmp_path)
    trainer.fit(module, data)
    training = tiny_run(tmp_path, steps=6)
    bits = training.train()
    assert_same(module.state_dict(), training.module.state_dict())
    # Lightning weighs in single precision.
    (found,) = trainer.test(module, data, verbose=False)
    assert found["bits/dim"] == pytest.approx(bits, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_its_checkpoints_go_on(tmp_path):
    options = tiny_options(tmp_path, steps=6)
    whole = FlowModule(options, ImageData(options).info)
    first, again = (
        pl.callbacks.ModelCheckpoint(tmp_path / name, every_n_train_steps=3, save_top_k=-1)
        for name in ("first", "again")
    )
    own_trainer(tmp_path, callbacks=[first]).fit(whole, ImageData(options))
    part = FlowModule(options, ImageData(options).info)
    (path,) = (tmp_path / "first").glob("*step=3.ckpt")
    own_trainer(tmp_path, callbacks=[again]).fit(part, ImageData(options), ckpt_path=path)
    assert_same(part.state_dict(), whole.state_dict())


def test_accumulated_gradients(tmp_path):
    options = tiny_options(tmp_path, steps=3, levels=1)
    module, data = FlowModule(options, ImageData(options).info), ImageData(options)
    trainer = own_trainer(tmp_path, max_steps=3, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(module, data)
    assert trainer.global_step == 3
    assert int(module.average.n_averaged) == 3


class TestOtherData:
    def test_are_told_apart(self, tmp_path):
        folder = write_images(tmp_path / "images")
        given = {"data": "folder", "data_dir": folder, "size": 8}
        context = {"context": "source", "scale": 2}
        changes = [{}, {"size": "8x4"}, {"bits": 5}, {"channels": 1}, context]
        found = [
            fingerprint(read_data(tiny_options(tmp_path, **given | each)))
            for each in [*changes, {}]
        ]
        assert len(set(found)) == len(changes)
        assert found[0] == found[-1]

    def test_are_refused(self, tmp_path):
        digits = ImageData(tiny_options(tmp_path))
        digits.load_state_dict(digits.state_dict())
        with pytest.raises(UsageError, match="--data-dir: the checkpoint was made with other"):
            ImageData(tiny_options(tmp_path, data="faces")).load_state_dict(digits.state_dict())
