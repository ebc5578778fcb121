"""How many clones do little data support? LOO and held-out likelihood against the budget.

A short walk in the published 6 x 8 room (48 places, 10 to 16 of each symbol) is fitted by Gibbs
sampling with several numbers of clones for each symbol, and once with a large budget and a
stick-breaking prior, whose posterior says how many are used.
``python benchmarks/number_of_clones.py --help``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from machine import describe
from tqdm import tqdm

from chmm_pyro import CloneStructure, SequenceBatch
from chmm_pyro.environments import published_room
from chmm_pyro.inference import FitResult, fit_em, fit_gibbs
from chmm_pyro.models import BayesianCHMM, PointCHMM
from chmm_pyro.posterior import to_inference_data
from chmm_pyro.posterior.maps import map_posterior
from chmm_pyro.posterior.plots import plot_clone_budgets
from chmm_pyro.posterior.summaries import log_predictive

RESULTS = Path(__file__).parent / "results"
ROOM = published_room("rectangular_room")
TOTAL_CONCENTRATION = 1.0  # of a row, whatever the budget


def by_usage(model: PointCHMM, batch: SequenceBatch) -> PointCHMM:
    """The clones of every symbol in the order of their use, as stick-breaking priors expect."""
    counts = model.distribution(batch).smooth(batch.obs).dense().sum(0)
    order = torch.cat(
        [part.argsort(descending=True) for part in counts.split(model.clones.num_clones)]
    )
    starts = torch.as_tensor(model.clones.offsets[model.clones.symbol_of_state])
    order = order + starts
    table = model.transition.table().values.exp()
    return PointCHMM.from_counts(model.clones, table[:, order][:, :, order].detach())


def sample(
    batch: SequenceBatch, budget: int, options: argparse.Namespace, **prior: Any
) -> FitResult:
    """Chains that start from EM fits of different seeds: from the prior they would not arrive."""
    clones = CloneStructure([budget] * ROOM.num_symbols)
    pseudocount = 4e-7 * batch.num_steps
    starts = []
    for seed in range(options.chains):
        point = PointCHMM(clones, 4, seed=seed, dtype=torch.float64)
        fit = fit_em(
            point, batch, num_iters=options.em_iters, pseudocount=pseudocount, progress=False
        )
        starts.append(by_usage(fit.model, batch))
    model = BayesianCHMM(clones, 4, TOTAL_CONCENTRATION / clones.num_states, **prior)
    return fit_gibbs(
        model,
        batch,
        num_iters=options.draws,
        num_warmup=options.warmup,
        num_chains=options.chains,
        start=starts,
        progress=False,
    )


def run(
    name: str, batch: SequenceBatch, budget: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One fit and what it predicts."""
    began = time.perf_counter()
    prior = {"stick_concentration": options.sticks} if name == "sticks" else {}
    fit = sample(batch, budget, options, **prior)
    seconds = time.perf_counter() - began
    idata = to_inference_data(fit, groups=["posterior", "log_likelihood"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pareto k is reported below
        loo = az.loo(idata, var_name="obs", pointwise=True)
    held = ROOM.random_walk(options.held_out, seed=options.seed + 1).batch()
    used = fit.draws["num_used"].sum(-1).double().flatten()
    most = fit.draws["num_used"].amax(-1).double().flatten()
    places = map_posterior(fit, num_draws=5).num_places
    bits = np.log(2)
    k = np.asarray(loo.pareto_k)
    return {
        "prior": name,
        "num_steps": batch.num_steps,
        "budget": budget,
        "loo_bits": -float(loo.iloc[0]) / bits / (batch.num_steps - 1),
        "loo_bits_se": float(loo.iloc[1]) / bits / (batch.num_steps - 1),
        "bad_pareto_k": float((k > 0.7).mean()),
        "held_out_bits": -float(log_predictive(fit, held).sum()) / bits / held.num_observed,
        "train_bits": -float(fit.draws["log_prob"].mean()) / bits / batch.num_observed,
        "used_mean": float(used.mean()),
        "used_5": float(used.quantile(0.05)),
        "used_95": float(used.quantile(0.95)),
        "most_used_5": float(most.quantile(0.05)),
        "most_used_95": float(most.quantile(0.95)),
        "places_median": float(np.median(places)),
        "rhat_log_prob": float(az.rhat(fit.draws["log_prob"].numpy())),
        "seconds": seconds,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=[1000, 2000])
    parser.add_argument("--budgets", nargs="+", type=int, default=[6, 9, 12, 15, 20, 30])
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--em-iters", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--sticks", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (name, steps, budget)
        for steps in options.steps
        for name, budget in [
            *(("fixed", budget) for budget in options.budgets),
            ("sticks", max(options.budgets)),
        ]
    ]
    rows = []
    for name, steps, budget in tqdm(jobs, desc="fits"):
        walk = ROOM.random_walk(steps, seed=options.seed).batch()
        rows.append(run(name, walk, budget, options))
        pd.DataFrame(rows).to_csv(options.out / "number_of_clones.csv", index=False)
    table = pd.DataFrame(rows)
    sizes = table["num_steps"].unique()
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(5 * len(sizes), 3.6), squeeze=False, layout="constrained"
    )
    for ax, size in zip(axes[0], sizes, strict=True):
        fixed = table[(table["num_steps"] == size) & (table["prior"] == "fixed")]
        sticks = table[(table["num_steps"] == size) & (table["prior"] == "sticks")].iloc[0]
        plot_clone_budgets(
            fixed["budget"],
            fixed["loo_bits"],
            ax,
            errors=fixed["loo_bits_se"],
            held_out=fixed["held_out_bits"],
            used=(sticks["most_used_5"], sticks["most_used_95"]),
            truth=int(np.bincount(ROOM.symbols).max()),
        )
        ax.set_title(f"{size:,} steps")
    figure.savefig(options.out / "number_of_clones.png", dpi=110)
    plt.close(figure)
    text = table.round(4).to_string(index=False) + "\n\n" + describe()
    (options.out / "number_of_clones.txt").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
