"""Parts of models that nflows lacks, and the labels, contexts and samples of its models."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from nflows.distributions import ConditionalDiagonalNormal, Distribution, StandardNormal
from nflows.flows import Flow
from nflows.transforms import ActNorm, OneByOneConvolution, Permutation, Transform
from nflows.utils import torchutils
from torch import Tensor, nn

from attnflow_plugin.constants import without_autocast
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError, positive_int
from attnflow_plugin.inputs import require_context, require_labels
from attnflow_plugin.layers.base import Context
from attnflow_plugin.layers.conditional import order_of, read_whole_numbers
from attnflow_plugin.training import statistics


class EncodedTransform(Transform):
    r"""A transform whose context is encoded first.

    The host's ``Flow`` has an embedding net for contexts, but converts its output to a tensor. The
    encoder here may return a mapping of names to tensors, such as one for each level of a model.

    Args:
        encoder: maps the user's context to that of the layers.
        transform: the transform, which takes the encoded context.
    """

    def __init__(self, encoder: nn.Module, transform: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.transform = transform

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        return self.transform(inputs, self._encoded(context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        return self.transform.inverse(inputs, self._encoded(context))  # type: ignore[operator]

    def _encoded(self, context: Tensor | None) -> object:
        if context is None:
            raise MissingContextError(f"{type(self).__name__}: expected a context, found none")
        return self.encoder(context)


class FullPrecisionConv1x1(OneByOneConvolution):
    """A 1x1 convolution in full precision, whose permutation is a buffer that can be averaged.

    Under autocast the host's own class rounds the event and the matrix, but not the log-det.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)
        self.permutation = _MatrixPermutation(self.get_buffer("permutation._permutation"))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent."""
        with without_autocast(inputs):
            return super().forward(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to data."""
        with without_autocast(inputs):
            return super().inverse(inputs, context)


class _MatrixPermutation(Permutation):
    """A permutation of channels whose buffer is a matrix instead of integers."""

    def __init__(self, order: Tensor) -> None:
        super().__init__(order)
        self._permutation = F.one_hot(order, len(order)).to(torch.get_default_dtype())

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent."""
        return self._permute(inputs, order_of(self._permutation), self._dim)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to data."""
        return self._permute(inputs, order_of(self._permutation).argsort(), self._dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: object) -> None:
        read_whole_numbers(state_dict, f"{prefix}_permutation", self._permutation)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ReadyActNorm(ActNorm):
    """An initialised ``ActNorm`` with the same parameters and keys, but no branch on its state.

    In training mode the host's class checks in every call whether it is initialised, which breaks
    the graph of ``torch.compile``.
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        scale, shift = self._broadcastable_scale_shift(inputs)
        outputs = scale * inputs + shift
        positions = inputs.shape[2:].numel()
        return outputs, (positions * self.log_scale.sum()).expand(inputs.shape[0]).clone()


class LearningActNorm(ReadyActNorm):
    """An ``ActNorm`` that sets its parameters from the next batch of data, in place."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent, with the parameters set first."""
        if not self.initialized:
            mean, std = statistics("ActNorm", len(self.log_scale), inputs)
            self.log_scale.copy_(-std.log())
            self.shift.copy_(-mean / std)
            self.initialized.fill_(True)
        return super().forward(inputs, context)


def check_context(
    owner: str, model: nn.Module, context: Context, rows: int, *, read: bool = False
) -> None:
    """Raise for a context or labels that the model cannot take; see ``Host.check_context``.

    The number of contexts is not checked, since any number of samples can be drawn for each.
    """
    embedding = _label_embedding(model)
    if context is None:
        base = getattr(model, "_distribution", None)
        if embedding is not None or type(base) is ConditionalDiagonalNormal:
            what = "a context" if embedding is None else "labels as context"
            raise MissingContextError(
                f"{owner}: expected {what} for this {type(model).__name__}, found none"
            )
        return
    require_context(owner, context, rows)
    if embedding is not None:
        classes = embedding.num_embeddings
        require_labels(owner, context, classes, rows, one_hot=False, read=read)
    elif isinstance(context, Mapping) and _takes_tensors(model):
        raise ShapeError(
            f"{owner}: expected the context as a tensor, found a mapping of {sorted(context)}; "
            f"a Flow of nflows converts its context to one tensor, so join the entries, and split "
            f"them in a transform"
        )


