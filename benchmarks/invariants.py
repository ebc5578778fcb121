"""What a posterior says however its clones are numbered."""

from __future__ import annotations

from collections.abc import Mapping

import arviz as az
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.sequences import SequenceBatch

__all__ = ["effective_size", "invariants", "invariants_of_draws"]

Array = NDArray[np.float64]


@torch.no_grad()
def invariants(
    model: BayesianCHMM, batch: SequenceBatch, values: Mapping[str, Tensor]
) -> dict[str, Array]:
    """Quantities ``(N,)`` of draws ``(N, ...)`` that renumbering the clones leaves alone.

    ``log_prob`` of one sequence, the probability ``next`` that symbol 0 follows it under action 0,
    the mean ``square`` of the transition probabilities, and hyperparameters.
    """
    hmm = model.distribution(batch, model.parameters_of(values))
    found = {
        "log_prob": hmm.log_prob(batch.obs),
        "next": hmm.predict(batch.obs, [0])[:, 0, 0],
        "square": values["log_transition"].exp().square().flatten(1).mean(1),
    }
    if "concentration" in values:
        found["concentration"] = values["concentration"]
    log_weights = model.log_weights(values)
    if log_weights is not None:
        found["evenness"] = log_weights.exp().square().sum(1)
    return {name: value.double().numpy() for name, value in found.items()}


def invariants_of_draws(
    model: BayesianCHMM, batch: SequenceBatch, draws: Mapping[str, Tensor]
) -> dict[str, Array]:
    """The same ``(C, D)`` of the draws of a fit."""
    shape = draws["transition"].shape[:2]
    values = model.values_of({name: draws[name].flatten(0, 1) for name in model.public_names})
    return {k: v.reshape(shape) for k, v in invariants(model, batch, values).items()}


def effective_size(draws: Array) -> float:
    """Effective number of independent draws among ``(C, D)`` dependent ones."""
    return float(az.ess(np.asarray(draws)))
