"""What each method says about one small posterior, beside importance sampling from the prior.

Two symbols of two clones, two actions, 30 steps drawn from the prior.  Quantities do not depend on
how clones are numbered.  Samplers must agree with importance sampling within Monte-Carlo error;
variational posteriors need not, and their bias is what the table is for.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from invariants import Array, effective_size, invariants, invariants_of_draws
from machine import describe
from tqdm import tqdm

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.inference.nuts import fit_nuts
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.inference.vb import fit_vb
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.sequences import SequenceBatch

__all__ = ["MODELS", "Estimate", "by_chains", "by_importance", "main", "make", "walk"]

NUM_ACTIONS, NUM_STEPS = 2, 30
CLONES = CloneStructure([2, 2])
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"concentration": 0.5},
    "sticky": {"concentration": 0.5, "sticky": 0.5, "learn_initial": True},
    "hierarchical": {"concentration": 1.0, "hyperprior": (2.0, 2.0)},
    "sticks": {"concentration": 0.7, "stick_concentration": 1.0, "learn_initial": True},
}
_GUIDES = ("Dirichlet", "AutoNormal", "AutoLowRankMultivariateNormal")


@dataclass(frozen=True)
class Estimate:
    """A posterior mean.

    Attributes:
        mean: the estimate.
        deviation: standard deviation of the posterior.
        error: Monte-Carlo standard error of ``mean``.
        size: effective number of independent draws.
    """

    mean: float
    deviation: float
    error: float
    size: float


def make(name: str) -> BayesianCHMM:
    """One of :data:`MODELS`."""
    return BayesianCHMM(CLONES, NUM_ACTIONS, **MODELS[name])


def walk(model: BayesianCHMM, seed: int, num_steps: int = NUM_STEPS) -> SequenceBatch:
    """Symbols drawn from the prior along random actions."""
    actions = np.random.default_rng(seed).integers(NUM_ACTIONS, size=num_steps - 1)
    blank = SequenceBatch.from_arrays(np.zeros(num_steps, int), actions, num_actions=NUM_ACTIONS)
    obs = model.prior_predictive(blank, 1, seed=seed).obs[0]
    return SequenceBatch.from_arrays(obs, actions, num_actions=NUM_ACTIONS)


def by_importance(model: BayesianCHMM, batch: SequenceBatch, num_draws: int) -> dict[str, Estimate]:
    """Each quantity, proposing from the prior: parameters in batches, one pass for each."""
    chunk = min(num_draws, 20_000)
    parts = [invariants(model, batch, model.sample_prior(chunk)) for _ in range(num_draws // chunk)]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    weights = np.exp(found["log_prob"] - found["log_prob"].max())
    weights /= weights.sum()
    size = float(1 / (weights**2).sum())
    summary = {}
    for name, values in found.items():
        mean = float(weights @ values)
        squares = (values - mean) ** 2
        error = math.sqrt(float(weights**2 @ squares))
        summary[name] = Estimate(mean, math.sqrt(float(weights @ squares)), error, size)
    return summary


def by_chains(model: BayesianCHMM, batch: SequenceBatch, draws: Any) -> dict[str, Estimate]:
    """Each quantity from the draws of a fit."""

    def estimate(values: Array) -> Estimate:
        size = effective_size(values)
        deviation = float(values.std())
        return Estimate(float(values.mean()), deviation, deviation / math.sqrt(size), size)

    found = invariants_of_draws(model, batch, draws)
    return {name: estimate(values) for name, values in found.items()}


def _methods(name: str, scale: float) -> dict[str, Callable[..., Any]]:
    """The fits that know the model; ``scale`` shortens them."""

    def times(number: int) -> int:
        return max(2, round(scale * number))

    quiet = {"progress": False, "seed": 3}
    methods: dict[str, Callable[..., Any]] = {
        "Gibbs": lambda model, batch: fit_gibbs(
            model, batch, num_iters=times(2000), num_warmup=times(100), num_chains=8, **quiet
        ),
        "NUTS": lambda model, batch: fit_nuts(
            model, batch, num_iters=times(400), num_warmup=times(200), num_chains=4, **quiet
        ),
    }
    if name in ("plain", "sticky"):
        methods["VB"] = lambda model, batch: fit_vb(
            model, batch, num_iters=times(200), num_draws=times(2000), **quiet
        )
    for guide in _GUIDES:
        methods[f"SVI {guide}"] = lambda model, batch, guide=guide: fit_svi(
            model,
            batch,
            guide=guide,
            num_iters=times(1500),
            learning_rate=0.02,
            num_draws=times(1000),
            **quiet,
        )
    return methods


def compare(name: str, num_importance: int, scale: float = 1.0) -> list[dict[str, Any]]:
    """One row for each method and quantity of one model."""
    model = make(name)
    batch = walk(model, seed=2)
    torch.manual_seed(1)
    exact = by_importance(model, batch, num_importance)
    rows = []

    def add(method: str, found: dict[str, Estimate], seconds: float | None) -> None:
        for quantity, truth in exact.items():
            one = found[quantity]
            noise = math.hypot(one.error, truth.error) if method != "importance" else truth.error
            row = {
                "model": name,
                "method": method,
                "quantity": quantity,
                "mean": one.mean,
                "deviation": one.deviation,
                "error": one.error,
                "effective_size": one.size,
                "z": (one.mean - truth.mean) / noise,
                "bias_in_deviations": (one.mean - truth.mean) / truth.deviation,
                "deviation_ratio": one.deviation / truth.deviation,
                "seconds": seconds,
            }
            rows.append(row)

    add("importance", exact, None)
    for method, fit in tqdm(_methods(name, scale).items(), desc=name, leave=False):
        result = fit(model, batch)
        add(method, by_chains(model, batch, result.draws), result.wall_time)
    return rows


def _summary(table: pd.DataFrame) -> str:
    def cell(row: pd.Series) -> str:
        mean = f"{row['mean']:.3f}+-{row['error']:.3f}"
        return f"{mean} (z {row['z']:+.1f}, x{row['deviation_ratio']:.2f})"

    shown = table.assign(cell=table.apply(cell, axis=1))
    wide = shown.pivot_table("cell", ["model", "method"], "quantity", "first", sort=False)
    return wide.fillna("-").to_string()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["plain", "hierarchical"], choices=MODELS)
    parser.add_argument("--importance", type=int, default=1_000_000, help="prior draws")
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths of all fits")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    before = describe()
    rows = [row for n in options.models for row in compare(n, options.importance, options.scale)]
    table = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "posterior_agreement.csv", index=False, float_format="%.5g")
    sizes = table[table["method"] == "importance"].groupby("model")["effective_size"].first()
    summary = (
        f"Effective size of importance sampling: {sizes.round().to_dict()}\n\n"
        "Posterior mean +- Monte-Carlo error (z against importance sampling, posterior standard\n"
        f"deviation as a multiple of the exact one):\n\n{_summary(table)}\n"
    )
    (options.out / "posterior_agreement.txt").write_text(f"{before}\n{summary}", encoding="utf-8")
    print(summary)
    print(f"written to {options.out / 'posterior_agreement.csv'}", file=sys.stderr)


if __name__ == "__main__":
    main()
