r"""Dirichlet rows in log space, where very sparse ones do not underflow to exact zeros.

A draw of a Dirichlet with concentration 0.01 has entries near :math:`e^{-100}` and, now and then,
far below the smallest float.  :class:`LogDirichlet` is the distribution of the *logarithms* of such
probabilities.  Its density is that of the probabilities (with respect to all of them but the last,
as in :class:`torch.distributions.Dirichlet`), so a mode found with it is the mode of the Dirichlet;
the transforms from free coordinates account for their volume in the same measure.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.kl import register_kl
from torch.distributions.transforms import Transform

__all__ = ["LogDirichlet", "LogSoftmax", "SymmetricLogSimplex", "log_simplex"]


class _LogSimplex(constraints.Constraint):
    """Vectors of log-probabilities that sum to one in probability."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        tolerance = 1e-8 if value.dtype == torch.float64 else 1e-4
        return (value.logsumexp(-1).abs() < tolerance) & (value < tolerance).all(-1)


log_simplex = _LogSimplex()
"""The support of :class:`LogDirichlet`."""


class LogSoftmax(Transform):
    """``K`` free logits to log-probabilities; many logits give the same.  For point estimates."""

    domain = constraints.real_vector
    codomain = log_simplex

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogSoftmax)

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        return x.log_softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y


class SymmetricLogSimplex(Transform):
    """``K - 1`` free coordinates to ``K`` log-probabilities, no entry singled out.

    The coordinates are an orthonormal basis of the logits that sum to zero (the isometric
    log-ratio coordinates of Egozcue et al. 2003), in which samplers and normal guides see the same
    scale in all directions.
    """

    domain = constraints.real_vector
    codomain = log_simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymmetricLogSimplex)

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        size = x.shape[-1] + 1
        total = x.sum(-1, keepdim=True)
        shift = total / (math.sqrt(size) + size)
        centred = torch.cat([x - shift, -total / math.sqrt(size)], -1)
        return centred.log_softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        size = y.shape[-1]
        centred = y - y.mean(-1, keepdim=True)
        total = -centred[..., -1:] * math.sqrt(size)
        return centred[..., :-1] + total / (math.sqrt(size) + size)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Volume of all probabilities but the last per volume of coordinates."""
        return y.sum(-1) + 0.5 * math.log(y.shape[-1])

    def forward_shape(self, shape: Any) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Any) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))


@transform_to.register(_LogSimplex)
def _to_log_simplex(constraint: constraints.Constraint) -> Transform:
    return LogSoftmax()


@biject_to.register(_LogSimplex)
def _onto_log_simplex(constraint: constraints.Constraint) -> Transform:
    return SymmetricLogSimplex()


class LogDirichlet(TorchDistribution):
    """Logarithms of Dirichlet probabilities.

    Args:
        concentration: ``(*B, K)`` positive.

    Example:
        >>> rows = LogDirichlet(torch.full((2, 3), 1e-3))
        >>> log_probs = rows.sample()
        >>> bool(log_probs.isfinite().all()), bool(log_probs.exp().min() == 0)
        (True, True)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "concentration": constraints.independent(constraints.positive, 1)
    }
    support = log_simplex
    has_rsample = True

    def __init__(self, concentration: Tensor, validate_args: bool | None = None) -> None:
        if concentration.ndim < 1:
            raise ValueError("concentration is a scalar, expected (..., K): an entry per outcome.")
        self.concentration = concentration
        super().__init__(
            concentration.shape[:-1], concentration.shape[-1:], validate_args=validate_args
        )

    def expand(self, batch_shape: Any, _instance: LogDirichlet | None = None) -> LogDirichlet:
        """The same rows, repeated."""
        new = self._get_checked_instance(LogDirichlet, _instance)
        new.concentration = self.concentration.expand(*batch_shape, *self.event_shape)
        super(LogDirichlet, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws whose gradient flows to the concentrations."""
        alpha = self.concentration.expand(self._extended_shape(torch.Size(sample_shape)))
        # G(a) = G(a + 1) * U^(1 / a): the power stays in log space (Marsaglia and Tsang 2000).
        log_uniform = -torch.empty_like(alpha).exponential_()
        return (torch._standard_gamma(alpha + 1).log() + log_uniform / alpha).log_softmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        alpha = self.concentration
        # Where the concentration is one the density does not depend on the (perhaps -inf) value.
        terms = torch.where(alpha == 1, 0.0, (alpha - 1) * value)
        return terms.sum(-1) - self.log_normaliser

    @property
    def log_normaliser(self) -> Tensor:
        """``(*B)`` logarithm of the multivariate beta function."""
        alpha = self.concentration
        return torch.lgamma(alpha).sum(-1) - torch.lgamma(alpha.sum(-1))

    @property
    def mean(self) -> Tensor:
        """``(*B, K)`` expected log-probabilities."""
        alpha = self.concentration
        return torch.digamma(alpha) - torch.digamma(alpha.sum(-1, keepdim=True))

    @property
    def log_mean(self) -> Tensor:
        """``(*B, K)`` logarithms of the expected probabilities."""
        alpha = self.concentration
        return alpha.log() - alpha.sum(-1, keepdim=True).log()


@register_kl(LogDirichlet, LogDirichlet)
def _kl_log_dirichlets(p: LogDirichlet, q: LogDirichlet) -> Tensor:
    weighted = ((p.concentration - q.concentration) * p.mean).sum(-1)
    return weighted + q.log_normaliser - p.log_normaliser
