"""Cells of the hippocampus in learned models: place, head direction, splitter, lap; remapping.

Every experiment is repeated for several seeds; ``results/cells.csv`` has a row for each and
``results/cells_<experiment>.png`` shows the first.  Runs that are in the CSV are skipped, so that
the script can be stopped and started again.  ``python benchmarks/cells.py --help``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from tqdm import tqdm

from chmm_pyro import CloneStructure
from chmm_pyro.environments import EgocentricRoom, bordered_room, published_room, random_room
from chmm_pyro.environments.tracks import TrackWalk, lap_track, t_maze
from chmm_pyro.inference import fit_em, fit_map, fit_svi, fit_viterbi
from chmm_pyro.inference.result import FitResult
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.cells import context_selectivity, noisy_filter, recognise
from chmm_pyro.maps.comparison import isomorphism
from chmm_pyro.maps.usage import place_fields
from chmm_pyro.models import PointCHMM
from chmm_pyro.plotting import plot_place_fields, symbol_colors

RESULTS = Path(__file__).parent / "results"
LAPS = ("lap 1", "lap 2", "lap 3", "lap 4")
Row = dict[str, Any]
Draw = Callable[[Figure], None]


def place_cells(seed: int) -> tuple[list[Row], Draw]:
    """A map of the published room, walked through again with 5 % of the symbols seen wrongly."""
    room = published_room("rectangular_room")
    result = fit_map(room.random_walk(20_000, seed=seed).batch(), seed=seed, progress=False)
    walk = room.random_walk(10_000, seed=seed + 1_000, observation_noise=0.05)
    posterior = noisy_filter(result.model, walk.batch(), 0.02)
    fields = place_fields(posterior, walk.positions, room.layout.shape)
    flat = fields.reshape(len(fields), -1)
    row = {
        "cells": len(flat),
        "expected": room.num_places,
        "places_with_a_cell": len(np.unique(flat.argmax(1))),
        "median": float(np.median(flat.max(1))),
        "worst": float(flat.max(1).min()),
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, 3)
        plot_place_fields(posterior, walk.positions, room, axes.ravel())
        figure.suptitle("place cells: published room, 5 % of symbols wrong", fontsize=10)

    return [{"cells_of": "place", "method": "fit_map", "measure": "activity at peak", **row}], draw


def head_direction_cells(seed: int) -> tuple[list[Row], Draw]:
    """A map of poses: the published egocentric walk, 117 views."""
    world = EgocentricRoom(bordered_room(7, 7, walls="never"))
    walk = world.random_walk(20_000, seed=seed)
    result = fit_map(walk.batch(), seed=seed, progress=False)
    posterior = noisy_filter(result.model, walk.batch(), 1e-3)
    context = np.stack([world.headings[walk.places], walk.places // 4], axis=1)
    fields = np.nan_to_num(place_fields(posterior, context, (4, world.num_places // 4)))
    selectivity = context_selectivity(fields)
    exact = isomorphism(
        CognitiveMap.from_result(result, counts="path"), CognitiveMap.from_room(world)
    )
    row = {
        "cells": len(fields),
        "expected": world.num_places,
        "exact_map": exact is not None,
        "median": float(np.median(selectivity)),
        "worst": float(selectivity.min()),
    }

    def draw(figure: Figure) -> None:
        # The view of the uniform middle has most clones: cells that only context tells apart.
        symbols = result.model.clones.symbol_of_state
        common = np.flatnonzero(symbols == np.bincount(symbols).argmax())
        shown = common[np.linspace(0, len(common) - 1, 6).astype(int)]
        for ax, state in zip(figure.subplots(2, 3).ravel(), shown, strict=True):
            ax.imshow(fields[state].max(0).reshape(7, 7), cmap="Greys", vmin=0, vmax=1)
            heading, place = np.unravel_index(fields[state].argmax(), fields[state].shape)
            row, column = divmod(int(place), 7)
            step = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)])[heading]
            begin = np.array([column, row]) - 0.45 * step
            ax.annotate(
                "",
                xy=tuple(begin + 1.5 * step),
                xytext=tuple(begin),
                arrowprops={"color": "#d55e00", "width": 2, "headwidth": 7, "headlength": 6},
                annotation_clip=False,
            )
            ax.set(xticks=[], yticks=[])
            ax.set_xticks(np.arange(0.5, 6), minor=True)
            ax.set_yticks(np.arange(0.5, 6), minor=True)
            ax.grid(which="minor", color="#dddddd", linewidth=0.8)
            ax.tick_params(which="minor", length=0)
            ax.set_title(f"state {state}", fontsize=8)
        figure.suptitle(
            f"places with headings: 7x7 room, six of the {len(common)} clones of one view",
            fontsize=10,
        )

    label = {"cells_of": "head direction", "method": "fit_map", "measure": "share of heading"}
    return [{**label, **row}], draw


def track_fit(method: str, run: TrackWalk, num_clones: int, seed: int) -> FitResult:
    """A model of a track; gradients at a high rate find long cycles that EM misses."""
    batch = run.batch()
    if method == "fit_map":
        return fit_map(batch, seed=seed, progress=False)
    start = PointCHMM(CloneStructure([num_clones] * batch.num_symbols), num_actions=1, seed=seed)
    if method == "fit_em":
        fitted = fit_em(start, batch, num_iters=400, progress=False)
    else:
        fitted = fit_svi(start, batch, num_iters=400, learning_rate=0.5, seed=seed, progress=False)
    return fit_viterbi(fitted.model, batch, progress=False)


def track_cells(
    name: str, run: TrackWalk, methods: tuple[str, ...], expected: int | None, seed: int
) -> tuple[list[Row], dict[str, NDArray[np.float64]]]:
    rows, shown = [], {}
    for method in methods:
        result = track_fit(method, run, 12, seed)
        posterior = noisy_filter(result.model, run.batch(), 1e-3)
        fields = np.nan_to_num(place_fields(posterior, run.cells, run.shape))
        states = CognitiveMap.from_result(result, counts="path").states
        selectivity = context_selectivity(fields)[states]
        # Places that all contexts share; in the arms of a T the place tells the context anyway.
        shared = [
            run.num_contexts == len(np.unique(run.contexts[run.places == place]))
            for place in fields[states].max(1).argmax(1)
        ]
        rows.append(
            {
                "cells_of": name,
                "method": method,
                "measure": "share of context",
                "cells": len(states),
                "expected": expected,
                "median": float(np.median(selectivity[shared])),
                "worst": float(selectivity[shared].min()),
            }
        )
        shown[method] = fields[states]
    return rows, shown


def draw_track(
    ax: Axes, fields: NDArray[np.float64], title: str, context_names: tuple[str, ...]
) -> None:
    """Cells in the order in which they fire."""
    flat = fields.reshape(len(fields), -1)
    order = flat.argmax(1).argsort(kind="stable")
    image = ax.imshow(
        flat[order], cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    ax.figure.colorbar(image, ax=ax, label="mean activity", shrink=0.6)
    contexts, places = fields.shape[1:]
    for number in range(1, contexts):
        ax.axvline(number * places - 0.5, color="#d55e00", linewidth=1)
    ax.set_xticks((np.arange(contexts) + 0.5) * places - 0.5)
    ax.set_xticklabels(context_names, fontsize=8)
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(ylabel="cell", xlabel="places in the order of the track")
    ax.set_title(title, fontsize=10)


def splitter_cells(seed: int) -> tuple[list[Row], Draw]:
    """Alternating turns on a T; with random turns the stem needs no memory."""
    rows, shown = track_cells("splitter", t_maze(120), ("fit_em", "fit_svi"), 14, seed)
    control, _ = track_cells(
        "splitter, random turns", t_maze(120, alternate=False, seed=seed), ("fit_em",), None, seed
    )
    title = "splitter cells: T-maze, alternating turns (EM)"
    return rows + control, lambda figure: draw_track(
        figure.subplots(),
        shown["fit_em"],
        title,
        ("before and in the left arm", "before and in the right arm"),
    )


def lap_cells(seed: int) -> tuple[list[Row], Draw]:
    """A reward every fourth lap: only counting laps predicts it."""
    run = lap_track(30, length=5)
    rows, shown = track_cells("lap", run, ("fit_svi", "fit_em", "fit_map"), 20, seed)
    title = "lap cells: reward every fourth lap (SVI)"
    return rows, lambda figure: draw_track(figure.subplots(), shown["fit_svi"], title, LAPS)


def remapping(seed: int) -> tuple[list[Row], Draw]:
    """Five learned rooms of the same four symbols; which one is this short walk in?"""
    rooms = [random_room(6, 6, num_symbols=4, seed=5 * seed + number) for number in range(5)]
    maps = [
        CognitiveMap.from_result(
            fit_map(room.random_walk(15_000, seed=seed).batch(), seed=seed, progress=False)
        )
        for room in rooms
    ]
    lengths = np.arange(1, 21)
    probability = np.empty((len(rooms), 20, len(lengths)))
    for number, room in enumerate(rooms):
        for column, length in enumerate(lengths):
            walks = room.random_walk(int(length), seed=[seed, 7], num_episodes=20).batch()
            probability[number, :, column] = recognise(maps, walks, pseudocount=1e-3)[:, number]
    rows = [
        {
            "cells_of": "remapping",
            "method": "fit_map",
            "measure": f"probability of the right room of 5 after {length} observations",
            "cells": sum(one.num_nodes for one in maps),
            "expected": 180,
            "median": float(np.median(probability[..., length - 1])),
            "worst": float(probability[..., length - 1].min()),
        }
        for length in (2, 5, 10, 20)
    ]

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.plot(lengths, probability.mean((0, 1)), color="#333333", linewidth=3, label="all rooms")
        for number, color in enumerate(symbol_colors(5)):
            mean = probability[number].mean(0)
            ax.plot(lengths, mean, color=color, linewidth=1.2, label=f"in room {number + 1}")
        ax.axhline(0.2, color="#888888", linewidth=1, linestyle=":")
        ax.text(20, 0.215, "chance", ha="right", fontsize=8, color="#555555")
        ax.set(xlabel="observations", ylabel="probability of the right room", ylim=(0, 1.03))
        ax.set_xticks([1, 5, 10, 15, 20])
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.25), fontsize=8)
        ax.set_title("remapping: walks in five learned rooms, means of 20", fontsize=10)

    return rows, draw


EXPERIMENTS: dict[str, Callable[[int], tuple[list[Row], Draw]]] = {
    "place": place_cells,
    "head direction": head_direction_cells,
    "splitter": splitter_cells,
    "lap": lap_cells,
    "remapping": remapping,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    csv = options.out / "cells.csv"
    rows: list[Row] = pd.read_csv(csv).to_dict("records") if csv.exists() else []
    known = {(row["experiment"], row["seed"]) for row in rows}
    todo = [(name, seed) for name in options.experiments for seed in options.seeds]
    for name, seed in tqdm([job for job in todo if job not in known], desc="experiments"):
        found, draw = EXPERIMENTS[name](seed)
        if seed == options.seeds[0]:
            figure = plt.figure(figsize=(6.4, 4), layout="constrained")
            draw(figure)
            figure.savefig(options.out / f"cells_{name.replace(' ', '_')}.png", dpi=100)
            plt.close(figure)
        rows += [{"experiment": name, "seed": seed, **row} for row in found]
        pd.DataFrame(rows).round(4).to_csv(csv, index=False)
    table = pd.DataFrame(rows)
    table["right_number"] = table["cells"] == table["expected"]
    summary = table.groupby(["cells_of", "method", "measure"], sort=False).agg(
        runs=("seed", "size"),
        right_number=("right_number", "sum"),
        cells=("cells", "median"),
        expected=("expected", "first"),
        median=("median", "median"),
        worst=("worst", "min"),
    )
    print(summary.reset_index().to_string(index=False))


if __name__ == "__main__":
    main()
