"""Are deep stacks of attention safe? What they sample after a short training on digits.

    python examples/studies/deep_stacks.py --layers 16 64  # half an hour
    python examples/studies/deep_stacks.py --kinds imap --rates 5e-3
    python examples/studies/deep_stacks.py --alone         # as single layers, not as a stack

Each model is a chain of normflows' ActNorm with a pair of layers behind each, as insert_attention
makes them. The digits are squeezed to 4x4 positions with 4 channels. Every model leaves a line in
--out, and the same command goes on with what is missing.
"""

import argparse
import copy
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import normflows as nf
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from attnflow_plugin.metrics import bits_per_dim
from attnflow_plugin.normflows import insert_attention

SHAPE, LEVELS = (4, 4, 4), 17
STEPS, BATCH, SAMPLES = 200, 64, 512
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "imap": ("imap", {}),
    "imap-sigmoid": ("imap", {"activation": "sigmoid"}),
    "itrans": ("itrans", {}),
    "affine": ("itrans", {"affine": True}),
    "affine-values": ("itrans", {"affine": True, "value_mixing": True, "heads": 2}),
    "coupling": ("coupling", {}),
}
# The bounds of a single layer, whatever the number of layers.
ALONE = {
    "imap": {"gain_bound": 0.95},
    "itrans": {"gain_bound": 0.95},
    "coupling": {"scale_bound": 2.0, "shift_bound": math.inf},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    add("--layers", nargs="+", type=int, default=[16, 64, 256], help="even numbers")
    add("--rates", nargs="+", type=float, default=[1e-3, 5e-3], help="learning rates")
    add("--alone", action="store_true", help="with the bounds of a single layer")
    add("--out", type=Path, default=Path("outputs/deep_stacks.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = [json.loads(line)["model"] for line in lines]
    for layers in options.layers:
        for kind in options.kinds:
            for rate in options.rates:
                model = {"kind": kind, "layers": layers, "rate": rate, "alone": options.alone}
                if model not in done:
                    line = json.dumps({"model": model, **outcome(**model)})
                    print(line, flush=True)
                    with options.out.open("a") as file:
                        file.write(line + "\n")


def outcome(kind: str, layers: int, rate: float, alone: bool) -> dict[str, float]:
    """Train a stack and measure it."""
    torch.manual_seed(0)
    model, batches = stack(layers), digits()
    name, options = KINDS[kind]
    bounds = ALONE[name] if alone else {}
    example = next(batches)
    insert_attention(model, name, example=example, position="after_actnorm", **(options | bounds))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(STEPS):
        loss = -model.log_prob(next(batches)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0, error_if_nonfinite=True)
        optimizer.step()
    return measured(model, next(batches))


def stack(layers: int) -> nf.NormalizingFlow:
    norms = [nf.flows.ActNorm((SHAPE[0], 1, 1)) for _ in range(layers // 2)]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(SHAPE), norms)


def digits() -> Iterator[Tensor]:
    """Batches of dequantised digits, from -0.5 to 0.5."""
    warnings.filterwarnings("ignore", message="torch.(lu|triangular_solve) is deprecated")
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None]
    while True:
        rows = images[torch.randint(len(images), (BATCH,))]
        noisy = (rows + torch.rand_like(rows)) / LEVELS - 0.5
        yield torch.nn.functional.pixel_unshuffle(noisy, 2)


@torch.no_grad()
def measured(model: nf.NormalizingFlow, x: Tensor) -> dict[str, float]:
    """Largest sample and errors in float32; of data, the largest entry is one half."""
    samples = model.sample(SAMPLES)[0]
    latent, log_det = model.inverse_and_log_det(x)
    exact = copy.deepcopy(model).double().inverse_and_log_det(x.double())[1]
    return {
        "bits": bits_per_dim(model.log_prob(x), math.prod(SHAPE), LEVELS).mean().item(),
        "largest sample": samples.abs().max().item(),
        "round trip of samples": error(model, model.inverse(samples), samples),
        "round trip of data": error(model, latent, x),
        "log-det per dimension": (log_det - exact).abs().max().item() / math.prod(SHAPE),
    }


def error(model: nf.NormalizingFlow, latent: Tensor, expected: Tensor) -> float:
    return (model.forward(latent) - expected).abs().max().item()


if __name__ == "__main__":
    main()
