r"""Conditional draws given hidden paths: counts, Dirichlet rows and their hyperparameters.

Given paths, rows are Dirichlet with concentration plus counts.  Hyperparameters are drawn with the
rows summed out, through two sets of auxiliary variables: the numbers of *tables*
:math:`m \sim \sum_{l < n} \mathrm{Bernoulli}(\alpha / (\alpha + l))` that turn ratios of gamma
functions into powers (Antoniak 1974; Teh et al. 2006, "Hierarchical Dirichlet processes"), and
Beta variables that do so for the totals of rows (Escobar and West 1995).  A table of staying in a
state belongs to the sticky part with that part's share of the concentration (Fox et al. 2008).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..clones import MISSING
from ..models.bayesian import BayesianCHMM
from ..models.priors import to_rows
from ..sequences import SequenceBatch

__all__ = [
    "dirichlet_of",
    "draw_log_dirichlet",
    "draw_parameters",
    "draw_tables",
    "path_counts",
]

Array = NDArray[Any]

# Below this many entries a second thread costs more than it saves.
_PARALLEL_ENTRIES = 50_000


def path_counts(model: BayesianCHMM, batch: SequenceBatch, states: Tensor) -> dict[str, Tensor]:
    """How often paths use each entry of the Dirichlet rows.

    Args:
        model: says which rows there are.
        batch: the sequences.
        states: ``(C, ..., T)`` a path of every chain through every sequence.

    Returns:
        Counts ``(C, ...)`` in the shape of each Dirichlet site; ``log_initial`` always.
    """
    chains, size = len(states), model.clones.num_states
    chain = torch.arange(chains, device=states.device).view(-1, *[1] * (states.ndim - 1))

    def count(index: Tensor, inside: Tensor, shape: tuple[int, ...]) -> Tensor:
        per_chain = int(np.prod(shape))
        flat = (chain * per_chain + index)[inside]
        return torch.bincount(flat, minlength=chains * per_chain).view(chains, *shape)

    inside = states >= 0
    old, new = states[..., :-1], states[..., 1:]
    index = (batch.actions * size + old) * size + new
    table = count(index, inside[..., 1:], (model.num_actions, size, size))
    counts = {
        "log_transition": to_rows(table, model.action_model),
        "log_initial": count(states[..., :1], inside[..., :1], (size,)),
    }
    if model.learn_actions:
        counts["log_actions"] = batch.action_counts(model.num_actions).expand(chains, -1)
    if model.emission_concentration is not None:
        symbols = model.clones.num_symbols
        seen = inside & (batch.obs != MISSING)
        counts["log_emission"] = count(states * symbols + batch.obs, seen, (size, symbols))
    return counts


def draw_log_dirichlet(concentration: Array, generator: np.random.Generator) -> Array:
    """Logarithms of Dirichlet rows, as :class:`~chmm_pyro.simplex.LogDirichlet` but faster.

    Args:
        concentration: ``(..., K)`` positive, float32 or float64.
        generator: of the draws.
    """
    dtype: Any = concentration.dtype
    log_gamma = np.log(generator.standard_gamma(concentration + 1, dtype=dtype))
    log_gamma -= generator.standard_exponential(concentration.shape, dtype=dtype) / concentration
    log_gamma -= log_gamma.max(-1, keepdims=True)
    log_gamma -= np.log(np.exp(log_gamma).sum(-1, keepdims=True))
    return log_gamma


def draw_tables(counts: Array, concentration: Array, generator: np.random.Generator) -> Array:
    """Numbers of occupied tables of Chinese restaurants with these customers.

    Args:
        counts: integers of any shape.
        concentration: of each restaurant, in that shape.
        generator: of the draws.
    """
    tables = np.zeros(counts.shape, np.int64)
    used = counts > 0
    sizes = counts[used]
    if sizes.size == 0:
        return tables
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    seated = np.arange(sizes.sum()) - np.repeat(first, sizes)
    alpha = np.repeat(concentration[used], sizes)
    new = generator.random(len(seated)) * (alpha + seated) < alpha
    tables[used] = np.add.reduceat(new, first, dtype=np.int64)
    return tables


def draw_parameters(
    model: BayesianCHMM,
    counts: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    generator: np.random.Generator,
) -> dict[str, Tensor]:
    """Draw all sites given the paths of every chain.

    Args:
        model: its priors.
        counts: ``(C, ...)`` from :func:`path_counts`.
        values: current values ``(C, ...)``; only hyperparameters are read.
        generator: of the draws.
    """
    table = counts["log_transition"]
    if len(table) == 1 or table[0].numel() < _PARALLEL_ENTRIES:
        return _draw(model, counts, values, generator)

    def draw(chain: int, own: np.random.Generator) -> dict[str, Tensor]:
        mine = slice(chain, chain + 1)
        return _draw(
            model,
            {site: value[mine] for site, value in counts.items()},
            {site: value[mine] for site, value in values.items()},
            own,
        )

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        drawn = list(pool.map(draw, range(len(table)), generator.spawn(len(table))))
    return {site: torch.cat([one[site] for one in drawn]) for site in model.sites}


def _draw(
    model: BayesianCHMM,
    counts: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    generator: np.random.Generator,
) -> dict[str, Tensor]:
    drawn = _draw_hyperparameters(model, counts, values, generator)
    for site in model.sites:
        if site not in drawn:
            total = dirichlet_of(model, site, drawn) + counts[site]
            draw = draw_log_dirichlet(total.cpu().numpy(), generator)
            drawn[site] = torch.from_numpy(draw).to(total)
    return drawn


def dirichlet_of(model: BayesianCHMM, site: str, values: Mapping[str, Tensor]) -> Tensor:
    """``(..., K)`` concentrations of the prior rows of a site, given hyperparameters."""
    prior: Any = model.prior(site, values)
    return getattr(prior, "base_dist", prior).concentration


def _draw_hyperparameters(
    model: BayesianCHMM,
    counts: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    generator: np.random.Generator,
) -> dict[str, Tensor]:
    """The sites ``concentration`` and ``log_sticks``, rows summed out."""
    if model.sites[0] == "log_transition":
        return {}
    prior = model.transition_prior
    factor, log_weights = values.get("concentration"), model.log_weights(values)
    alpha = to_rows(model.concentration(values), model.action_model)
    rows = counts["log_transition"].cpu().numpy()
    tables = draw_tables(rows, np.broadcast_to(alpha.cpu().numpy(), rows.shape), generator)
    if prior.sticky:
        # The share of a table is the share of the concentration that seated it.
        shared = to_rows(prior.shared(factor, log_weights), model.action_model)
        tables = generator.binomial(tables, (shared / alpha).clamp(max=1.0).cpu().numpy())
    drawn = {}
    if factor is not None:
        visits, totals = rows.sum(-1), np.broadcast_to(alpha.sum(-1).cpu().numpy(), rows.shape[:-1])
        base = to_rows(prior.base, model.action_model).sum(-1).cpu().numpy()
        pair = np.stack([totals, np.maximum(visits, 1)], -1)
        log_beta = np.where(visits > 0, draw_log_dirichlet(pair, generator)[..., 0], 0.0)
        assert prior.hyperprior is not None
        shape, rate = prior.hyperprior
        rate = rate - (base * log_beta).reshape(len(rows), -1).sum(-1)
        shape = shape + tables.reshape(len(rows), -1).sum(-1)
        drawn["concentration"] = generator.standard_gamma(shape) / rate
    if log_weights is not None:
        seated = tables.reshape(len(rows), -1, model.clones.num_states).sum(1)
        if model.learn_initial:
            starts = counts["log_initial"].cpu().numpy()
            first = dirichlet_of(model, "log_initial", values).cpu().numpy()
            seated = seated + draw_tables(starts, np.broadcast_to(first, starts.shape), generator)
        drawn["log_sticks"] = _draw_sticks(model, seated, generator)
    return {site: torch.as_tensor(value).to(alpha) for site, value in drawn.items()}


def _draw_sticks(
    model: BayesianCHMM, seated: NDArray[np.int64], generator: np.random.Generator
) -> Array:
    """``(C, S - V, 2)`` sticks given how many tables ``(C, S)`` serve each clone."""
    left = model.transition_prior.stick_concentration
    assert left is not None
    pairs = []
    for own in np.split(seated, model.clones.offsets[1:-1], axis=1):
        later = own[:, ::-1].cumsum(1)[:, ::-1] - own
        pairs.append(np.stack([1.0 + own, left + later], -1)[:, :-1])
    return draw_log_dirichlet(np.concatenate(pairs, 1), generator)
