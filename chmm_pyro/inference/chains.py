"""What all samplers share: where chains start, and how their draws become a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distribution import CloneHMM
from ..models.base import CloneModel
from ..models.bayesian import BayesianCHMM
from ..models.priors import to_rows
from ..sequences import SequenceBatch
from .result import FitResult, bits_per_step

__all__ = [
    "Start",
    "chain_result",
    "check_bayesian",
    "check_memory",
    "check_sampler",
    "check_start",
    "describe",
    "distribution_of",
    "log_prob_of",
    "starting_values",
    "to_bits",
    "total_log_prob",
]

Start = CloneModel | FitResult | Sequence[CloneModel] | None
"""Where chains start: one model for all, a model for each, the last draws of a run, the prior."""


def check_bayesian(model: Any) -> None:
    """Refuse models that have no posterior."""
    if not isinstance(model, BayesianCHMM):
        raise TypeError(
            f"model is {type(model).__name__}, expected BayesianCHMM: only a model with priors "
            "has a posterior; PointCHMM is for fit_em and fit_svi."
        )


def check_sampler(
    model: Any, num_iters: int, num_warmup: int, num_chains: int, thin: int = 1
) -> None:
    """Refuse options that no sampler accepts."""
    check_bayesian(model)
    for name, value, least in (
        ("num_iters", num_iters, 1),
        ("num_warmup", num_warmup, 0),
        ("num_chains", num_chains, 1),
        ("thin", thin, 1),
    ):
        if value < least:
            raise ValueError(f"{name} = {value}, expected at least {least}.")
    if thin > num_iters:
        raise ValueError(
            f"thin = {thin} of num_iters = {num_iters}, expected at most num_iters: no draw "
            "would be kept."
        )


def check_memory(values: Mapping[str, Tensor], num_kept: int, max_gigabytes: float) -> None:
    """Refuse to keep so many copies of ``values`` if they take more memory than allowed."""
    gigabytes = num_kept * sum(x.numel() * x.element_size() for x in values.values()) / 1e9
    if gigabytes > max_gigabytes:
        raise ValueError(
            f"{num_kept:,} draws of {len(values['log_transition'])} chains take "
            f"{gigabytes:.2g} GB, expected at most max_gigabytes = {max_gigabytes:g}: raise thin, "
            "ask for fewer draws or chains, or use dtype=torch.float32."
        )


def starting_values(model: BayesianCHMM, start: Start, num_chains: int) -> dict[str, Tensor]:
    """``(C, ...)`` values of all sites for chains to start from.

    Dispersed by default: one prior draw for each chain.  Point models give the parameters they
    have; what they lack (hyperparameters) is drawn from the prior.
    """
    values = model.sample_prior(num_chains)
    if start is None:
        return values
    if isinstance(start, FitResult) and start.draws is not None:
        found = len(start.draws["transition"])
        if found != num_chains:
            raise ValueError(
                f"start has {found} chains, expected num_chains = {num_chains} to continue them."
            )
        return model.values_of({name: start.draws[name][:, -1] for name in model.public_names})
    models = [start.model] if isinstance(start, FitResult) else start
    models = [models] if isinstance(models, CloneModel) else list(models)
    if len(models) not in (1, num_chains):
        raise ValueError(
            f"start has {len(models)} models, expected 1 for all chains or {num_chains}, one each."
        )
    given = [_values_of_point(model, one) for one in models]
    for site in given[0]:
        shared = torch.stack([one[site] for one in given])
        values[site] = shared.expand(num_chains, *shared.shape[1:]).clone()
    return values


def _values_of_point(model: BayesianCHMM, point: CloneModel) -> dict[str, Tensor]:
    """The sites that a point model has values for."""
    if point.clones != model.clones or point.num_actions != model.num_actions:
        raise ValueError(
            f"start is a model of {point.clones} and {point.num_actions} actions, expected "
            f"{model.clones} and {model.num_actions}."
        )
    if point.action_model != model.action_model:
        raise ValueError(
            f"start has action_model={point.action_model!r}, expected {model.action_model!r}."
        )
    with torch.no_grad():
        table = point.transition.table().values.to(model.dtype)
        if table.shape[-1] != model.clones.num_states:
            raise ValueError(
                "start stores observed blocks only, expected a model with all entries."
            )
        # float32 rows sum to one only to float32
        rows = to_rows(table, model.action_model).log_softmax(-1)
        values = {"log_transition": rows}
        if model.learn_initial:
            values["log_initial"] = point.initial.logits.to(model.dtype).log_softmax(-1)
        if model.learn_actions and point.action_logits is not None:
            values["log_actions"] = point.action_logits.to(model.dtype).log_softmax(-1)
    return values


def distribution_of(
    model: BayesianCHMM, batch: SequenceBatch, values: Mapping[str, Tensor]
) -> CloneHMM:
    """The distribution of the data under values ``(*P, ...)`` of the sites."""
    return model.distribution(batch, model.parameters_of(values).beside(batch))


@torch.no_grad()
def log_prob_of(hmm: CloneHMM, batch: SequenceBatch) -> Tensor:
    """``(*P)`` float64 log-likelihood of all sequences together."""
    return total_log_prob(hmm.log_prob(batch.obs), batch)


def total_log_prob(log_prob: Tensor, batch: SequenceBatch) -> Tensor:
    """``(*P)`` float64 from one log-likelihood for each sequence."""
    log_prob = log_prob.double()
    return log_prob if batch.lengths is None else log_prob.sum(-1)


@torch.no_grad()
def describe(
    model: BayesianCHMM, batch: SequenceBatch, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Draws ``(N, ...)`` of the sites under public names, with their densities and a path each.

    Returns:
        Also ``log_prob``, ``log_joint`` ``(N,)`` and ``num_used`` ``(N, V)``, as in
        :func:`~chmm_pyro.inference.gibbs.fit_gibbs`.
    """
    parts = []
    for chunk in torch.arange(len(values["log_transition"])).split(256):
        part = {site: value[chunk] for site, value in values.items()}
        hmm = distribution_of(model, batch, part)
        paths, log_prob = hmm.draw_paths(batch.obs)
        log_prob = total_log_prob(log_prob, batch)
        described = {
            **model.draws_of(part),
            "log_prob": log_prob,
            "log_joint": log_prob + model.log_prior(part).double(),
            "num_used": model.num_used(paths[0], batch),
        }
        parts.append(described)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check_start(log_prob: Tensor) -> None:
    """Refuse chains that start where the data are impossible."""
    wrong = ~log_prob.isfinite()
    if wrong.any():
        raise ValueError(
            f"the data are impossible under the start of chain {int(wrong.nonzero()[0, 0])}: "
            "start from a model without zeros (PointCHMM.from_counts(..., pseudocount=0.01)) or "
            "from the prior (start=None)."
        )


