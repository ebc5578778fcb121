"""What draws say however their clones are numbered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .inference.result import FitResult
from .posterior_draws import PosteriorDraws, flat_steps, posterior_draws
from .sequences import SequenceBatch

__all__ = ["co_assignment", "log_predictive", "log_predictive_steps"]


def co_assignment(draws: PosteriorDraws, steps: ArrayLike | None = None) -> NDArray[np.float64]:
    """``(n, n)`` probability that two steps of the data are in the same hidden state.

    Args:
        draws: of any fit.
        steps: ``(n,)`` of them, counted through all sequences; by default 500 at most, evenly
            spaced.

    Raises:
        ValueError: steps that the data do not have.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> from chmm_pyro.inference import fit_vb
        >>> from chmm_pyro.models import BayesianCHMM
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 1, 0])
        >>> fit = fit_vb(BayesianCHMM(CloneStructure([1, 1]), 1), batch, progress=False)
        >>> co_assignment(posterior_draws(fit, num_draws=2), [0, 1, 2])
        array([[1., 0., 1.],
               [0., 1., 0.],
               [1., 0., 1.]])
    """
    total = draws.batch.num_steps
    if steps is None:
        chosen = np.unique(np.linspace(0, total - 1, 500).astype(np.int64))
    else:
        chosen = np.asarray(steps, dtype=np.int64)
    if ((chosen < 0) | (chosen >= total)).any():
        bad = int(chosen[(chosen < 0) | (chosen >= total)][0])
        raise ValueError(f"steps holds {bad}, expected 0 <= step < {total}.")
    paths = draws.paths.reshape(-1, total)[:, chosen]
    same: Any = sum((path[:, None] == path).astype(np.float64) for path in paths)
    return same / len(paths)


@torch.no_grad()
def log_predictive_steps(
    result: FitResult | Sequence[FitResult] | PosteriorDraws, batch: SequenceBatch
) -> NDArray[np.float64]:
    r"""``(N,)`` terms :math:`\log p(x_t \mid x_{<t})` of new sequences, parameters integrated out.

    Draws weigh as much as they explain the steps before.  The terms add up to
    :func:`log_predictive`.

    Args:
        result: a fit, several fits of one posterior, or draws of one.
        batch: sequences that were not fitted.
    """
    draws = result if isinstance(result, PosteriorDraws) else posterior_draws(result)
    parts = []
    for _, hmm in draws.chunks(batch):
        parts.append(hmm.log_prob_steps(batch.obs).double().cumsum(-1))
    so_far = torch.cat(parts)
    mixed = so_far.logsumexp(0) - np.log(len(so_far))
    first = torch.zeros_like(mixed[..., :1])
    return flat_steps(mixed.diff(dim=-1, prepend=first), batch).numpy()


def log_predictive(
    result: FitResult | Sequence[FitResult] | PosteriorDraws, batch: SequenceBatch
) -> NDArray[np.float64]:
    r"""``(B,)`` nats :math:`\log E[p(x \mid \theta)]` of new sequences, each by itself.

    Args:
        result: a fit, several fits of one posterior, or draws of one.
        batch: sequences that were not fitted; in nats, each by itself.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> from chmm_pyro.inference import fit_vb
        >>> from chmm_pyro.models import BayesianCHMM
        >>> batch = SequenceBatch.from_arrays([0, 1] * 20)
        >>> fit = fit_vb(BayesianCHMM(CloneStructure([1, 1]), 1), batch, progress=False)
        >>> bool(log_predictive(fit, SequenceBatch.from_arrays([0, 1, 0]))[0] > -1)
        True
    """
    steps = log_predictive_steps(result, batch)
    return np.add.reduceat(steps, batch.offsets[:-1].numpy())
