"""Hamiltonian Monte Carlo on the collapsed posterior of small models, with Pyro's NUTS.

States are summed out, so the posterior is one of continuous parameters: rows in the free
coordinates of :mod:`chmm_pyro.simplex`, hyperparameters in those of their own supports.  Clones of
a symbol are exchangeable, so the posterior has a mode for every labelling; a chain stays near one.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import NUTS
from pyro.infer.autoguide import init_to_value
from torch import Tensor
from torch.distributions import biject_to
from tqdm.auto import tqdm

from ..models.bayesian import BayesianCHMM
from ..sequences import SequenceBatch
from .chains import (
    Start,
    chain_result,
    check_sampler,
    check_start,
    describe,
    distribution_of,
    log_prob_of,
    starting_values,
)
from .result import FitResult
from .scope import Stopwatch, pyro_scope, single_thread, until_interrupted

__all__ = ["NutsCost", "fit_nuts", "nuts_cost"]


class NutsCost(NamedTuple):
    """What a run is expected to take.

    Attributes:
        num_parameters: free coordinates.
        seconds_per_gradient: measured on this machine.
        gradients_per_draw: of a typical trajectory, a rule of thumb.
        seconds: of all chains one after the other, warm-up included.
    """

    num_parameters: int
    seconds_per_gradient: float
    gradients_per_draw: float
    seconds: float


class _Options(NamedTuple):
    """What a chain is told."""

    num_iters: int
    num_warmup: int
    target_accept: float
    max_tree_depth: int
    full_mass: bool
    seed: int
    progress: bool


class _Chain(NamedTuple):
    """What a chain gives back: ``(D, ...)`` values of the sites, and how it went."""

    values: dict[str, Tensor]
    seconds: list[float]
    num_warmup: int
    interrupted: bool
    diagnostics: dict[str, Any]


def nuts_cost(
    model: BayesianCHMM,
    batch: SequenceBatch,
    *,
    num_iters: int = 500,
    num_warmup: int = 500,
    num_chains: int = 4,
    max_tree_depth: int = 10,
) -> NutsCost:
    """Estimate the cost of :func:`fit_nuts` from a few gradients.

    Trajectories grow with the fourth root of the number of parameters (Beskos et al. 2013); the
    factor, 5, was measured on posteriors of a few hundred steps.  Estimates are good to a factor
    of about three.
    """
    with pyro_scope(0), single_thread(), pyro.validation_enabled(False):
        values = model.sample_prior()
        priors = [model.prior(site, values) for site in model.sites]
        free = [
            biject_to(prior.support).inv(values[site]).numel()
            for site, prior in zip(model.sites, priors, strict=True)
        ]
        kernel = _kernel(model, values, 0.8, max_tree_depth, full_mass=False)
        kernel.setup(1, batch)
        start = {k: v.clone().requires_grad_() for k, v in kernel.initial_params.items()}
        times = []
        for _ in range(4):
            watch = Stopwatch()
            torch.autograd.grad(kernel.potential_fn(start), list(start.values()))
            times.append(watch())
    size, gradient = sum(free), float(np.median(times[1:]))
    per_draw = min(5 * size**0.25, 2.0**max_tree_depth)
    total = gradient * per_draw * (num_iters + num_warmup) * num_chains
    return NutsCost(size, gradient, per_draw, total)


def fit_nuts(
    model: BayesianCHMM,
    batch: SequenceBatch,
    *,
    num_iters: int = 500,
    num_warmup: int = 500,
    num_chains: int = 4,
    num_workers: int = 1,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    full_mass: bool = False,
    start: Start = None,
    max_parameters: int = 2_000,
    max_hours: float = 12.0,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Draw from the posterior of a small model.

    Args:
        model: priors, collapsed or ``enumerated``; unchanged.
        batch: one or many sequences.
        num_iters: draws of each chain.
        num_warmup: adaptation steps of each chain before them.
        num_chains: independent chains.
        num_workers: chains run in so many spawned processes; 1 runs them here, one by one.  A
            script that asks for more needs the usual ``if __name__ == "__main__":``.
        target_accept: acceptance probability that the step size is adapted to.
        max_tree_depth: trajectories have at most ``2 ** max_tree_depth`` steps.
        full_mass: adapt a dense mass matrix instead of a diagonal one.
        start: see :func:`~chmm_pyro.inference.gibbs.fit_gibbs`.
        max_parameters: larger models are refused; raise it to insist.
        max_hours: runs estimated to take longer are refused (see :func:`nuts_cost`).
        seed: of everything random.
        progress: show a bar for each chain.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult` with ``draws`` as in
        :func:`~chmm_pyro.inference.gibbs.fit_gibbs` plus ``diverging`` ``(chain, draw)``; the
        histories are means over chains of each draw, ``settings`` report ``step_sizes``,
        ``acceptance`` and the ``estimated_cost``.

    Raises:
        ValueError: options out of range, a model beyond the range of the method, or a start under
            which the data are impossible.

    Example:
        >>> from chmm_pyro import CloneStructure, SequenceBatch
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 1, 1])
        >>> model = BayesianCHMM(CloneStructure([2, 1]), num_actions=1, concentration=1.0)
        >>> result = fit_nuts(
        ...     model, batch, num_iters=10, num_warmup=10, num_chains=2, progress=False
        ... )
        >>> result.draws["transition"].shape
        torch.Size([2, 10, 1, 3, 3])
    """
    check_sampler(model, num_iters, num_warmup, num_chains)
    _check(num_workers, target_accept, max_tree_depth)
    cost = nuts_cost(
        model,
        batch,
        num_iters=num_iters,
        num_warmup=num_warmup,
        num_chains=num_chains,
        max_tree_depth=max_tree_depth,
    )
    _refuse_beyond_range(cost, max_parameters, max_hours)
    watch = Stopwatch()
    with pyro_scope(seed):
        starts = starting_values(model, start, num_chains)
        check_start(log_prob_of(distribution_of(model, batch, starts), batch))
    seeds = np.random.SeedSequence(seed).generate_state(num_chains).tolist()
    options = [
        _Options(num_iters, num_warmup, target_accept, max_tree_depth, full_mass, one, progress)
        for one in seeds
    ]
    values = [{site: value[n] for site, value in starts.items()} for n in range(num_chains)]
    chains = _complete(_run(model, batch, values, options, num_workers))
    stacked = {site: torch.stack([chain.values[site] for chain in chains]) for site in model.sites}
    shape = (len(chains), len(chains[0].seconds))
    with pyro_scope(seed):
        flat = describe(model, batch, {k: v.flatten(0, 1) for k, v in stacked.items()})
    draws = {name: value.unflatten(0, shape) for name, value in flat.items()}
    diverging = torch.zeros(shape, dtype=torch.bool)
    for n, chain in enumerate(chains):
        diverging[n, [i for i in chain.diagnostics["divergences"] if i < shape[1]]] = True
    draws["diverging"] = diverging
    histories = {
        "objective": draws["log_joint"].mean(0).tolist(),
        "log_prob": draws["log_prob"].mean(0).tolist(),
        "seconds": chains[0].seconds,
    }
    settings: dict[str, Any] = {
        "method": "nuts",
        **options[0]._replace(seed=seed)._asdict(),
        "num_chains": num_chains,
        "num_workers": num_workers,
        "action_model": model.action_model,
        "step_sizes": [chain.diagnostics["step_size"] for chain in chains],
        "acceptance": [chain.diagnostics["acceptance"] for chain in chains],
        "estimated_cost": cost._asdict(),
    }
    del settings["progress"]
    return chain_result(
        model,
        batch,
        draws,
        histories=histories,
        interrupted=any(chain.interrupted for chain in chains) or len(chains) < num_chains,
        num_iters=shape[1],
        num_warmup=chains[0].num_warmup,
        wall_time=watch(),
        settings=settings,
    )


