"""The module and its data in a Trainer of the user's own."""

import lightning.pytorch as pl
import pytest
import torch
from training.data import DataSet, load_data
from training.datamodule import ImageData, fingerprint
from training.files import Files
from training.images import InMemory
from training.module import FlowModule
from training.options import UsageError
from training.pairs import LowResolution

from tests.examples.support import assert_same, tiny_options, tiny_run, write_images


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


class TestFingerprint:
    def test_of_files(self, tmp_path):
        paths = sorted(write_images(tmp_path / "a").iterdir())
        data = DataSet(Files(paths[:30], 8, 8), Files(paths[30:], 8, 8))
        moved = sorted(write_images(tmp_path / "b").iterdir())
        assert fingerprint(data) == fingerprint(
            DataSet(Files(moved[:30], 8, 8), Files(moved[30:], 8, 8))
        )
        others = [
            DataSet(Files(paths[:29], 8, 8), Files(paths[29:], 8, 8)),
            DataSet(Files(paths[:30], 8, 16), Files(paths[30:], 8, 16)),
            DataSet(LowResolution(data.train, 256, 2), LowResolution(data.test, 256, 2)),
        ]
        moved[0].write_bytes(moved[0].read_bytes() + b"more")
        others.append(DataSet(Files(moved[:30], 8, 8), Files(moved[30:], 8, 8)))
        assert len({fingerprint(each) for each in [data, *others]}) == 5

    def test_of_what_is_in_memory(self):
        first, second = torch.zeros(2, 6, 1, 4, 4, dtype=torch.uint8)
        second[3, 0, 1, 1] = 1
        found = {
            fingerprint(DataSet(InMemory(train), InMemory(test), levels=levels))
            for train, test, levels in (
                *((first, first, 256), (second, first, 256)),
                *((first, second, 256), (first, first, 17)),
            )
        }
        assert len(found) == 4

    @pytest.mark.parametrize("data", ["photographs", "faces", "disparity"])
    def test_is_the_same_again(self, tmp_path, data):
        options = tiny_options(tmp_path, data=data, size=8 if data != "faces" else None)
        assert fingerprint(load_data(options)) == fingerprint(load_data(options))

    def test_other_data_are_refused(self, tmp_path):
        digits = ImageData(tiny_options(tmp_path))
        digits.load_state_dict(digits.state_dict())
        with pytest.raises(UsageError, match="--data-dir: the checkpoint was made with other"):
            ImageData(tiny_options(tmp_path, data="faces")).load_state_dict(digits.state_dict())
