"""What the first use costs: with an empty compilation cache, with a filled one, and after that."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

__all__ = ["main", "measure"]


def measure() -> dict[str, float]:
    """Seconds of the first calls in this process; call it in a fresh one."""
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name] = now - began
        began = now

    from sizes import TINY  # imports the package, which is timed

    lap("import")
    from ours import OURS

    ours = {each.name: each for each in OURS}
    runs = [ours[name].prepare(TINY) for name in ("ours-em", "ours-gradient")]
    lap("set up")
    for run, name in zip(runs, ("first EM iteration", "first gradient"), strict=True):
        run.step()
        lap(name)
    import torch

    from chmm_pyro.models.point import PointCHMM

    model = PointCHMM.from_counts(TINY.clones, torch.from_numpy(TINY.table))
    hmm = model.distribution(TINY.batch)
    hmm.posterior_mode(TINY.batch.obs)
    lap("first posterior_mode")
    hmm.sample_posterior(TINY.batch.obs)
    lap("first sample_posterior")
    for run in runs:
        run.step()
    lap("second EM iteration and gradient")
    return seconds


def _in_fresh_process(cache: Path | None) -> dict[str, float]:
    environment = dict(os.environ)
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, __file__, "--child"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="processes for each (default 3)")
    parser.add_argument(
        "--cached-only", action="store_true", help="only with the compilation cache as it is"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure()))
        return
    from machine import describe  # not at the top: the timed child must not import torch

    rows = []
    for number in tqdm(range(options.repeats), desc="first use"):
        if options.cached_only:
            rows.append({"cache": "as it is", "process": number, **_in_fresh_process(None)})
            continue
        with tempfile.TemporaryDirectory() as folder:
            for state in ("empty", "filled"):
                row = _in_fresh_process(Path(folder))
                rows.append({"cache": state, "process": number, **row})
    table = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "compile_time.csv", index=False, float_format="%.4f")
    medians = table.drop(columns="process").groupby("cache", sort=False).median().T
    summary = medians.to_string(float_format="%.3f")
    (options.out / "compile_time.txt").write_text(
        f"{describe()}\nSeconds, median of {options.repeats} processes, by state of the "
        f"compilation cache:\n\n{summary}\n",
        encoding="utf-8",
    )
    print(summary)


if __name__ == "__main__":
    main()