def _kernel(
    model: BayesianCHMM,
    values: dict[str, Tensor],
    target_accept: float,
    max_tree_depth: int,
    *,
    full_mass: bool,
) -> NUTS:
    return NUTS(
        model,
        target_accept_prob=target_accept,
        max_tree_depth=max_tree_depth,
        full_mass=full_mass,
        max_plate_nesting=1,
        init_strategy=init_to_value(values=values),
    )


def _run_chain(
    model: BayesianCHMM,
    batch: SequenceBatch,
    values: dict[str, Tensor],
    options: _Options,
    number: int,
) -> _Chain:
    """One chain, in this process or another."""
    watch = Stopwatch()
    drawn: list[dict[str, Tensor]] = []
    seconds: list[float] = []
    total = options.num_warmup + options.num_iters
    done = 0
    with (
        pyro_scope(options.seed),
        single_thread(),
        pyro.validation_enabled(False),
        until_interrupted() as stop,
        tqdm(total=total, desc=f"NUTS chain {number}", disable=not options.progress) as bar,
    ):
        kernel = _kernel(
            model,
            values,
            options.target_accept,
            options.max_tree_depth,
            full_mass=options.full_mass,
        )
        kernel.setup(options.num_warmup, batch)
        free = kernel.initial_params
        while done < total and not (stop.is_set() and drawn):
            free = kernel.sample(free)
            done += 1
            # Interrupted before anything was kept: keep the state just reached.
            if done > options.num_warmup or stop.is_set():
                drawn.append({k: kernel.transforms[k].inv(z.detach()) for k, z in free.items()})
                seconds.append(watch())
            bar.update()
        found = kernel.diagnostics()
        diagnostics = {
            "divergences": list(found["divergences"]),
            "acceptance": float(found["acceptance rate"]),
            "step_size": float(kernel.step_size),
        }
        kernel.cleanup()
    stacked = {site: torch.stack([one[site] for one in drawn]) for site in model.sites}
    warmed = min(done, options.num_warmup)
    return _Chain(stacked, seconds, warmed, stop.is_set(), diagnostics)


