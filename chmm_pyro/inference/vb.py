r"""Conjugate variational Bayes: Dirichlet posteriors of rows, independent of the hidden paths.

An iteration is EM's with expected log-probabilities (digamma functions of the Dirichlet counts) in
place of log-probabilities; they do not sum to one, and need not (Beal 2003, chapter 3).  With
minibatches it is a natural-gradient step of the same bound (Hoffman et al. 2013, "Stochastic
variational inference").
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from tqdm.auto import tqdm

from ..models.bayesian import BayesianCHMM, Parameters
from ..models.priors import from_rows, to_rows
from ..sequences import SequenceBatch
from ..simplex import LogDirichlet
from .chains import Start, check_bayesian
from .conjugate import action_counts, dirichlet_of
from .guides import DirichletGuide, posterior_fields, starting_concentrations
from .result import FitResult, bits_per_step
from .scope import Stopwatch, pyro_scope, until_interrupted

__all__ = ["evidence_bound", "fit_vb"]


@torch.no_grad()
def evidence_bound(
    model: BayesianCHMM, batch: SequenceBatch, rows: dict[str, Tensor]
) -> tuple[float, dict[str, Tensor]]:
    """The evidence lower bound at its best path distribution, and that distribution's counts.

    Args:
        model: the priors.
        batch: the data; a minibatch counts for its whole population.
        rows: concentrations of the posterior of each site.

    Returns:
        The bound in nats, and expected counts in the shape of ``rows``.
    """
    expected = {site: LogDirichlet(alpha).mean for site, alpha in rows.items()}
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
        counts["log_actions"] = action_counts(batch, model.num_actions).to(table)
        total = total + (counts["log_actions"] * expected["log_actions"]).sum()
    scale = (batch.population or batch.num_sequences) / batch.num_sequences
    divergence = sum(
        kl_divergence(LogDirichlet(alpha), LogDirichlet(dirichlet_of(model, site, {}))).sum()
        for site, alpha in rows.items()
    )
    return float(scale * total - divergence), {site: scale * counts[site] for site in rows}


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
        until_interrupted() as stop,
        tqdm(total=num_iters, desc="VB", disable=not progress) as bar,
    ):
        parts = _parts(batch, batch_size, generator)
        rows = starting_concentrations(model, batch, start=start, seed=seed)
        priors = {site: dirichlet_of(model, site, {}) for site in rows}
        for iteration in range(num_iters):
            bound, counts = evidence_bound(model, next(parts), rows)
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
            step = 1.0 if batch_size is None else (iteration + 1 + delay) ** -forgetting
            for site, count in counts.items():
                rows[site] = (1 - step) * rows[site] + step * (priors[site] + count)
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
