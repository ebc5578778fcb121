"""EM and gradients from the same start: bits per step against updates and against seconds.

Cases: the golden ones of ``test_data/`` (float64, EM must retrace the published curve) and the
published room (float32).  Fits are deterministic, so every method is run several times through the
same models: undisturbed, for the seconds (of each update the least of the runs counts, so that
other work on the machine does not), and once evaluating intermediate models on a second, held-out
walk of the same room.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from machine import describe
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from tqdm import tqdm

from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import Room, published_room
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.result import FitResult, bits_per_step
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch

__all__ = ["CASES", "curves", "draw", "load", "main", "methods"]

GOLDEN = ("small", "medium", "large")
CASES = (*GOLDEN, "room")
_DESCRIPTIONS = {
    "small": "3x3 places, 9 states, 50 steps",
    "medium": "5x4 places, 27 states, 200 steps",
    "large": "8x8 places, 81 states, 1,000 steps",
    "room": "6x8 places, 280 states, 50,000 steps",
}
_NUM_ITERS = {**dict.fromkeys(GOLDEN, 900), "room": 150}
_TEST_DATA = Path(__file__).parents[1] / "test_data"


@dataclass(frozen=True)
class _Case:
    """Attributes:
    start: the model that every method starts from.
    train: the walk fitted.
    held_out: another walk, of 50,000 steps so that its likelihood is well determined.
    pseudocount: of EM and of the MAP gradient.
    published: bits per step of the published program before each EM update, or None.
    """

    start: PointCHMM
    train: SequenceBatch
    held_out: SequenceBatch
    pseudocount: float
    published: np.ndarray | None


def load(name: str) -> _Case:
    """One of :data:`CASES`."""
    if name == "room":
        room, clones = published_room("rectangular_room"), CloneStructure([70] * 4)
        walk = room.random_walk(num_steps=50_000, seed=42)
        obs, actions, published, pseudocount = walk.obs, walk.actions, None, 0.002
        start = PointCHMM(clones, 4, seed=0)
    else:
        golden = json.loads((_TEST_DATA / f"{name}_case.json").read_text(encoding="utf-8"))
        room = Room(golden["input"]["room"])
        clones = CloneStructure(golden["input"]["n_clones"])
        obs, actions = np.array(golden["input"]["x"]), np.array(golden["input"]["a"])[:-1]
        counts = np.array(golden["checkpoints"]["counts_init"])
        pseudocount = golden["metadata"]["pseudocount"]
        published = np.array(golden["em"]["bits_per_step"])
        start = PointCHMM.from_counts(clones, counts, pseudocount=pseudocount)
    walk = room.random_walk(num_steps=50_000, seed=1_000)
    return _Case(
        start,
        SequenceBatch.from_arrays(obs, actions, num_actions=4),
        SequenceBatch.from_arrays(walk.obs, walk.actions, num_actions=4),
        pseudocount,
        published,
    )


@dataclass(frozen=True)
class _Method:
    """Attributes:
    name: for the tables and the figure.
    learning_rate: of ``fit_svi``; None stands for EM.
    schedule: of the learning rate.
    prior: whether the pseudocount of the case is part of the objective, as it is in EM.
    """

    name: str
    learning_rate: float | None
    prior: bool
    schedule: str = "cosine"

    def fit(self, case: _Case, num_iters: int, **options: Any) -> FitResult:
        """Run undisturbed, or with further options of ``fit_svi``."""
        kappa = case.pseudocount if self.prior else 0.0
        common = {"num_iters": num_iters, "pseudocount": kappa, "progress": False}
        if self.learning_rate is None:
            return fit_em(case.start, case.train, **common)
        common |= {"learning_rate": self.learning_rate, "schedule": self.schedule}
        return fit_svi(case.start, case.train, **common, **options)

    def held_out(self, case: _Case, num_iters: int, updates: Sequence[int]) -> list[float]:
        """Bits per step of the held-out walk before these updates; the last is ``num_iters``."""
        found: list[float] = []
        if self.learning_rate is None:
            model, done = case.start, 0
            for update in updates:
                if update > done:
                    model = self.fit(replace(case, start=model), update - done).model
                    done = update
                found.append(bits_per_step(model, case.held_out))
            return found
        wanted, calls = set(updates), itertools.count()

        def listen(model: PointCHMM) -> torch.Tensor:
            """A loss of zero: the hook that sees the model before every update."""
            if next(calls) in wanted:
                found.append(bits_per_step(model, case.held_out))
            return 0 * model.transition.logits.sum()

        result = self.fit(case, num_iters, auxiliary_loss=listen)
        return [*found, bits_per_step(result.model, case.held_out)]


_EM = _Method("EM", None, prior=True)
_FAST = (
    _Method("gradient MAP, rate 0.2", 0.2, prior=True),
    _Method("gradient, rate 0.2", 0.2, prior=False),
)
_SLOW = _Method("gradient MAP, rate 0.01", 0.01, prior=True, schedule="constant")


def methods(case: str) -> tuple[_Method, ...]:
    """What is run on a case; the room is too long for the thousands of updates of a low rate."""
    return (_EM, *_FAST) if case == "room" else (_EM, _SLOW, *_FAST)


def timed(
    method: _Method, case: _Case, num_iters: int, repeats: int
) -> tuple[FitResult, np.ndarray]:
    """A fit, and the seconds before each of its updates and at its end."""
    runs = [method.fit(case, num_iters) for _ in range(repeats)]
    stamps = [np.append(run.seconds_history, run.wall_time) for run in runs]
    return runs[0], np.diff(stamps, prepend=0.0).min(0).cumsum()


def curves(name: str, num_iters: int, repeats: int, bar: Any) -> pd.DataFrame:
    """All methods on one case; the updates kept are spread evenly over their logarithms."""
    case = load(name)
    for method in methods(name)[::2]:
        method.fit(case, 2)  # loads compiled code
    spread = np.geomspace(1, num_iters, 90).round().astype(int)
    updates = np.unique([0, *spread]).tolist()
    tables = []
    for method in methods(name):
        bar.set_postfix_str(f"{name}: {method.name}")
        result, seconds = timed(method, case, num_iters, repeats)
        train = np.append(result.bits_per_step_history, result.bits_per_step)
        if method is _EM and case.published is not None:
            known = min(num_iters, len(case.published))
            np.testing.assert_allclose(train[:known], case.published[:known], rtol=1e-6)
        tables.append(
            pd.DataFrame(
                {
                    "case": name,
                    "method": method.name,
                    "update": updates,
                    "seconds": seconds[updates],
                    "train_bits_per_step": train[updates],
                    "held_out_bits_per_step": method.held_out(case, num_iters, updates),
                }
            )
        )
        bar.update()
    return pd.concat(tables)


_COLOURS = {
    method.name: colour
    for method, colour in zip(
        methods("small"), ("black", "tab:orange", "tab:green", "tab:blue"), strict=True
    )
}


_STYLES = {"train": "-", "held_out": "--"}


def draw(table: pd.DataFrame) -> Figure:
    """A row for each case; against updates and against seconds."""
    names = list(dict.fromkeys(table["case"]))
    figure = Figure(figsize=(11, 1 + 3 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False, sharey="row")
    for row, name in zip(axes, names, strict=True):
        for axis, column in zip(row, ("update", "seconds"), strict=True):
            for method, colour in _COLOURS.items():
                part = table[(table["case"] == name) & (table["method"] == method)]
                if part.empty:
                    continue
                for kind, style in _STYLES.items():
                    axis.plot(
                        part[column],
                        part[f"{kind}_bits_per_step"],
                        style,
                        color=colour,
                        linewidth=1.4,
                    )
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set_title(f"{name}: {_DESCRIPTIONS[name]}", loc="left", fontsize="medium")
            axis.grid(alpha=0.3)
        row[0].set_ylabel("bits per step")
        row[0].set_xscale("symlog", linthresh=1)
        row[0].set_xlim(left=0)
        row[0].set_xlabel("updates")
        row[1].set_xscale("log")
        row[1].set_xlabel("seconds")
    shown = [name for name in _COLOURS if name in set(table["method"])]
    lines = [Line2D([], [], color=_COLOURS[name], label=name) for name in shown]
    walks = zip(_STYLES.values(), ("training walk", "held-out walk"), strict=True)
    lines += [Line2D([], [], color="grey", linestyle=style, label=label) for style, label in walks]
    figure.legend(handles=lines, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    """Last rows, with the ratio of likelihoods to EM's and the update that overtakes EM's end."""
    rows = []
    for (case, method), part in table.groupby(["case", "method"], sort=False):
        last = part.iloc[-1]
        em = table[(table["case"] == case) & (table["method"] == "EM")].iloc[-1]
        row = {"case": case, "method": method, "seconds": last["seconds"]}
        for kind in ("train", "held_out"):
            column = f"{kind}_bits_per_step"
            row[column] = last[column]
            row[f"{kind}_vs_em"] = last[column] / em[column]
        reached = part["train_bits_per_step"].to_numpy() <= em["train_bits_per_step"] * 1.01
        for column in ("update", "seconds"):
            at_first = part[column].iloc[int(reached.argmax())] if reached.any() else math.nan
            row[f"{column}_within_1pct"] = at_first
        rows.append(row)
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument(
        "--num-iters",
        type=int,
        help="updates (default 900 for the golden cases, 150 for the room)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each fit")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    with tqdm(total=sum(len(methods(name)) for name in options.cases), desc="training") as bar:
        table = pd.concat(
            [
                curves(name, options.num_iters or _NUM_ITERS[name], options.repeats, bar)
                for name in options.cases
            ]
        )
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "training_curves.csv", index=False, float_format="%.7g")
    draw(table).savefig(options.out / "training_curves.png", dpi=120)
    summary = _summary(table).to_string(index=False, float_format=lambda x: f"{x:.4g}")
    (options.out / "training_curves.txt").write_text(
        f"{describe()}\nAfter the last update:\n\n{summary}\n", encoding="utf-8"
    )
    print(summary)


if __name__ == "__main__":
    main()
