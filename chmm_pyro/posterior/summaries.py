"""What draws say however their clones are numbered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from ..inference.result import FitResult
from ..sequences import SequenceBatch
from .draws import PosteriorDraws, flat_steps, posterior_draws
from .inference_data import from_groups

__all__ = ["co_assignment", "log_predictive", "log_predictive_steps", "summary_table"]


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


def summary_table(draws: PosteriorDraws, *, num_transitions: int = 50) -> pd.DataFrame:
    """ArviZ's summary: first what no numbering of the clones changes, then transitions.

    Args:
        draws: with one numbering of the clones (:func:`~chmm_pyro.posterior.relabelling.relabel`),
            if the rows of transitions are to mean something.
        num_transitions: so many transition probabilities, those of the largest means between
            states that the paths use.

    Returns:
        A row for each quantity, with the columns ``mean``, ``sd``, ``5%``, ``95%``, ``ess`` and
        ``r_hat`` (NaN for a single chain).
    """
    symbols = draws.batch.vocabulary or range(draws.model.clones.num_symbols)
    actions = list(draws.batch.action_vocabulary or range(draws.model.num_actions))
    bits = np.log(2) * draws.batch.num_observed
    rows: dict[str, NDArray[Any]] = {
        "log_prob": draws.log_prob,
        "bits_per_step": -draws.log_prob / bits,
        "states_used": draws.num_used.sum(-1),
    }
    for number, symbol in zip(range(draws.model.clones.num_symbols), symbols, strict=False):
        rows[f"clones_used[{symbol}]"] = draws.num_used[..., number]
    if "concentration" in draws.values:
        rows["concentration"] = draws.values["concentration"].numpy()
    table = draws.values["transition"].numpy()
    means = np.full(table.shape[2:], -1.0)
    used = np.unique(draws.paths)
    means[:, used[:, None], used] = table.mean((0, 1))[:, used[:, None], used]
    largest = np.argsort(-means, axis=None, kind="stable")[:num_transitions]
    for action, old, new in zip(*np.unravel_index(largest, means.shape), strict=True):
        if means[action, old, new] >= 0:
            name = f"transition[{actions[action]}, {old}, {new}]"
            rows[name] = table[:, :, action, old, new]
    values = {name: np.asarray(value, dtype=np.float64) for name, value in rows.items()}
    with np.errstate(invalid="ignore", divide="ignore"):  # R-hat of what never varies is NaN
        found = az.summary(from_groups({"posterior": values}, {}), kind="all", round_to="none")
    quantiles = {q: [np.quantile(value, q) for value in values.values()] for q in (0.05, 0.95)}
    return pd.DataFrame(
        {
            "mean": found["mean"].astype(float),
            "sd": found["sd"].astype(float),
            "5%": quantiles[0.05],
            "95%": quantiles[0.95],
            "ess": found["ess_bulk"].astype(float),
            "r_hat": found["r_hat"].astype(float),
        }
    )
