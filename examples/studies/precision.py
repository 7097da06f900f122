"""How exact is a model that was trained by train.py? float32 against float64 and brute force.

    python examples/studies/precision.py outputs/train

Of test images: the largest error of a round trip in float32, of the log-det against float64, and
for one image in float64 against the Jacobian by automatic differentiation, with its condition
number. Then the norms of the gradient in the attention layers, the largest and the smallest.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from trainer import checkpoint
from trainer.data import ImageData

from attnflow_plugin import InvertibleLayer
from attnflow_plugin.metrics import bits_per_dim

IMAGES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path, help="the folder that train.py wrote")
    for name, value in measure(parser.parse_args().run).items():
        print(f"{name:40s} {value:.3g}")


def measure(run: Path) -> dict[str, float]:
    try:
        module, _ = checkpoint.load_model(run)
    except checkpoint.DamagedError as error:
        sys.exit(str(error))
    options = module.options
    if options.backbone not in ("glow", "marflow") or options.context != "none":
        sys.exit(f"{run}: expected a Glow or mARFlow without condition")
    _, batches = ImageData(options).testing(None)
    flow, likelihood = module.best_flow, module.model.likelihood(module.best_flow)
    x = module.test_example(next(iter(batches)))[0][:IMAGES]
    flow.requires_grad_(True)
    norms = gradient_norms(flow, likelihood, x)
    with torch.no_grad():
        bits = bits_per_dim(-likelihood(x, None), module.info.dims, module.info.levels)
        found = precision(flow, x) | {"bits/dim": bits.mean().item()}
    return (
        found
        | brute_force(flow, x[:1])
        | {
            "attention layers": len(norms),
            "largest gradient of one": max(norms, default=0.0),
            "smallest gradient of one": min(norms, default=0.0),
        }
    )


def precision(flow: nn.Module, x: Tensor) -> dict[str, float]:
    z, log_det = to_latent(flow, x)
    exact = to_latent(in_double(flow), x.double())[1]
    return {
        "round trip, float32": (to_data(flow, z) - x).abs().max().item(),
        "log-det, float32, nats per dimension": (log_det - exact).abs().max().item() / x[0].numel(),
    }


def brute_force(flow: nn.Module, x: Tensor) -> dict[str, float]:
    def latents(event: Tensor) -> Tensor:
        z = to_latent(double, event)[0]
        return z if isinstance(z, Tensor) else torch.cat([part.flatten(1) for part in z], 1)

    double = in_double(flow)
    dims = x[0].numel()
    jacobian = torch.autograd.functional.jacobian(latents, x.double(), vectorize=True)
    jacobian = jacobian.reshape(dims, dims)
    exact, found = torch.linalg.slogdet(jacobian).logabsdet, to_latent(double, x.double())[1]
    return {
        "log-det, float64, nats per dimension": (found - exact).abs().item() / dims,
        "condition number": torch.linalg.cond(jacobian).item(),
    }


def gradient_norms(flow: nn.Module, objective: nn.Module, x: Tensor) -> list[float]:
    """Of the mean loss of the images, in each attention layer; none of them may be NaN."""
    flow.zero_grad()
    objective(x, None).mean().backward()
    return [
        torch.cat([each.grad.flatten() for each in layer.parameters()]).norm().item()
        for layer in flow.modules()
        if isinstance(layer, InvertibleLayer) and hasattr(layer, "attention")
    ]


def in_double(flow: nn.Module) -> nn.Module:
    return copy.deepcopy(flow).double()


def to_latent(flow: nn.Module, x: Tensor) -> tuple[Tensor | list[Tensor], Tensor]:
    """As the flow of either host does it."""
    run = flow.inverse_and_log_det if hasattr(flow, "inverse_and_log_det") else flow._transform
    return run(x)


def to_data(flow: nn.Module, z: Tensor | list[Tensor]) -> Tensor:
    if hasattr(flow, "forward_and_log_det"):
        return flow.forward_and_log_det(z)[0]
    return flow._transform.inverse(z)[0]


if __name__ == "__main__":
    main()