def _run(
    model: BayesianCHMM,
    batch: SequenceBatch,
    values: list[dict[str, Tensor]],
    options: list[_Options],
    num_workers: int,
) -> Iterator[_Chain]:
    """All chains, until one is interrupted."""
    arguments = list(zip(values, options, range(len(values)), strict=True))
    if num_workers == 1:
        for argument in arguments:
            chain = _run_chain(model, batch, *argument)
            yield chain
            if chain.interrupted:
                return
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, mp_context=spawn) as pool:
            yield from [
                future.result()
                for future in [pool.submit(_run_chain, model, batch, *one) for one in arguments]
            ]


def _complete(chains: Iterator[_Chain]) -> list[_Chain]:
    """Chains of equal length: the whole ones, or one that was interrupted if there are none."""
    found = list(chains)
    whole = [chain for chain in found if not chain.interrupted]
    return whole or found[:1]


def _check(num_workers: int, target_accept: float, max_tree_depth: int) -> None:
    for name, value in (("num_workers", num_workers), ("max_tree_depth", max_tree_depth)):
        if value < 1:
            raise ValueError(f"{name} = {value}, expected at least 1.")
    if not 0 < target_accept < 1:
        raise ValueError(f"target_accept = {target_accept}, expected between 0 and 1.")


def _refuse_beyond_range(cost: NutsCost, max_parameters: int, max_hours: float) -> None:
    hours = cost.seconds / 3600
    if cost.num_parameters > max_parameters:
        raise ValueError(
            f"the posterior has {cost.num_parameters:,} free parameters, expected at most "
            f"max_parameters = {max_parameters:,}: NUTS would take about {hours:.2g} hours, and "
            "its chains would each stay with one labelling of the clones; use fit_gibbs or "
            "fit_vb, or raise max_parameters."
        )
    if not math.isfinite(hours) or hours > max_hours:
        raise ValueError(
            f"the run would take about {hours:.2g} hours ({cost.seconds_per_gradient * 1e3:.1f} "
            f"ms a gradient), expected at most max_hours = {max_hours:g}: use fewer draws, "
            "shorter data or fit_gibbs, or raise max_hours."
        )
