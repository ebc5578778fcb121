r"""Stochastic variational inference; for models without latent variables, exact gradient ascent.

The objective is the ELBO (for point models the log-likelihood itself) plus optional regularisers.
What is used by default was measured on the published rooms: Adam on the logits with a learning
rate near 0.2, beta2 = 0.99 and a cosine schedule; rates of 0.001-0.01 are far too small here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..models.base import CloneModel
from ..models.bayesian import BayesianCHMM
from ..sequences import SequenceBatch
from .em import check_options, log_prior
from .guides import check_guided, copy_guide, default_elbo, make_guide, posterior_fields
from .minibatches import Term, terms
from .result import FitResult, bits_per_step
from .scope import Stopwatch, pyro_scope, until_interrupted

__all__ = ["decay_factor", "fit_svi", "learning_rate_grid"]

_SCHEDULES = ("cosine", "exponential", "constant")
_HARMLESS = 1e-12  # a learning rate at which nothing diverges


def fit_svi(
    model: CloneModel,
    batch: SequenceBatch | Sequence[SequenceBatch],
    *,
    num_iters: int = 200,
    learning_rate: float = 0.2,
    betas: tuple[float, float] = (0.9, 0.99),
    schedule: str = "cosine",
    final_factor: float = 0.01,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
    pseudocount: float = 0.0,
    entropy_weight: float = 0.0,
    batch_size: int | None = None,
    segment_length: int | None = None,
    burn_in: int = 32,
    weights: Sequence[float] | None = None,
    auxiliary_loss: Callable[[CloneModel], Tensor] | None = None,
    guide: Callable[..., Any] | str | None = None,
    elbo: Any = None,
    num_draws: int = 0,
    tol: float | None = None,
    patience: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    r"""Fit a model by gradient ascent on its ELBO with Adam.

    Args:
        model: a Pyro model of a batch; unchanged.
        batch: one or many sequences, or several batches (tasks) fitted together, whose symbols
            and actions mean the same.
        num_iters: gradient updates.
        learning_rate: of Adam, at the start.
        betas: of Adam.
        schedule: ``"cosine"`` or ``"exponential"`` decay to ``final_factor``, or ``"constant"``.
        final_factor: last learning rate over the first.
        clip_norm: rescale gradients whose norm per observed step is larger.
        weight_decay: decoupled, as in AdamW.
        pseudocount: :math:`\kappa`, adds ``kappa * sum(log transition)``: MAP, EM's objective.
        entropy_weight: adds that many times the entropy of each transition row, in nats, summed;
            negative values ask for crisp rows.
        batch_size: whole sequences an update sees (or segments, with ``segment_length``), scaled
            so that the gradient is unbiased; by default all.  The fewer, the noisier: an update
            on a tenth of the data is cheaper by ten, but plan a few times as many.
        segment_length: cut sequences into segments of so many steps, each starting from a filter
            state carried over from the start of the epoch.
        burn_in: steps before a segment through which the model being trained carries that state
            on.  The bias of segments, see :mod:`~chmm_pyro.inference.minibatches`, falls
            geometrically with it and was not measurable at the default.
        weights: of several batches, by default 1 each.
        auxiliary_loss: a further loss, a function of the model being trained.
        guide: a Pyro guide called like the model; by default empty (no latent variables).  A
            :class:`~chmm_pyro.models.bayesian.BayesianCHMM` needs one: a name that
            :func:`~chmm_pyro.inference.guides.make_guide` knows, or an instance.
        elbo: a Pyro loss; by default ``TraceEnum_ELBO`` for models that enumerate, else
            ``Trace_ELBO`` (with exact divergences from the prior for a Dirichlet guide).
        num_draws: draws of the guide to keep, as one chain.
        tol: stop after ``patience`` updates in which the best objective rose by less than this
            many bits per step in all; None runs all updates.
        patience: see ``tol``.
        seed: of everything random in the fit.
        progress: show a bar.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult`.  With minibatches the histories are
        unbiased estimates; ``bits_per_step`` is always of the returned model on all data.
        ``data`` of several tasks is all sequences together; histories are weighted sums.  With a
        Bayesian model that is the guide's mean (Dirichlet) or median, ``prior_model`` the model
        itself, ``objective_history`` estimates the ELBO and ``log_prob_history`` is None.

    Raises:
        ValueError: options out of range or that a Bayesian model does not take, a maximum asked
            of a posterior without one, or an objective that is not finite (which update).

    Example:
        >>> from chmm_pyro import CloneStructure, SequenceBatch
        >>> from chmm_pyro.models import PointCHMM
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 2] * 25)
        >>> model = PointCHMM(CloneStructure([2, 2, 2]), num_actions=1)
        >>> fit_svi(model, batch, num_iters=50, progress=False).bits_per_step < 0.1
        True
    """
    batches = [batch] if isinstance(batch, SequenceBatch) else list(batch)
    task_weights = [1.0] * len(batches) if weights is None else list(weights)
    check_options(num_iters, pseudocount, tol)
    _check(
        batches,
        task_weights,
        learning_rate,
        schedule,
        clip_norm,
        batch_size,
        segment_length,
        burn_in,
    )
    if isinstance(model, BayesianCHMM):
        check_guided(model, guide, batches, pseudocount, entropy_weight, segment_length)
    elif isinstance(guide, str) or num_draws:
        option = f"guide = {guide!r}" if isinstance(guide, str) else f"num_draws = {num_draws}"
        raise ValueError(f"{option} was given with {type(model).__name__}, expected BayesianCHMM.")
    settings = {
        "method": "svi",
        "num_iters": num_iters,
        "learning_rate": learning_rate,
        "betas": list(betas),
        "schedule": schedule,
        "final_factor": final_factor,
        "clip_norm": clip_norm,
        "weight_decay": weight_decay,
        "pseudocount": pseudocount,
        "entropy_weight": entropy_weight,
        "batch_size": batch_size,
        "segment_length": segment_length,
        "burn_in": None if segment_length is None else burn_in,
        "weights": task_weights,
        "guide": guide if guide is None or isinstance(guide, str) else type(guide).__name__,
        "num_draws": num_draws,
        "tol": tol,
        "patience": patience,
        "seed": seed,
        "action_model": model.action_model,
    }
    fitted = copy.deepcopy(model)
    if isinstance(guide, str):
        fitted_guide = make_guide(guide, fitted, batches[0], seed=seed)
    else:
        fitted_guide = copy_guide(guide)
    if elbo is None:
        elbo = default_elbo(fitted, fitted_guide)
    observed = sum(part.num_observed for part in batches)
    to_bits = 1 / (math.log(2) * observed)
    watch = Stopwatch()
    objectives: list[float] = []
    log_probs: list[float] = []
    seconds: list[float] = []
    converged = False
    with (
        pyro_scope(seed),
        until_interrupted() as stop,
        tqdm(total=num_iters, desc="SVI", disable=not progress) as bar,
    ):
        updates = terms(
            fitted,
            batches,
            task_weights,
            batch_size=batch_size,
            segment_length=segment_length,
            burn_in=burn_in,
            seed=seed,
        )
        first = next(updates)
        parameters = _parameters(fitted, fitted_guide, first)
        optimizer = torch.optim.AdamW(
            parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay
        )
        decay = torch.optim.lr_scheduler.LambdaLR(
            optimizer, decay_factor(schedule, num_iters, final_factor)
        )
        for iteration in range(num_iters):
            seen = first if iteration == 0 else next(updates)
            optimizer.zero_grad()
            log_prob = _ascend(elbo, fitted, fitted_guide, seen)
            bonus = _regularisers(fitted, pseudocount, entropy_weight, auxiliary_loss)
            if isinstance(bonus, Tensor):
                (-bonus).backward()
            objective = log_prob + float(torch.as_tensor(bonus).detach())
            if not math.isfinite(objective):
                raise ValueError(
                    f"the objective is {objective} at update {iteration}: the data are impossible "
                    f"under the model, or learning_rate = {learning_rate} is too large; start "
                    "from a model without zeros, or try `learning_rate_grid`."
                )
            objectives.append(objective)
            log_probs.append(log_prob)
            seconds.append(watch())
            bar.set_postfix_str(f"{-log_prob * to_bits:.5f} bits/step", refresh=False)
            converged = tol is not None and _stalled(objectives, patience, tol / to_bits)
            if converged or stop.is_set():
                break
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, clip_norm * observed)
            optimizer.step()
            decay.step()
            bar.update()
        optimizer.zero_grad()
        data = batches[0] if len(batches) == 1 else SequenceBatch.concatenate(batches)
        found: dict[str, Any] = {"model": fitted, "log_prob_history": np.array(log_probs)}
        if isinstance(model, BayesianCHMM):
            found = posterior_fields(model, fitted_guide, data, num_draws)
    return FitResult(
        **found,
        guide=fitted_guide,
        data=data,
        objective_history=np.array(objectives),
        bits_per_step=bits_per_step(found["model"], data),
        converged=converged,
        interrupted=stop.is_set(),
        num_iters=len(objectives) - int(converged or stop.is_set()),
        wall_time=watch(),
        seconds_history=np.array(seconds),
        settings=settings,
    )


def learning_rate_grid(
    model: CloneModel,
    batch: SequenceBatch,
    *,
    learning_rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3),
    num_iters: int = 50,
    progress: bool = True,
    **options: Any,
) -> dict[float, FitResult]:
    """Fit with each learning rate from the same start.

    Args:
        model: start of every fit; unchanged.
        batch: the sequences.
        learning_rates: to compare; a rate that diverges is left out of the result.  Ctrl-C ends the
            comparison with the rates done so far.
        num_iters: updates of each fit.
        progress: show a bar over the rates.
        options: passed on to :func:`fit_svi`.

    Returns:
        Results by learning rate, the best (least bits per step) first.

    Raises:
        ValueError: options that no rate is to blame for, or no rate gave a fit; says why the last
            did not.
    """
    if not learning_rates:
        raise ValueError("learning_rates is empty, expected at least one; 0.01 to 0.3 is usual.")
    for rate in learning_rates:
        _check_rate(rate)
    # What fails at this rate is no divergence.
    probe = {**options, "learning_rate": _HARMLESS, "num_iters": min(num_iters, 1)}
    fit_svi(model, batch, progress=False, **probe)
    results: dict[float, FitResult] = {}
    error: ValueError | None = None
    for rate in tqdm(learning_rates, desc="learning rates", disable=not progress):
        try:
            results[rate] = fit_svi(
                model, batch, learning_rate=rate, num_iters=num_iters, progress=False, **options
            )
        except ValueError as diverged:  # noqa: PERF203 -- a fit takes seconds
            error = diverged
        else:
            if results[rate].interrupted:
                break
    if not results:
        raise ValueError(
            f"no learning rate of {tuple(learning_rates)} gave a fit, expected one; the last "
            f"failed because {error}"
        ) from error
    return dict(sorted(results.items(), key=lambda item: item[1].bits_per_step))


def _check(
    batches: Sequence[SequenceBatch],
    weights: Sequence[float],
    learning_rate: float,
    schedule: str,
    clip_norm: float | None,
    batch_size: int | None,
    segment_length: int | None,
    burn_in: int,
) -> None:
    if not batches or not all(isinstance(part, SequenceBatch) for part in batches):
        raise TypeError(
            "batch holds something else than SequenceBatch, expected one or a list of them; make "
            "one with SequenceBatch.from_arrays(obs, actions)."
        )
    if len(weights) != len(batches):
        raise ValueError(
            f"weights has {len(weights)} entries, expected {len(batches)}, one a batch."
        )
    _check_rate(learning_rate)
    if schedule not in _SCHEDULES:
        raise ValueError(f"schedule = {schedule!r}, expected one of {_SCHEDULES}.")
    for name, value, least in (
        ("clip_norm", clip_norm, 0),
        ("batch_size", batch_size, 1),
        ("segment_length", segment_length, 2),
    ):
        if value is not None and not value >= least:
            raise ValueError(f"{name} = {value}, expected at least {least}, or None.")
    if burn_in < 0:
        raise ValueError(f"burn_in = {burn_in}, expected at least 0; 32 suits most worlds.")


def _check_rate(learning_rate: float) -> None:
    if not learning_rate > 0:
        raise ValueError(f"learning_rate = {learning_rate}, expected a positive number near 0.2.")


def decay_factor(schedule: str, num_iters: int, final_factor: float) -> Callable[[int], float]:
    """What an optimiser's learning rate is multiplied by before each update."""

    def factor(iteration: int) -> float:
        progress = iteration / max(1, num_iters)
        if schedule == "cosine":
            return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2
        return final_factor**progress if schedule == "exponential" else 1.0

    return factor


def _empty_guide(*args: Any, **kwargs: Any) -> None:
    """No latent variables."""


def _arguments(term: Term) -> tuple[Any, ...]:
    if term.initial_logits is None:
        return (term.batch,)
    return term.batch, term.initial_logits


def _parameters(model: CloneModel, guide: Any, seen: list[Term]) -> list[nn.Parameter]:
    """All free parameters; a guide makes its own on its first run."""
    if isinstance(guide, nn.Module):
        with torch.no_grad(), pyro.poutine.block():
            guide(*_arguments(seen[0]))
    modules: list[nn.Module] = [model, guide] if isinstance(guide, nn.Module) else [model]
    found = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not found:
        raise ValueError("model has no free parameters to fit, expected at least one.")
    return found


def _ascend(elbo: Any, model: CloneModel, guide: Any, seen: list[Term]) -> float:
    """Add the gradients of minus the ELBO of all terms and return their weighted sum."""
    total = 0.0
    for term in seen:
        loss = elbo.differentiable_loss(model, guide or _empty_guide, *_arguments(term))
        if not isinstance(loss, Tensor) or not torch.isfinite(loss):
            return -math.inf
        (term.weight * loss).backward()
        total -= term.weight * float(loss.detach())
    return total


def _regularisers(
    model: CloneModel,
    pseudocount: float,
    entropy_weight: float,
    auxiliary_loss: Callable[[CloneModel], Tensor] | None,
) -> Tensor | float:
    """What is added to the ELBO."""
    total: Tensor | float = log_prior(model, pseudocount)
    if entropy_weight:
        total = total + entropy_weight * model.transition.entropy()
    if auxiliary_loss is not None:
        total = total - auxiliary_loss(model)
    return total


def _stalled(objectives: list[float], patience: int, gain: float) -> bool:
    if len(objectives) <= patience:
        return False
    return max(objectives[-patience:]) - max(objectives[:-patience]) < gain
