"""What each part of ``fit_map`` is for: the recipe with one part left out, on the same walks.

Every fit has one start only, so that restarts do not hide what a part does.  Runs that are in
``results/map_ablations.csv`` are skipped; ``results/map_ablations.txt`` has the table.
``python benchmarks/map_ablations.py --help``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import map_recovery
import numpy as np
import pandas as pd
from machine import describe
from map_recovery import STEPS, Walks
from numpy.typing import NDArray
from tqdm import tqdm

from chmm_pyro.inference import fit_map, map_fit
from chmm_pyro.inference.consolidate import decoded_counts
from chmm_pyro.inference.merging import Merging, description_length
from chmm_pyro.inference.result import FitResult

RESULTS = Path(__file__).parent / "results" / "map_ablations.csv"
WORLDS = ["rectangular_room", "empty_room", "stitched_rooms", "ring_6x6"]


def unmerged(counts: NDArray[np.float64], symbols: NDArray[np.int64]) -> Merging:
    """Every decoded state is a place."""
    length = description_length(counts)
    return Merging(np.arange(len(symbols)), counts, symbols, length, length, 0)


def equal_budget(search: Any, num_clones: int) -> NDArray[np.int64]:
    """The same number of clones for every symbol."""
    return np.full(search.num_symbols, -(-num_clones // search.num_symbols))


# Options of fit_map, and what stands in the place of a part of it.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the recipe": ({}, {}),
    "half as many clones": ({"num_clones": 80}, {}),
    "all the data, no samples": ({}, {"_SAMPLE": 10**9}),
    "equally many clones for each symbol": ({}, {"_Search.budget": equal_budget}),
    "pseudocount x 4": ({"pseudocount": 4.0}, {}),
    "pseudocount 0": ({"pseudocount": 0.0}, {}),
    "plain EM steps (1, not 1.9)": ({}, {"_STEP": 1.0}),
    "one long round (200 updates)": ({"num_iters": 200, "num_rounds": 1}, {}),
    "no split of passages": ({}, {"decoded_counts": partial(decoded_counts, split=False)}),
    "no repair": ({"num_repairs": 0}, {}),
    "no merging": ({}, {"merge_states": unmerged}),
}


def fit(variant: str, walks: Walks, world: str, seed: int) -> FitResult:
    """One start of the recipe without one of its parts."""
    options, parts = VARIANTS[variant]
    if options.get("pseudocount"):  # in units of the recipe's own
        scale = options["pseudocount"] * map_fit._PSEUDOCOUNT_PER_STEP
        options = {**options, "pseudocount": scale * walks.batch.num_steps}
    with ExitStack() as changed:
        for name, value in parts.items():
            owner, _, attribute = name.rpartition(".")
            target = getattr(map_fit, owner) if owner else map_fit
            changed.enter_context(mock.patch.object(target, attribute, value))
        return fit_map(walks.batch, num_starts=1, seed=seed, progress=False, **options)


METHODS: dict[str, Callable[[Walks, str, int], FitResult]] = {
    name: partial(fit, name) for name in VARIANTS
}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """For each variant and world: exact maps, states found, processor seconds."""
    table = map_recovery.summary(rows)
    table["found"] = [
        f"{exact}/{runs}, {states:g} states, {seconds:.1f} s"
        for exact, runs, states, seconds in zip(
            table["exact"], table["runs"], table["states"], table["cpu_seconds"], strict=True
        )
    ]
    table["walk"] = table["world"] + table["num_steps"].map(", {:,} steps".format)
    return table.pivot_table("found", "method", "walk", aggfunc="first", sort=False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--worlds", nargs="+", default=WORLDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of the published sizes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(options.out).to_dict("records") if options.out.exists() else []
    known = {(row["method"], row["world"], row["seed"]) for row in rows}
    todo = [
        (variant, world, seed)
        for seed in options.seeds
        for world in options.worlds
        for variant in options.variants
        if (variant, world, seed) not in known
    ]
    with mock.patch.dict(map_recovery.METHODS, METHODS):
        for variant, world, seed in tqdm(todo, desc="runs"):
            rows.append(map_recovery.run(variant, world, seed, options.steps or STEPS[world]))
            pd.DataFrame(rows).to_csv(options.out, index=False)
    text = (
        f"{summary(pd.DataFrame(rows)).to_string()}\n\n"
        "exact maps of all runs, states of the map and processor seconds (medians); one start\n\n"
        f"{describe()}\n"
    )
    options.out.with_suffix(".txt").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
