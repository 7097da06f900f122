"""How exact a trained model is."""

import precision
import pytest

from tests.studies.trainer.support import tiny_run


@pytest.mark.parametrize("host", ["normflows", "nflows"])
def test_of_a_run(tmp_path, host):
    tiny_run(tmp_path, host=host, levels=1, depth=2, steps=1).train()
    found = precision.measure(tmp_path)
    assert found["round trip, float32"] < 1e-4
    assert found["log-det, float32, nats per dimension"] < 1e-5
    assert found["log-det, float64, nats per dimension"] < 1e-12
    assert found["attention layers"] == 4
    assert found["largest gradient of one"] >= found["smallest gradient of one"] > 0


def test_without_a_run(tmp_path):
    with pytest.raises(SystemExit, match="checkpoint"):
        precision.measure(tmp_path)
