"""The exact posterior under Dirichlet priors, as a mixture over all clone paths.

Given a path the rows are Dirichlet again, and the path's own probability is a ratio of gamma
functions, so expectations are finite sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import reference
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, logsumexp

__all__ = ["ExactPosterior", "exact_posterior"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ExactPosterior:
    """Expectations over parameters and paths, given the data.

    Attributes:
        log_evidence: ``log p(x | a)``, parameters and paths integrated out.
        transition_mean: ``(A, S, S)``.
        transition_square: ``(A, S, S)`` expected squares.
        smooth: ``(T, S)`` probability of each state, parameters integrated out.
    """

    log_evidence: float
    transition_mean: Array
    transition_square: Array
    smooth: Array


def exact_posterior(
    num_clones: tuple[int, ...], alpha: ArrayLike, obs: ArrayLike, actions: ArrayLike
) -> ExactPosterior:
    """Of one sequence that starts in a uniformly drawn state.

    Args:
        num_clones: ``(V,)``.
        alpha: ``(A, S, S)`` concentrations; each row ``(a, i)`` is a Dirichlet.
        obs: ``(T,)``.
        actions: ``(T - 1,)``.
    """
    alpha, actions = np.asarray(alpha, np.float64), np.asarray(actions)
    paths = reference.all_paths(num_clones, obs)
    steps = np.arange(len(actions))
    counts = np.zeros((len(paths), *alpha.shape))
    for t in steps:
        np.add.at(counts, (np.arange(len(paths)), actions[t], paths[:, t], paths[:, t + 1]), 1.0)
    posterior = alpha + counts
    total, rows = posterior.sum(-1, keepdims=True), alpha.sum(-1, keepdims=True)
    weight = (gammaln(posterior) - gammaln(alpha)).sum((-3, -2, -1))
    weight -= (gammaln(total) - gammaln(rows)).sum((-3, -2, -1))
    weight -= np.log(alpha.shape[-1])
    log_evidence = float(logsumexp(weight))
    weight = np.exp(weight - log_evidence)
    mean = posterior / total
    square = mean * (posterior + 1) / (total + 1)
    smooth = np.zeros((paths.shape[1], alpha.shape[-1]))
    for t in range(paths.shape[1]):
        np.add.at(smooth[t], paths[:, t], weight)
    return ExactPosterior(
        log_evidence,
        np.einsum("p,paij->aij", weight, mean),
        np.einsum("p,paij->aij", weight, square),
        smooth,
    )
