"""Peak memory above the data, each implementation in a process of its own.

A child imports everything, makes the data and the first table, and runs the implementation once on
a tiny instance, which loads the compiled code.  It then resets its high-water mark to the present
size (``/proc/self/clear_refs``), sets the implementation up on the real instance and runs it three
times.  Reported is the growth of ``getrusage``'s ``ru_maxrss``: everything that parameters, layout,
messages, counts and gradients take at the worst moment.  Where the mark cannot be reset, the
present size is subtracted instead; an earlier, higher peak then makes the figure larger, never
smaller.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from machine import describe
from sizes import INSTANCES, TINY
from speed import IMPLEMENTATIONS
from tqdm import tqdm

__all__ = ["main", "measure"]

_STEPS = 3


def _resident() -> float:
    """MiB now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _peak() -> float:
    """MiB at the worst moment so far; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def measure(implementation: str, instance: str) -> dict[str, Any]:
    """Run in this process; call it in a fresh one."""
    chosen, data = IMPLEMENTATIONS[implementation], INSTANCES[instance]
    data, tiny_data = (replace(each, with_actions=chosen.actions) for each in (data, TINY))
    _ = data.batch, data.table
    tiny = chosen.prepare(tiny_data)
    tiny.step()
    del tiny
    gc.collect()
    reset = _reset_peak()
    before = _peak() if reset else _resident()
    run = chosen.prepare(data)
    for _ in range(_STEPS):
        run.step()
    data_size = data.batch.flat_obs.nbytes + data.batch.flat_actions.nbytes
    return {
        "instance": instance,
        "implementation": implementation,
        "above_data_mib": _peak() - before,
        "process_before_mib": before,
        "data_mib": data_size / 2**20,
        "peak_was_reset": reset,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", nargs="+", default=["room"], choices=INSTANCES)
    parser.add_argument(
        "--implementations",
        nargs="+",
        default=["ours-em", "ours-gradient", "ours-fit-svi"],
        choices=IMPLEMENTATIONS,
    )
    parser.add_argument("--repeats", type=int, default=3, help="processes for each (default 3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure(*options.child)))
        return
    rows = []
    jobs = [
        (implementation, instance)
        for instance in options.instances
        for implementation in options.implementations
    ]
    for implementation, instance in tqdm(jobs * options.repeats, desc="memory"):
        reason = IMPLEMENTATIONS[implementation].reason_to_skip(INSTANCES[instance])
        if reason:
            tqdm.write(f"{instance}: {implementation} skipped: {reason}")
            continue
        command = [sys.executable, __file__, "--child", implementation, instance]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    table = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "memory.csv", index=False, float_format="%.1f")
    worst = table.groupby(["instance", "implementation"], sort=False)["above_data_mib"].max()
    (options.out / "memory.txt").write_text(
        f"{describe()}\nPeak MiB above the data, worst of {options.repeats} processes:\n\n"
        f"{worst.to_string(float_format='%.1f')}\n",
        encoding="utf-8",
    )
    print(worst.to_string(float_format="%.1f"))


if __name__ == "__main__":
    main()