def _takes_tensors(model: nn.Module) -> bool:
    """Whether the host's own ``log_prob`` runs, which converts every context to a tensor."""
    return getattr(type(model), "log_prob", None) is Distribution.log_prob


def _label_embedding(model: nn.Module) -> nn.Embedding | None:
    """The embedding of labels, if the context of the model is labels."""
    first: object = getattr(model, "_embedding_net", None)
    if isinstance(first, nn.Identity):
        base, transform = model._distribution, model._transform
        encodes = isinstance(transform, EncodedTransform)
        first = transform.encoder if encodes else getattr(base, "_context_encoder", None)  # type: ignore[union-attr]
    return first if isinstance(first, nn.Embedding) else None


def draw(
    model: Flow, num_samples: int, context: Context, temperature: float
) -> tuple[Tensor, Tensor]:
    """Samples and their log-densities, with a graph; see ``Host.draw``."""
    num_samples = positive_int("sample", "num_samples", num_samples)
    check_context("sample", model, context, num_samples, read=True)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return _drawn(model, num_samples, context, temperature, dtype)


def _drawn(
    model: Flow,
    num_samples: int,
    context: Context,
    temperature: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Samples and their log-densities, from noise of a dtype if one is given."""
    embedded = model._embedding_net(context)
    base = model._distribution
    noise = _noise(base, num_samples, embedded, dtype)
    if temperature != 1:
        mean = _mean(base, embedded)
        noise = mean + temperature * (noise - mean)
    if embedded is None:
        x, log_det = model._transform.inverse(noise, None)
        return x, base.log_prob(noise) - log_det
    noise = torchutils.merge_leading_dims(noise, num_dims=2)
    rows = torchutils.repeat_rows(embedded, num_reps=num_samples)
    transform, seen = _encoded(model._transform, embedded)
    x, log_det = transform.inverse(noise, _repeated(seen, num_samples))  # type: ignore[operator]
    log_prob = base.log_prob(noise, rows) - log_det
    shape = [-1, num_samples]
    return (
        torchutils.split_leading_dim(x, shape=shape),
        torchutils.split_leading_dim(log_prob, shape=shape),
    )


def _noise(
    base: Distribution, num_samples: int, context: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    if isinstance(base, Flow) and type(base)._sample is Flow._sample:
        # Its own layers must not get the host's noise, which is in float32.
        return _drawn(base, num_samples, context, 1.0, dtype)[0]
    noise = base.sample(num_samples, context=context)
    return noise.to(dtype) if noise.is_floating_point() else noise


def _encoded(transform: nn.Module, context: Tensor) -> tuple[nn.Module, Context]:
    """The transform behind an encoder and its context, encoded once instead of for each sample."""
    if isinstance(transform, EncodedTransform):
        return transform.transform, transform.encoder(context)
    return transform, context


def _repeated(context: Context, times: int) -> Context:
    if isinstance(context, Mapping):
        return {name: torchutils.repeat_rows(entry, times) for name, entry in context.items()}
    return torchutils.repeat_rows(context, times)


def _mean(base: object, context: Tensor | None) -> Tensor | float:
    if isinstance(base, StandardNormal):
        return 0.0
    if isinstance(base, ConditionalDiagonalNormal):
        return base.mean(context).unsqueeze(1)
    raise OptionError(
        f"sample: expected a StandardNormal or ConditionalDiagonalNormal base for a temperature, "
        f"found {type(base).__name__}"
    )
