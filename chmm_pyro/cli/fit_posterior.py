"""``chmm fit --method vb|gibbs|nuts``: a posterior instead of one model."""

from __future__ import annotations

from typing import Any

import torch

from ..inference.gibbs import fit_gibbs
from ..inference.nuts import fit_nuts
from ..inference.result import FitResult
from ..inference.vb import fit_vb
from ..models.base import CloneModel
from ..models.bayesian import BayesianCHMM
from ..sequences import SequenceBatch
from .options import Method

__all__ = ["POSTERIOR_METHODS", "fit_posterior"]

POSTERIOR_METHODS = frozenset({Method.VB, Method.GIBBS, Method.NUTS})


def fit_posterior(
    method: Method,
    point: CloneModel,
    train: SequenceBatch,
    given: dict[str, Any],
    *,
    started: bool,
    learn_initial: bool,
    action_model: str,
    dtype: torch.dtype,
    **options: Any,
) -> FitResult:
    """Fit a model with Dirichlet priors of the sizes of a point model.

    Args:
        method: one of :data:`POSTERIOR_METHODS`.
        point: the sizes, and with ``started`` where chains start.
        train: the data.
        given: options of the command line by name, None where they were not given.
        started: whether ``point`` is an earlier fit.
        learn_initial: a prior on where sequences begin.
        action_model: of the model.
        dtype: of the draws.
        options: ``seed``, ``progress`` and, for vb, ``num_iters``.
    """
    alpha = given["--concentration"]
    model = BayesianCHMM(
        point.clones,
        point.num_actions,
        1.0 / point.clones.num_states if alpha is None else alpha,
        stick_concentration=given["--sticks"],
        learn_initial=learn_initial,
        learn_actions=started and point.action_logits is not None,
        action_model=action_model,
        dtype=dtype,
    )
    start = point if started else None
    if method is Method.VB:
        return fit_vb(
            model,
            train,
            start=start,
            tol=given["--tol"],
            batch_size=given["--batch-size"],
            num_draws=_or_default(given["--draws"], 200),
            **options,
        )
    sample = fit_gibbs if method is Method.GIBBS else fit_nuts
    return sample(
        model,
        train,
        start=start,
        num_iters=_or_default(given["--draws"], 500),
        num_warmup=_or_default(given["--warmup"], 500),
        num_chains=_or_default(given["--chains"], 4),
        **options,
    )


def _or_default(value: int | None, default: int) -> int:
    return default if value is None else value
