"""``chmm map`` and ``chmm plan``: the map that a run has learned, and ways on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..atomic import write_atomically
from ..checkpoint import Checkpoint
from ..maps.cognitive_map import CognitiveMap, UncertainMapError
from ..planning.plans import Plan, UnreachableError, plan
from ..plotting.colors import name_of
from ..plotting.graphs import plot_map, plot_plan
from ..vocabulary import Vocabulary
from .figures import PICTURES, picture
from .options import (
    Action,
    AsJson,
    By,
    Criterion,
    Episode,
    From,
    Layout,
    MapLayout,
    MapOut,
    NodeLabel,
    NodeLabels,
    Observation,
    PlanOut,
    Position,
    Run,
    RunData,
    To,
)
from .outcome import pairs, show, table
from .runs import OpenRun, open_run

__all__ = ["RunMap", "make_plan", "map_lines", "map_of", "show_map"]

_TABLES = (".csv", ".graphml")
_DIGITS = 3  # of expected counts and positions, which end in rounding errors


def show_map(
    run: Run,
    data: RunData = None,
    layout: Layout = MapLayout.UNFOLD,
    labels: NodeLabels = NodeLabel.AUTO,
    observation: Observation = None,
    action: Action = None,
    episode: Episode = None,
    position: Position = None,
    out: MapOut = None,
    as_json: AsJson = False,
) -> None:
    """The map that RUN has learned: its places and where each action leads from them.

    [bold]chmm map walk.run --out map.png --out moves.csv[/bold]

    Places are the states in use, moves those that the model expects in DATA; moves that noise
    explains are left out.
    """
    for path in out or ():
        _check_ending(path, PICTURES + _TABLES)
    opened = open_run(
        run, data, observation=observation, action=action, episode=episode, position=position
    )
    found = map_of(opened)
    cognitive_map = found.graph
    for path in out or ():
        write_atomically(path, _content(path.suffix, cognitive_map, opened, layout, labels))
    record = {
        "run": str(run),
        "data": str(opened.data),
        "counts": found.counts,
        "num_places": cognitive_map.num_nodes,
        "num_states": opened.hmm.clones.num_states,
        "num_moves": len(cognitive_map.edges),
        "is_deterministic": cognitive_map.is_deterministic,
        "noise": cognitive_map.noise,
        "places": _places(cognitive_map, opened.checkpoint),
        "moves": _moves(cognitive_map, opened.checkpoint).to_dict("records"),
        "files": [str(path) for path in out or ()],
    }
    lines = {
        "data": f"{opened.batch.num_steps:,} steps, {opened.data}",
        **map_lines(found, opened),
    }
    for path in out or ():
        lines[f"saved {path.suffix}"] = str(path)
    places = table(
        ["symbol", "places", "states"],
        [
            [name, str(len(states)), _shortened(states)]
            for name, states in _by_symbol(cognitive_map, opened.checkpoint).items()
        ],
    )
    show(record, f"{pairs(lines)}\n\n{places}", as_json=as_json)


def make_plan(
    run: Run,
    start: From,
    goal: To,
    data: RunData = None,
    by: By = Criterion.STEPS,
    layout: Layout = MapLayout.UNFOLD,
    observation: Observation = None,
    action: Action = None,
    episode: Episode = None,
    position: Position = None,
    out: PlanOut = None,
    as_json: AsJson = False,
) -> None:
    """Actions that lead from one place of RUN's map to another.

    [bold]chmm plan walk.run --from door --to state:12,window --out plan.png[/bold]

    Moves seen in different episodes are joined; `chmm map` lists the places.
    """
    if out is not None:
        _check_ending(out, PICTURES)
    opened = open_run(
        run, data, observation=observation, action=action, episode=episode, position=position
    )
    run_map = map_of(opened)
    cognitive_map = run_map.graph
    names = opened.checkpoint.vocabulary
    starts = _states("--from", start, cognitive_map, names)
    goals = _states("--to", goal, cognitive_map, names)
    try:
        found = plan(cognitive_map, starts, goals, criterion=by.value)
    except UnreachableError as error:
        raise UnreachableError(f"no way leads from {start} to {goal}: {error}") from error
    if out is not None:
        figure = Figure(figsize=(7.5, 5.5), layout="constrained")
        ax = figure.subplots()
        plot_plan(cognitive_map, found, ax, positions=layout.value, vocabulary=names)
        ax.set_title(f"{ax.get_title()}, {start} to {goal}", parse_math=False)
        write_atomically(out, picture(figure, out.suffix))
    record = _plan_record(found, cognitive_map, opened.checkpoint)
    rows = [
        [str(step), str(state), symbol, done]
        for step, (state, symbol, done) in enumerate(
            zip(found.states, record["symbols"], [*record["actions"], ""], strict=True)
        )
    ]
    lines = {
        "plan": f"{found.num_steps} step{'s' * (found.num_steps != 1)} from {start} to {goal}",
        "probability": f"{record['probability']:.4g}",
        "nodes expanded": f"{found.num_expanded} of {cognitive_map.num_nodes}",
        **run_map.caution,
    }
    if out is not None:
        lines["saved in"] = str(out)
    text = f"{pairs(lines)}\n\n{table(['step', 'state', 'symbol', 'action'], rows)}"
    show({"run": str(run), "data": str(opened.data), **record}, text, as_json=as_json)


class RunMap(NamedTuple):
    """The map of a run.

    Attributes:
        graph: the map.
        counts: what its moves were counted on, ``"expected"`` or ``"path"``.
    """

    graph: CognitiveMap
    counts: str

    @property
    def caution(self) -> dict[str, str]:
        """What people should know before they rely on it."""
        if self.counts == "expected":
            return {}
        return {
            "caution": "the model is unsure of most moves: this is its best guess, on the most "
            "probable path; fit longer for a map to rely on"
        }


def map_of(opened: OpenRun) -> RunMap:
    """The map on the expected counts or, where these hold none, on the most probable path.

    The path exists for models that are unsure of most moves too, such as a fit that was stopped
    early.
    """
    model, batch = opened.checkpoint.model, opened.batch
    try:
        return RunMap(CognitiveMap.from_model(model, batch), "expected")
    except UncertainMapError:
        return RunMap(CognitiveMap.from_model(model, batch, counts="path"), "path")


def map_lines(found: RunMap, opened: OpenRun) -> dict[str, str]:
    """What a map is like, for people."""
    cognitive_map = found.graph
    tried = int(cognitive_map.tried.sum())
    outcomes = np.bincount(
        cognitive_map.edges[:, 0] * cognitive_map.num_actions + cognitive_map.edges[:, 1]
    )
    several = int((outcomes > 1).sum())
    parts = nx.number_weakly_connected_components(cognitive_map.graph)
    lines = {
        "map": f"{cognitive_map.num_nodes} places ({opened.hmm.clones.num_states} states in the "
        f"model), {tried} actions tried at places",
        "outcomes": "one for every action"
        if not several
        else f"several for {several} of {tried} actions at places",
        "noise": f"{cognitive_map.noise:.2%} of the steps are on no move of the map",
    }
    if parts > 1:
        lines["parts"] = f"{parts}, with no way between them"
    return lines | found.caution


def _check_ending(path: Path, known: tuple[str, ...]) -> None:
    if path.suffix not in known:
        raise ValueError(
            f"--out {path} has the ending {path.suffix!r}, expected one of {', '.join(known)}."
        )


def _content(
    ending: str, cognitive_map: CognitiveMap, opened: OpenRun, layout: MapLayout, labels: NodeLabel
) -> bytes:
    if ending == ".csv":
        return _moves(cognitive_map, opened.checkpoint).to_csv(index=False).encode()
    if ending == ".graphml":
        return _graphml(cognitive_map, opened.checkpoint)
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    plot_map(
        cognitive_map,
        figure.subplots(),
        positions=layout.value,
        labels=labels.value,
        vocabulary=opened.checkpoint.vocabulary,
    )
    return picture(figure, ending)


def _graphml(cognitive_map: CognitiveMap, checkpoint: Checkpoint) -> bytes:
    """The map with names for symbols and actions, positions as separate numbers."""
    graph = cognitive_map.to_networkx()
    for place, attributes in zip(
        _places(cognitive_map, checkpoint), graph.nodes.values(), strict=True
    ):
        where = attributes.pop("position", ())
        attributes.update({f"position_{axis}": value for axis, value in enumerate(where)})
        attributes["symbol"] = place["symbol"]
    for attributes in graph.edges.values():
        attributes["action"] = name_of(attributes["action"], checkpoint.action_vocabulary)
    return "\n".join(nx.generate_graphml(graph)).encode()


def _places(cognitive_map: CognitiveMap, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    places: list[dict[str, Any]] = [
        {"state": state, "symbol": name_of(symbol, checkpoint.vocabulary), "usage": usage}
        for state, symbol, usage in zip(
            cognitive_map.states.tolist(),
            cognitive_map.symbols.tolist(),
            cognitive_map.usage.round(_DIGITS).tolist(),
            strict=True,
        )
    ]
    if cognitive_map.positions is not None:
        for place, where in zip(
            places, cognitive_map.positions.round(_DIGITS).tolist(), strict=True
        ):
            place["position"] = where
    return places


def _moves(cognitive_map: CognitiveMap, checkpoint: Checkpoint) -> pd.DataFrame:
    old, action, new = cognitive_map.edges.T
    symbols = [name_of(symbol, checkpoint.vocabulary) for symbol in cognitive_map.symbols.tolist()]
    return pd.DataFrame(
        {
            "from": cognitive_map.states[old],
            "from_symbol": [symbols[node] for node in old],
            "action": [name_of(a, checkpoint.action_vocabulary) for a in action.tolist()],
            "to": cognitive_map.states[new],
            "to_symbol": [symbols[node] for node in new],
            "probability": cognitive_map.probabilities,
            "count": cognitive_map.counts.round(_DIGITS),
        }
    )


def _by_symbol(cognitive_map: CognitiveMap, checkpoint: Checkpoint) -> dict[str, list[int]]:
    return {
        name_of(symbol, checkpoint.vocabulary): cognitive_map.of_symbol(symbol)
        for symbol in np.unique(cognitive_map.symbols).tolist()
    }


def _shortened(states: list[int], most: int = 12) -> str:
    return " ".join(map(str, states[:most])) + (" ..." if len(states) > most else "")


def _states(
    option: str, text: str, cognitive_map: CognitiveMap, vocabulary: Vocabulary | None
) -> list[int]:
    """The states of places that were typed: symbols, ``state:NUMBER``, several with commas."""
    by_name: dict[str, list[int]] = {}
    for symbol in np.unique(cognitive_map.symbols).tolist():
        by_name[name_of(symbol, vocabulary)] = cognitive_map.of_symbol(symbol)
    states: list[int] = []
    for part in [text] if text in by_name else text.split(","):
        kind, _, number = part.partition(":")
        if part in by_name:
            states += by_name[part]
        elif kind == "state" and number.isdigit():
            states += cognitive_map.states[cognitive_map.node_of([int(number)])].tolist()
        else:
            known = ", ".join(list(by_name)[:20])
            raise ValueError(
                f"{option} holds {part!r}, expected a symbol on the map ({known}) or a place such "
                f"as state:{int(cognitive_map.states[0])}."
            )
    return states


def _plan_record(
    found: Plan, cognitive_map: CognitiveMap, checkpoint: Checkpoint
) -> dict[str, Any]:
    symbols = cognitive_map.symbols[cognitive_map.node_of(found.states)].tolist()
    return {
        "num_steps": found.num_steps,
        "probability": math.exp(found.log_prob),
        "actions": [name_of(action, checkpoint.action_vocabulary) for action in found.actions],
        "states": found.states,
        "symbols": [name_of(symbol, checkpoint.vocabulary) for symbol in symbols],
        "num_expanded": found.num_expanded,
    }
