"""What every fit returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..models.base import CloneModel
from ..sequences import SequenceBatch

__all__ = ["FitResult", "bits_per_step", "log_likelihood"]


@dataclass(frozen=True)
class FitResult:
    """The outcome of a fit; what does not apply to a method is None.

    Attributes:
        model: the fitted model (a copy; the model passed in is unchanged).
        prior_model: the model with priors, where ``model`` is one point of its posterior.
        guide: the variational guide.
        draws: posterior draws by name, ``(chain, draw, ...)``.
        data: the sequences fitted.
        objective_history: what the method maximises, before each update.
        log_prob_history: log-likelihood of the data before each update, in nats; an estimate
            where the method sees a part of the data.
        bits_per_step: of the returned model on ``data``.
        converged: whether ``tol`` stopped the fit, or the method reached its fixed point.
        interrupted: whether the user did (Ctrl-C); the result is what had been reached.
        num_iters: updates done.
        num_warmup: warm-up updates done before draws were kept.
        wall_time: seconds.
        seconds_history: seconds since the start at each entry of ``objective_history``.
        settings: the method and its options, and what it reports about the run.
    """

    model: CloneModel
    data: SequenceBatch
    objective_history: NDArray[np.float64]
    log_prob_history: NDArray[np.float64] | None
    bits_per_step: float
    converged: bool
    num_iters: int
    wall_time: float
    seconds_history: NDArray[np.float64]
    interrupted: bool = False
    prior_model: Any = None
    guide: Any = None
    draws: dict[str, torch.Tensor] | None = None
    num_warmup: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def bits_per_step_history(self) -> NDArray[np.float64] | None:
        """``log_prob_history`` in bits per observed step."""
        if self.log_prob_history is None:
            return None
        return -self.log_prob_history / (math.log(2) * self.data.num_observed)


@torch.no_grad()
def log_likelihood(model: CloneModel, batch: SequenceBatch) -> float:
    """Natural log-likelihood of all sequences together."""
    return float(model.distribution(batch).log_prob(batch.obs).double().sum())


def bits_per_step(model: CloneModel, batch: SequenceBatch) -> float:
    """``-log_prob / (ln 2 * observed steps)`` of a model on sequences it may not have seen.

    Both modes of actions count what their ``log_prob`` counts, so values of ``conditional`` and
    ``joint`` models are not comparable.

    Raises:
        ValueError: no step of the sequences was observed.
    """
    if batch.num_observed == 0:
        raise ValueError(
            f"batch has {batch.num_steps} steps and none observed, expected at least one to count "
            "bits of; check its labels."
        )
    return -log_likelihood(model, batch) / (math.log(2) * batch.num_observed)
