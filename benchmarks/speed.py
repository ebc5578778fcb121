"""Time every implementation on every instance, after checking that they compute the same thing.

Samples are interleaved (A B C A B C ...), so that a slow minute of the machine falls on everyone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from contest import Implementation, Run
from machine import describe
from ours import OURS
from peer_jax import JAX
from peer_no_actions import NO_ACTIONS
from peer_published import PUBLISHED
from peer_torch import TORCH
from sizes import INSTANCES, PSEUDOCOUNT, Instance
from tqdm import tqdm

from chmm_pyro.models.point import PointCHMM

__all__ = ["IMPLEMENTATIONS", "compare", "main"]

IMPLEMENTATIONS: dict[str, Implementation] = {
    each.name: each for each in (*OURS, *PUBLISHED, *JAX, *TORCH, *NO_ACTIONS)
}

_SAMPLE_SECONDS = 0.02  # short work is repeated within a sample until it takes about this long
_PAUSE = 0.1  # seconds: threads of the one before may still spin, waiting for more to do
_SLOW_SECONDS = 3.0  # work this slow is sampled three times only
_EM_UPDATES = 3  # equal likelihoods after updates show that the updates are equal


class _Reference(NamedTuple):
    """What every implementation must find, in float64.

    Attributes:
        log_probs: before each of the first EM updates.
        gradient: ``(A, S, S)`` with respect to softmax logits.
    """

    log_probs: list[float]
    gradient: np.ndarray


def _reference(instance: Instance) -> _Reference:
    table = torch.from_numpy(instance.table).double()
    model = PointCHMM.from_counts(instance.clones, table)
    log_probs = []
    (-model.distribution(instance.batch).log_prob(instance.batch.obs).sum()).backward()
    logits = model.transition.logits
    assert logits.grad is not None
    gradient = logits.grad.numpy().copy()
    with torch.no_grad():
        for _ in range(_EM_UPDATES):
            hmm = model.distribution(instance.batch)
            log_z, _, counts = hmm.expected_counts(instance.batch.obs)
            log_probs.append(float(log_z.sum()))
            model.transition.maximise(counts, PSEUDOCOUNT)
    return _Reference(log_probs, gradient)


def _check(implementation: Implementation, run: Run, reference: _Reference) -> float:
    """Assert equality with the reference; returns the seconds of the first call."""
    where = implementation.name
    began = time.perf_counter()
    found = [run.step()]
    first_call = time.perf_counter() - began
    if implementation.what == "em":
        found += [run.step() for _ in range(_EM_UPDATES - 1)]
    np.testing.assert_allclose(found, reference.log_probs[: len(found)], rtol=2e-5, err_msg=where)
    if run.gradient is not None:
        scale = np.abs(reference.gradient).max()
        gap = np.abs(run.gradient() - reference.gradient).max() / scale
        assert gap < 1e-3, f"{where}: gradient is off by {gap:.2e} of its largest entry"
    return first_call


class _Sample(NamedTuple):
    """Milliseconds of one update: on the clock, and of all cores together."""

    wall: float
    cpu: float


def _sample(run: Run, calls: int) -> _Sample:
    run.reset()
    time.sleep(_PAUSE)
    run.step()  # wakes what the pause has put to sleep
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        run.step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    per_update = 1e3 / (calls * run.updates)
    return _Sample(wall * per_update, cpu * per_update)


def compare(
    instance: Instance, implementations: Sequence[Implementation], repeats: int
) -> list[dict[str, Any]]:
    """One row for each implementation: checked, then timed in turns.

    Args:
        instance: the data.
        implementations: who takes part.
        repeats: samples of each.
    """
    rows, runs = [], []
    references: dict[bool, _Reference] = {}
    for implementation in tqdm(implementations, desc=f"{instance.name}: checking", leave=False):
        row: dict[str, Any] = {
            "instance": instance.name,
            "implementation": implementation.name,
            "what": implementation.what,
            "actions": implementation.actions,
            "precision": "float64" if implementation.float64 else "float32",
            "threads": implementation.threads,
        }
        rows.append(row)
        row["skipped"] = implementation.reason_to_skip(instance)
        if row["skipped"]:
            tqdm.write(f"{instance.name}: {implementation.name} skipped: {row['skipped']}")
            continue
        solved = replace(instance, with_actions=implementation.actions)
        if implementation.actions not in references:
            references[implementation.actions] = _reference(solved)
        reference = references[implementation.actions]
        run = implementation.prepare(solved)
        row["log_prob"] = reference.log_probs[0]
        row["first_call_s"] = _check(implementation, run, reference)
        once = _sample(run, 1).wall * run.updates / 1e3
        row["calls"] = max(1, round(_SAMPLE_SECONDS / once))
        row["samples"] = min(repeats, 3) if once > _SLOW_SECONDS else repeats
        runs.append((row, run, []))
    total = sum(row["samples"] for row, _, _ in runs)
    with tqdm(total=total, desc=f"{instance.name}: timing", leave=False) as bar:
        for turn in range(repeats):
            for row, run, samples in runs:
                if turn < row["samples"]:
                    bar.set_postfix_str(row["implementation"], refresh=False)
                    samples.append(_sample(run, row["calls"]))
                    bar.update()
    for row, _, samples in runs:
        times = np.array([sample.wall for sample in samples])
        row["median_ms"] = float(np.median(times))
        row["min_ms"], row["max_ms"] = float(times.min()), float(times.max())
        row["q25_ms"], row["q75_ms"] = np.quantile(times, [0.25, 0.75]).tolist()
        row["cpu_ms"] = float(np.median([sample.cpu for sample in samples]))
    return rows


def _summary(table: pd.DataFrame) -> str:
    """Medians, one row an implementation, one column an instance."""
    medians = table.pivot(index="implementation", columns="instance", values="median_ms")
    order = list(dict.fromkeys(table["implementation"]))
    medians = medians.loc[order, list(dict.fromkeys(table["instance"]))]
    return medians.to_string(float_format=lambda x: f"{x:.3g}", na_rep="-")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", nargs="+", default=list(INSTANCES), choices=INSTANCES)
    parser.add_argument(
        "--implementations", nargs="+", default=list(IMPLEMENTATIONS), choices=IMPLEMENTATIONS
    )
    parser.add_argument("--repeats", type=int, default=15, help="samples of each (default 15)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    before = describe()
    rows = []
    for name in options.instances:
        chosen = [IMPLEMENTATIONS[each] for each in options.implementations]
        rows += compare(INSTANCES[name], chosen, options.repeats)
    table = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "speed.csv", index=False, float_format="%.6g")
    summary = _summary(table) if "median_ms" in table else "nothing ran"
    (options.out / "speed.txt").write_text(
        f"{before}\nMedian milliseconds of one update:\n\n{summary}\n", encoding="utf-8"
    )
    print(summary)
    print(f"written to {options.out / 'speed.csv'}", file=sys.stderr)


if __name__ == "__main__":
    main()
