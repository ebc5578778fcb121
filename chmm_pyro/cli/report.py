"""``chmm report``: one page about a run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..atomic import write_atomically
from ..checkpoint import package_version
from ..clones import CloneStructure
from ..inference.em import fit_em
from ..inference.result import bits_per_step
from ..maps.cognitive_map import CognitiveMap
from ..maps.usage import place_purity, state_usage, states_used
from ..models.point import PointCHMM
from ..plotting.colors import name_of
from ..plotting.graphs import plot_map
from ..plotting.training import plot_objective, plot_training
from ..plotting.usage import plot_clone_usage
from .figures import picture
from .maps import RunMap, map_lines, map_of
from .options import Action, AsJson, Episode, Observation, Position, ReportOut, Run, RunData
from .outcome import pairs, show
from .page import PageFigure, PageTable, page
from .runs import OpenRun, open_run

__all__ = ["report"]

_DPI = 200
_OBJECTIVES = {
    "map": "minus description length (nats), best so far",
    "viterbi": "score of the best path",
}


def report(
    run: Run,
    data: RunData = None,
    observation: Observation = None,
    action: Action = None,
    episode: Episode = None,
    position: Position = None,
    out: ReportOut = None,
    as_json: AsJson = False,
) -> None:
    """One HTML page about RUN: training, map, use of states, scores and settings.

    [bold]chmm report walk.run[/bold]

    The page holds its pictures and fetches nothing, so it can be mailed or printed.
    """
    opened = open_run(
        run, data, observation=observation, action=action, episode=episode, position=position
    )
    path = run / "report.html" if out is None else out
    found = map_of(opened)
    cognitive_map = found.graph
    scores = _scores(opened)
    html = page(
        f"{run.resolve().name}: a map of {cognitive_map.num_nodes} places",
        f"{opened.batch.num_steps:,} steps of {opened.data}; chmm-pyro {package_version()}",
        facts=_facts(cognitive_map, scores),
        figures=list(_figures(opened, cognitive_map)),
        tables=_tables(opened, found, scores),
        commands=_commands(str(run), opened, cognitive_map),
    )
    write_atomically(path, html.encode())
    record = {
        "run": str(run),
        "data": str(opened.data),
        "out": str(path),
        "counts": found.counts,
        "num_places": cognitive_map.num_nodes,
        **scores,
    }
    lines = {"page": f"{path} ({len(html) // 1000} kB)"}
    lines |= {name: value for name, value in _facts(cognitive_map, scores) if value}
    show(record, pairs(lines), as_json=as_json)


# ------------------------------------------------------------------------------------- numbers


def _scores(opened: OpenRun) -> dict[str, float | int | None]:
    """Of the model, and bits per step of one that has a single state for each symbol."""
    model, batch, held_out = opened.checkpoint.model, opened.batch, opened.held_out
    states = opened.hmm.posterior_mode(batch.obs).states
    plain = PointCHMM(
        CloneStructure([1] * model.clones.num_symbols),
        model.num_actions,
        action_model=model.action_model,
    )
    plain = fit_em(plain, batch, num_iters=1, pseudocount=1.0, progress=False).model
    return {
        "bits_per_step": bits_per_step(model, batch),
        "held_out_bits_per_step": None if held_out is None else bits_per_step(model, held_out),
        "bits_per_step_without_clones": bits_per_step(plain, batch),
        "states_used": states_used(states),
        "num_states": model.clones.num_states,
        "place_purity": None if batch.positions is None else place_purity(states, batch.positions),
    }


def _facts(
    cognitive_map: CognitiveMap, scores: dict[str, float | int | None]
) -> list[tuple[str, str]]:
    facts = [
        ("places", str(cognitive_map.num_nodes)),
        ("bits/step", _number(scores["bits_per_step"])),
        ("held-out bits/step", _number(scores["held_out_bits_per_step"])),
        ("bits/step, 1 clone each", _number(scores["bits_per_step_without_clones"])),
        ("states used", f"{scores['states_used']} of {scores['num_states']}"),
        ("place purity", _number(scores["place_purity"])),
    ]
    return [(name, value) for name, value in facts if value]


def _number(value: float | int | None) -> str:
    if value is None:
        return ""
    return "impossible" if math.isinf(value) else f"{value:.4g}"


# ------------------------------------------------------------------------------------ pictures


class _Curve(NamedTuple):
    """What a checkpoint keeps of a fit, as :func:`plot_training` reads it."""

    bits_per_step: float
    bits_per_step_history: NDArray[np.float64]
    seconds_history: NDArray[np.float64]


def _figures(opened: OpenRun, cognitive_map: CognitiveMap) -> Iterator[PageFigure]:
    names = opened.checkpoint.vocabulary
    history, batch = opened.checkpoint.history, opened.batch
    yield _figure(
        "The map",
        "Places in the colours of their symbols, laid out by their moves alone (a mirror image is "
        "the same map); nodes and edges grow with use.",
        lambda ax: plot_map(cognitive_map, ax, vocabulary=names),
    )
    if cognitive_map.positions is not None and cognitive_map.positions.shape[1] == 2:
        yield _figure(
            "The map where it belongs",
            "The same places at their mean position in the data, which learning does not see.",
            lambda ax: plot_map(cognitive_map, ax, positions="known", vocabulary=names),
        )
    method = str(opened.checkpoint.settings.get("method", "fit"))
    num_observed = opened.checkpoint.settings.get("num_observed")
    if history.get("log_prob_history") is not None and num_observed is not None:
        bits = -history["log_prob_history"] / (math.log(2) * num_observed)
        curve = _Curve(history["bits_per_step"], bits, history["seconds_history"])
        yield _figure(
            "Training",
            f"Bits per step of the data before each update, in {history['wall_time']:.1f} s.",
            lambda ax: plot_training({method: curve}, ax),
        )
    elif history.get("objective_history") is not None and len(history["objective_history"]) > 1:
        yield _figure(
            "Training",
            f"What the method optimises, in {history['wall_time']:.1f} s.",
            lambda ax: plot_objective(
                history["objective_history"], ax, label=_OBJECTIVES.get(method, "objective")
            ),
        )
    usage = state_usage(opened.hmm.smooth(batch.obs))
    yield _figure(
        "Use of states",
        "Expected steps in each state, the most used of each symbol first.",
        lambda ax: plot_clone_usage(usage, opened.hmm.clones, ax, vocabulary=names),
        size=(9, 3.6),
    )


def _figure(
    title: str,
    caption: str,
    draw: Callable[[Axes], Any],
    size: tuple[float, float] = (8, 5.2),
) -> PageFigure:
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    return PageFigure(title, picture(figure, dpi=_DPI), caption)


# -------------------------------------------------------------------------------------- tables


def _tables(
    opened: OpenRun, found: RunMap, scores: dict[str, float | int | None]
) -> list[PageTable]:
    checkpoint, batch = opened.checkpoint, opened.batch
    clones = opened.hmm.clones
    seen = np.bincount(batch.flat_obs[batch.flat_obs >= 0].numpy(), minlength=clones.num_symbols)
    places = np.bincount(found.graph.symbols, minlength=clones.num_symbols)
    symbols = [
        [
            name_of(symbol, checkpoint.vocabulary),
            f"{seen[symbol] / seen.sum():.1%}",
            str(places[symbol]),
            str(count),
        ]
        for symbol, count in enumerate(clones.num_clones)
    ]
    settings = {**checkpoint.settings}
    attempts = settings.pop("attempts", [])
    numbers = [[name.replace("_", " "), _number(value)] for name, value in scores.items()]
    numbers = [row for row in numbers if row[1]]
    tables = [
        PageTable("Scores", ["score", "value"], numbers, numbers=True),
        PageTable("What the map is like", ["", ""], _rows(map_lines(found, opened))),
        PageTable("Symbols", ["symbol", "of steps", "places", "clones"], symbols, numbers=True),
    ]
    if attempts:
        header = ["attempt", *(name.replace("_", " ") for name in attempts[0] if name != "kind")]
        rows = [
            [
                f"{number}: {attempt['kind']}",
                *(f"{value:.6g}" for name, value in attempt.items() if name != "kind"),
            ]
            for number, attempt in enumerate(attempts, 1)
        ]
        tables.append(PageTable("Attempts", header, rows, numbers=True))
    tables.append(PageTable("Settings", ["setting", "value"], _rows(settings)))
    return tables


def _rows(entries: dict[str, Any], prefix: str = "") -> list[list[str]]:
    """A row for each setting; those inside of another are named after it."""
    rows = []
    for name, value in entries.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{name}.")
        elif value is not None:
            rows.append([prefix + name, str(value)])
    return rows


def _commands(run: str, opened: OpenRun, cognitive_map: CognitiveMap) -> list[str]:
    busiest, second = cognitive_map.states[np.argsort(-cognitive_map.usage)[[0, -1]]].tolist()
    words = [
        ["chmm", "eval", run, str(opened.data)],
        ["chmm", "map", run, "--out", "map.png"],
        ["chmm", "plan", run, "--from", f"state:{busiest}", "--to", f"state:{second}"],
    ]
    return [shlex.join(command) for command in words]
