"""Small helpers of the tests."""

import copy
import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache, wraps

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

HOSTS = ("normflows", "nflows")
POSITIONS = ["before_actnorm", "after_actnorm", "after_permutation", "after_coupling"]


def randomise(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """Add noise to every parameter in place: nothing should be tested at the identity only."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def randomised(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """A randomised copy."""
    return randomise(copy.deepcopy(module), scale)


def built_once(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A builder of models that builds each one once, from the same seed, and returns copies."""

    @cache
    def first(*args: object, **options: object) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return build(*args, **options), torch.get_rng_state()

    @wraps(build)
    def again(*args: object, **options: object) -> nn.Module:
        model, state = first(*args, **options)
        # What a test draws is then the same, whether it was the first to ask for the model or not.
        torch.set_rng_state(state)
        return copy.deepcopy(model)

    return again


class Unfilled(TorchFunctionMode):
    """Models of hundreds of millions of parameters whose memory is never written, to be counted.

    The meta device would be the way, but for an ActNorm of normflows, which reads its indices.
    """

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if function in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        return function(*args, **(kwargs or {}))


def run_without(blocked: Sequence[str], code: str) -> str:
    """What code prints in a new interpreter in which some packages cannot be imported.

    The code may change the set ``blocked``.
    """
    prelude = f"""
import sys

blocked = {set(blocked)!r}


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Block())
"""
    command = [sys.executable, "-W", "ignore", "-c", prelude + code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def host_module(host: str):
    return importlib.import_module(f"attnflow_plugin.{host}")


def latents(
    host: str, model: nn.Module, x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All latents of a batch in one row each, and the log-det, without the base distribution."""
    if host == "nflows":
        return model._transform(x, model._embedding_net(context))
    takes_context = hasattr(model, "embedding")
    z, log_det = model.inverse_and_log_det(*(x, context) if takes_context else (x,))
    return torch.cat([part.flatten(1) for part in z], 1), log_det


def brute_force_log_det(run, x):
    jacobian = torch.autograd.functional.jacobian(run, x, vectorize=True)
    rows, dims = x.shape[0], x[0].numel()
    jacobian = jacobian.reshape(rows, dims, rows, dims)
    own = torch.stack([jacobian[row, :, row] for row in range(rows)])
    mixed = jacobian.abs().amax((1, 3)).fill_diagonal_(0)
    assert mixed.max() == 0
    return torch.linalg.slogdet(own)[1]


def assert_exact(layer: nn.Module, shape: Sequence[int]) -> None:
    """The core of ``check_layer`` alone, at a tenth of its time: log-dets and round trips.

    For the many combinations of options and shapes that are each checked in full elsewhere.
    """
    torch.manual_seed(0)
    layer = randomised(layer).double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    z, log_det = layer.to_latent(x)
    back, log_det_back = layer.to_data(z)
    expected = brute_force_log_det(lambda event: layer.to_latent(event)[0], x)
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-8)


def spoiled(event, value, entry=0):
    """A copy with the value in the middle row."""
    event = event.clone()
    event[1].flatten()[entry] = value
    return event


def assert_only_the_middle_row_is_lost(found, expected):
    (out, log_det), (expected_out, expected_log_det) = found, expected
    assert log_det[1].isnan()
    assert not out[1].isfinite().all()
    assert torch.equal(out[::2], expected_out[::2])
    assert torch.equal(log_det[::2], expected_log_det[::2])


def stack(
    layer_class: type, depth: int, noise: float, channels: int, **options: object
) -> list[nn.Module]:
    """Layers of both masks in turn, from data to latent, with noise on their parameters."""
    return [
        randomised(layer_class(channels, flip=bool(index % 2), **options), noise)
        for index in range(depth)
    ]


def run(layers: Sequence[nn.Module], direction: str, event: Tensor) -> tuple[Tensor, Tensor]:
    """One layer after the other in the order given, and the sum of their log-dets."""
    total = event.new_zeros(event.shape[0])
    for layer in layers:
        event, log_det = getattr(layer, direction)(event)
        total = total + log_det
    return event, total
