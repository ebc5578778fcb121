r"""Conjugate variational Bayes: Dirichlet posteriors of rows, independent of the hidden paths.

An iteration is EM's with expected log-probabilities (digamma functions of the Dirichlet counts) in
place of log-probabilities; they do not sum to one, and need not (Beal 2003, chapter 3).  With
minibatches it is a natural-gradient step of the same bound (Hoffman et al. 2013, "Stochastic
variational inference").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.bayesian import BayesianCHMM, Parameters
from ..models.priors import from_rows, to_rows
from ..sequences import SequenceBatch
from ..simplex import LogDirichlet
from .chains import Start, check_bayesian
from .conjugate import dirichlet_of
from .guides import DirichletGuide, posterior_fields, starting_concentrations
from .result import FitResult, bits_per_step
from .scope import Stopwatch, pyro_scope, until_interrupted

__all__ = ["evidence_bound", "fit_vb"]


class _Prior(NamedTuple):
    """Prior rows of a site: concentrations, and the sum of their log normalisers."""

    concentration: Tensor
    log_normaliser: Tensor


def _prior(model: BayesianCHMM, site: str) -> _Prior:
    alpha = dirichlet_of(model, site, {})
    return _Prior(alpha, LogDirichlet(alpha).log_normaliser.sum(dtype=torch.float64))


@torch.no_grad()
def evidence_bound(
    model: BayesianCHMM,
    batch: SequenceBatch,
    rows: Mapping[str, Tensor],
    priors: Mapping[str, _Prior] | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """The evidence lower bound at its best path distribution, and that distribution's counts.

    Args:
        model: the priors.
        batch: the data; a minibatch counts for its whole population.
        rows: concentrations of the posterior of each site.
        priors: what the model says about each site, where it is at hand.

    Returns:
        The bound in nats, and expected counts in the shape of ``rows``.
    """
    if priors is None:
        priors = {site: _prior(model, site) for site in rows}
    posteriors = {site: LogDirichlet(alpha) for site, alpha in rows.items()}
    expected = {site: posterior.mean for site, posterior in posteriors.items()}
    table = from_rows(expected["log_transition"], model.num_actions, model.action_model)
    states = model.clones.num_states
    log_initial = expected.get("log_initial", table.new_full((states,), -math.log(states)))
    log_emission = expected.get("log_emission")
    if log_emission is not None:
        log_emission.requires_grad_()
    # Action terms do not depend on paths and are added below.
    hmm = model.distribution(batch, Parameters(log_initial, table, None, log_emission))
    log_z, initial, transition = hmm.expected_counts(batch.obs)
    # CloneHMM normalises the initial distribution, once for every sequence.
    total = log_z.sum() + batch.num_sequences * log_initial.double().logsumexp(-1)
    counts = {"log_transition": to_rows(transition, model.action_model), "log_initial": initial}
    if log_emission is not None:
        with torch.enable_grad():
            log_prob = hmm.log_prob(batch.obs).sum()
        (counts["log_emission"],) = torch.autograd.grad(log_prob, log_emission)
    if "log_actions" in rows:
        counts["log_actions"] = batch.action_counts(model.num_actions).to(table)
        total = total + (counts["log_actions"] * expected["log_actions"]).sum()
    scale = (batch.population or batch.num_sequences) / batch.num_sequences
    divergence = 0.0
    for site, posterior in posteriors.items():
        prior = priors[site]
        weighted = (posterior.concentration - prior.concentration) * expected[site]
        own = posterior.log_normaliser.sum(dtype=torch.float64)
        divergence += float(weighted.sum(dtype=torch.float64) + prior.log_normaliser - own)
    if scale != 1:
        counts = {site: scale * count for site, count in counts.items()}
    return scale * float(total) - divergence, {site: counts[site] for site in rows}


@torch.no_grad()
def fit_vb(
    model: BayesianCHMM,
    batch: SequenceBatch,
    *,
    num_iters: int = 100,
    tol: float | None = None,
    start: Start = None,
    batch_size: int | None = None,
    delay: float = 1.0,
    forgetting: float = 0.7,
    num_draws: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    r"""Fit independent Dirichlet posteriors.

    The bound never falls.  Because paths and rows are independent in the approximation, it is too
    certain about rows whose use is in doubt, and finds one labelling of the clones.

    Args:
        model: priors without hyperparameters; unchanged.
        batch: one or many sequences.
        num_iters: updates at most.
        tol: stop once an update raises the bound by less than this many bits per step; None runs
            all updates.
        start: a point model or result to take the first counts from; by default random rows.
        batch_size: whole sequences an update sees; by default all.  Cut a long sequence with
            ``batch.segments`` first.
        delay: :math:`\tau` of the step sizes :math:`(t + \tau)^{-\kappa}` of minibatches.
        forgetting: :math:`\kappa`, between 0.5 (exclusive) and 1.
        num_draws: draws of the posterior to keep, as one chain.
        seed: of everything random.
        progress: show a bar.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult`: ``model`` is the posterior mean,
        ``guide`` the posterior (a :class:`~chmm_pyro.inference.guides.DirichletGuide`),
        ``objective_history`` the bound in nats before each update (estimates with minibatches).

    Raises:
        ValueError: options out of range, or a model with hyperparameters.

    Example:
        >>> from chmm_pyro import CloneStructure, SequenceBatch
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 2] * 10)
        >>> model = BayesianCHMM(CloneStructure([2, 2, 2]), num_actions=1, concentration=0.5)
        >>> result = fit_vb(model, batch, num_iters=20, progress=False)
        >>> bool((np.diff(result.objective_history) > -1e-9).all())
        True
    """
    check_bayesian(model)
    _check(model, num_iters, tol, batch_size, delay, forgetting, num_draws)
    watch = Stopwatch()
    bounds: list[float] = []
    seconds: list[float] = []
    converged = False
    to_bits = 1 / (math.log(2) * batch.num_observed)
    generator = np.random.default_rng(seed)
    with (
        pyro_scope(seed),
        pyro.validation_enabled(False),  # of every entry of every row, at every update
        until_interrupted() as stop,
        tqdm(total=num_iters, desc="VB", disable=not progress) as bar,
    ):
        parts = _parts(batch, batch_size, generator)
        rows = starting_concentrations(model, batch, start=start, seed=seed)
        priors = {site: _prior(model, site) for site in rows}
        for iteration in range(num_iters):
            bound, counts = evidence_bound(model, next(parts), rows, priors)
            if not math.isfinite(bound):
                raise ValueError(
                    f"the bound is {bound} at update {iteration}: the data are impossible under "
                    "the start; start from a model without zeros."
                )
            bounds.append(bound)
            seconds.append(watch())
            bar.set_postfix_str(f"bound {-bound * to_bits:.5f} bits/step", refresh=False)
            if tol is not None and len(bounds) > 1:
                converged = (bounds[-1] - bounds[-2]) * to_bits < tol
            if converged or stop.is_set():
                break
            for site, count in counts.items():
                target = priors[site].concentration + count
                if batch_size is None:
                    rows[site] = target
                else:
                    step = (iteration + 1 + delay) ** -forgetting
                    rows[site] = torch.lerp(rows[site], target, step)
            bar.update()
        guide = DirichletGuide(model, rows)
        found = posterior_fields(model, guide, batch, num_draws)
    settings: dict[str, Any] = {
        "method": "vb",
        "num_iters": num_iters,
        "tol": tol,
        "batch_size": batch_size,
        "delay": delay,
        "forgetting": forgetting,
        "num_draws": num_draws,
        "seed": seed,
        "action_model": model.action_model,
    }
    return FitResult(
        **found,
        guide=guide,
        data=batch,
        objective_history=np.array(bounds),
        bits_per_step=bits_per_step(found["model"], batch),
        converged=converged,
        interrupted=stop.is_set(),
        num_iters=len(bounds) - int(converged or stop.is_set()),
        wall_time=watch(),
        seconds_history=np.array(seconds),
        settings=settings,
    )


def _parts(batch: SequenceBatch, batch_size: int | None, generator: np.random.Generator) -> Any:
    while True:
        if batch_size is None:
            yield batch
        else:
            for part in batch.minibatches(batch_size, seed=generator):
                yield part.batch


def _check(
    model: BayesianCHMM,
    num_iters: int,
    tol: float | None,
    batch_size: int | None,
    delay: float,
    forgetting: float,
    num_draws: int,
) -> None:
    for site, argument in (("concentration", "hyperprior"), ("log_sticks", "stick_concentration")):
        if site in model.sites:
            raise ValueError(
                f"the model has a {argument}, expected none: its rows are not Dirichlet a priori; "
                "use fit_gibbs, or fit_svi with guide='Dirichlet'."
            )
    for name, value, least in (
        ("num_iters", num_iters, 1),
        ("num_draws", num_draws, 0),
        ("batch_size", batch_size, 1),
        ("tol", tol, 0),
        ("delay", delay, 0),
    ):
        if value is not None and not value >= least:
            raise ValueError(f"{name} = {value}, expected at least {least}.")
    if not 0.5 < forgetting <= 1:
        raise ValueError(
            f"forgetting = {forgetting}, expected above 0.5 and at most 1, for steps that "
            "neither stall nor keep jumping."
        )
    if tol is not None and batch_size is not None:
        raise ValueError("tol was given with batch_size, expected one: minibatch bounds are noisy.")
