"""Effective draws a second: Gibbs beside NUTS, and NUTS with states summed out beside written out.

Times are those of the processor (one thread), so that a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from invariants import effective_size, invariants_of_draws
from machine import describe
from posterior_agreement import NUM_ACTIONS, walk
from tqdm import tqdm

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.inference.nuts import fit_nuts
from chmm_pyro.models.bayesian import BayesianCHMM

__all__ = ["CASES", "compare", "main"]

# Clones of each symbol, steps, and which samplers take part.
CASES: dict[str, tuple[list[int], int, tuple[str, ...]]] = {
    "2x2, 5 steps": ([2, 2], 5, ("Gibbs", "NUTS", "NUTS, enumerated")),
    "2x2, 10 steps": ([2, 2], 10, ("Gibbs", "NUTS", "NUTS, enumerated")),
    "2x2, 30 steps": ([2, 2], 30, ("Gibbs", "NUTS")),
    "3x4, 300 steps": ([4, 4, 4], 300, ("Gibbs", "NUTS")),
}


def _fit(sampler: str, clones: CloneStructure, batch: Any, scale: float) -> Any:
    model = BayesianCHMM(clones, NUM_ACTIONS, 0.5, enumerated=sampler.endswith("enumerated"))
    shared = {"num_chains": 2, "progress": False, "seed": 1}
    if sampler == "Gibbs":
        draws, warmup = round(1500 * scale), round(100 * scale)
        return fit_gibbs(model, batch, num_iters=draws, num_warmup=warmup, **shared)
    draws, warmup = round(100 * scale), round(60 * scale)
    return fit_nuts(model, batch, num_iters=draws, num_warmup=warmup, **shared)


def compare(case: str, scale: float = 1.0) -> list[dict[str, Any]]:
    """One row for each sampler on one case; ``scale`` shortens the chains."""
    num_clones, num_steps, samplers = CASES[case]
    clones = CloneStructure(num_clones)
    model = BayesianCHMM(clones, NUM_ACTIONS, 0.5)
    batch = walk(model, 2, num_steps)
    rows = []
    for sampler in tqdm(samplers, desc=case, leave=False):
        began = time.process_time()
        fit = _fit(sampler, clones, batch, scale)
        seconds = time.process_time() - began
        found = invariants_of_draws(model, batch, fit.draws)
        sizes = {name: effective_size(values) for name, values in found.items()}
        cost = fit.settings.get("estimated_cost", {})
        row = {
            "case": case,
            "sampler": sampler,
            "parameters": int(np.prod(model.transition_prior.base.shape[:2]))
            * (clones.num_states - 1),
            "draws": found["log_prob"].size,
            "cpu_seconds": seconds,
            "wall_seconds": fit.wall_time,
            "ms_per_gradient": 1e3 * cost["seconds_per_gradient"] if cost else None,
            **{f"effective_{name}": size for name, size in sizes.items()},
            **{f"{name}_per_cpu_second": size / seconds for name, size in sizes.items()},
        }
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths of all chains")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    before = describe()
    compare("2x2, 5 steps", 0.05)  # loads the compiled code
    table = pd.DataFrame([row for case in options.cases for row in compare(case, options.scale)])
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "sampler_efficiency.csv", index=False, float_format="%.4g")
    shown = ["case", "sampler", "parameters", "draws", "cpu_seconds", "ms_per_gradient"]
    shown += [name for name in table if name.endswith("_per_cpu_second")]
    summary = table[shown].to_string(index=False, float_format=lambda x: f"{x:.3g}", na_rep="-")
    text = f"{before}\nEffective draws of each quantity a second of processor time:\n\n{summary}\n"
    (options.out / "sampler_efficiency.txt").write_text(text, encoding="utf-8")
    print(summary)
    print(f"written to {options.out / 'sampler_efficiency.csv'}", file=sys.stderr)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are small
    main()
