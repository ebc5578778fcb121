"""Blocked Gibbs sampling: whole paths given parameters, all parameters given paths.

Paths are drawn by forward filtering and backward sampling (Scott 2002, "Bayesian methods for
hidden Markov models"), rows from their conjugate Dirichlet posteriors, hyperparameters with the
rows summed out (:mod:`chmm_pyro.inference.conjugate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.bayesian import BayesianCHMM
from ..sequences import SequenceBatch
from .chains import (
    Start,
    chain_result,
    check_memory,
    check_sampler,
    check_start,
    distribution_of,
    log_prob_of,
    starting_values,
    to_bits,
    total_log_prob,
)
from .conjugate import draw_parameters, path_counts
from .result import FitResult
from .scope import Stopwatch, pyro_scope, until_interrupted

__all__ = ["GibbsSweep", "fit_gibbs", "gibbs_sweep"]


class GibbsSweep(NamedTuple):
    """What a sweep of ``C`` chains gives.

    Attributes:
        values: ``(C, ...)`` new values of all sites.
        states: ``(C, ..., T)`` the paths they were drawn given.
        log_prob: ``(C,)`` float64 log-likelihood under the values before.
    """

    values: dict[str, Tensor]
    states: Tensor
    log_prob: Tensor


@torch.no_grad()
def gibbs_sweep(
    model: BayesianCHMM,
    batch: SequenceBatch,
    values: Mapping[str, Tensor],
    generator: np.random.Generator,
) -> GibbsSweep:
    """One sweep of every chain.

    Args:
        model: the priors.
        batch: the data.
        values: ``(C, ...)`` current values of all sites.
        generator: of the parameters; paths use torch's own.
    """
    hmm = distribution_of(model, batch, values)
    paths, log_prob = hmm.draw_paths(batch.obs)
    counts = path_counts(model, batch, paths[0])
    drawn = draw_parameters(model, counts, values, generator)
    return GibbsSweep(drawn, paths[0], total_log_prob(log_prob, batch))


@torch.no_grad()
def fit_gibbs(
    model: BayesianCHMM,
    batch: SequenceBatch,
    *,
    num_iters: int = 1000,
    num_warmup: int = 500,
    num_chains: int = 4,
    thin: int = 1,
    start: Start = None,
    max_gigabytes: float = 4.0,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Draw from the posterior of all parameters and hyperparameters.

    All chains run at the same time, as a batch of parameters.

    Args:
        model: priors; unchanged.
        batch: one or many sequences.
        num_iters: sweeps after warm-up.
        num_warmup: sweeps whose draws are dropped.
        num_chains: independent chains.
        thin: keep every so-manieth draw.
        start: a point model for all chains or a list of one each (such as fits from several
            seeds), or an earlier result, whose chains go on; by default every chain starts from a
            draw of the prior.
        max_gigabytes: draws that take more are refused before the first sweep.
        seed: of everything random.
        progress: show a bar.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult`.  ``draws`` holds, ``(chain, draw, ...)``,
        the probabilities that :meth:`~chmm_pyro.models.bayesian.BayesianCHMM.draws_of` names,
        ``log_prob`` (of the data, states summed out), ``log_joint`` (plus the log-density of the
        prior) and ``num_used`` ``(chain, draw, V)`` (clones of each symbol on the drawn path).
        ``model`` is the draw of highest ``log_prob``, ``prior_model`` the model passed in; the
        histories are means over chains before each sweep, warm-up included.

    Raises:
        ValueError: options out of range, more draws than fit in memory, or a start under which
            the data are impossible.

    Example:
        >>> from chmm_pyro import CloneStructure, SequenceBatch
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 2] * 10)
        >>> model = BayesianCHMM(CloneStructure([2, 2, 2]), num_actions=1, concentration=0.5)
        >>> result = fit_gibbs(
        ...     model, batch, num_iters=20, num_warmup=10, num_chains=2, progress=False
        ... )
        >>> result.draws["transition"].shape
        torch.Size([2, 20, 1, 6, 6])
    """
    check_sampler(model, num_iters, num_warmup, num_chains, thin)
    watch = Stopwatch()
    kept: list[dict[str, Tensor]] = []
    histories: dict[str, list[float]] = {"objective": [], "log_prob": [], "seconds": []}
    generator = np.random.default_rng(seed)
    total, done = num_warmup + num_iters, 0

    def due() -> bool:
        return done > num_warmup and (done - num_warmup) % thin == 0

    def keep(log_prob: Tensor, log_joint: Tensor) -> None:
        densities = {"log_prob": log_prob, "log_joint": log_joint}
        assert states is not None
        used = model.num_used(states, batch)
        kept.append({**model.draws_of(values), **densities, "num_used": used})

    with (
        pyro_scope(seed),
        pyro.validation_enabled(False),  # of every entry of every row, at every sweep
        until_interrupted() as stop,
        tqdm(total=total, desc="Gibbs", disable=not progress) as bar,
    ):
        values = starting_values(model, start, num_chains)
        check_memory(values, num_iters // thin, max_gigabytes)
        check_start(log_prob_of(distribution_of(model, batch, values), batch))
        states = None
        while done < total and not (stop.is_set() and done > 0):
            sweep = gibbs_sweep(model, batch, values, generator)
            log_joint = sweep.log_prob + model.log_prior(values).double()
            if due():
                keep(sweep.log_prob, log_joint)
            histories["objective"].append(float(log_joint.mean()))
            histories["log_prob"].append(float(sweep.log_prob.mean()))
            histories["seconds"].append(watch())
            values, states = sweep.values, sweep.states
            done += 1
            bits = histories["log_prob"][-1] * to_bits(batch)
            bar.set_postfix_str(f"{bits:.5f} bits/step", refresh=False)
            bar.update()
        if due() or not kept:  # interrupted before anything was kept: keep what there is
            log_prob = log_prob_of(distribution_of(model, batch, values), batch)
            keep(log_prob, log_prob + model.log_prior(values).double())
    draws = {name: torch.stack([one[name] for one in kept], 1) for name in kept[0]}
    settings: dict[str, Any] = {
        "method": "gibbs",
        "num_iters": num_iters,
        "num_chains": num_chains,
        "thin": thin,
        "seed": seed,
        "action_model": model.action_model,
    }
    warmed = min(done, num_warmup)
    return chain_result(
        model,
        batch,
        draws,
        histories=histories,
        interrupted=stop.is_set(),
        num_iters=done - warmed,
        num_warmup=warmed,
        wall_time=watch(),
        settings=settings,
    )