def chain_result(
    model: BayesianCHMM,
    batch: SequenceBatch,
    draws: dict[str, Tensor],
    *,
    histories: Mapping[str, Sequence[float]],
    **fields: Any,
) -> FitResult:
    """A result whose model is the draw that gives the data the highest probability.

    The posterior density would not do: for concentrations below one it is unbounded where
    probabilities vanish.

    Args:
        model: that was sampled.
        batch: the data.
        draws: ``(C, D, ...)`` with ``log_prob``.
        histories: ``objective``, ``log_prob`` and ``seconds``, by sweep.
        fields: all others of :class:`~chmm_pyro.inference.result.FitResult`.
    """
    best = np.unravel_index(int(draws["log_prob"].argmax()), draws["log_prob"].shape)
    values = model.values_of({name: draws[name][best] for name in model.public_names})
    point = model.point(values)
    return FitResult(
        model=point,
        prior_model=model,
        data=batch,
        draws=draws,
        objective_history=np.array(histories["objective"]),
        log_prob_history=np.array(histories["log_prob"]),
        seconds_history=np.array(histories["seconds"]),
        bits_per_step=bits_per_step(point, batch),
        converged=False,
        **fields,
    )


def to_bits(batch: SequenceBatch) -> float:
    """Bits per step of one nat of log-likelihood lost."""
    return -1 / (math.log(2) * batch.num_observed)
