"""Plans on maps learned from walks, against the true rooms: as short as possible, and they arrive.

    python benchmarks/planning.py                      # all worlds, three seeds, about ten minutes
    python benchmarks/planning.py --worlds aliased_4x4 --seeds 0 --grids 2

Every map is learned by ``fit_map`` from a walk alone. Then

- all pairs of places: the plan has the length that networkx finds on the true graph, so has the
  bridge, and doing its actions in the room ends at the goal;
- detours: with walls put into map and room (nothing is learned again) the same for the pairs that
  are still joined, and an error for those that are not; shortcuts when walls are taken out;
- from a belief: dropped somewhere, the walker looks, acts and reaches a goal;
- slippery floors: the policy of value iteration needs as many steps as it says, and the policy of a
  *learned* slippery floor (the map's moves, trained on by EM with a walk after the floor got
  slippery) as few as the best;
- in the stitched rooms, walked in separate episodes: routes from one room to the other.

Two-level planning is compared with flat planning on grids of rooms, true maps and maps learned from
a walk: lengths, nodes expanded, time.
Results: ``planning_worlds.csv``, ``planning_levels.csv`` and ``planning.txt`` in ``results/``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Set
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from machine import describe
from map_recovery import STEPS, stitched_rooms, walks_in
from tqdm import tqdm

from chmm_pyro.environments import Room, published_room
from chmm_pyro.environments.tracks import grid_of_rooms
from chmm_pyro.inference import fit_em, fit_map
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.comparison import isomorphism
from chmm_pyro.maps.edits import block, open_edges
from chmm_pyro.models import PointCHMM
from chmm_pyro.planning import Plan, UnreachableError, bridge, plan
from chmm_pyro.planning.hierarchy import Hierarchy
from chmm_pyro.planning.navigation import navigate
from chmm_pyro.planning.policies import shortest_policy

RESULTS = Path(__file__).parent / "results"
WORLDS = [w for w in STEPS if w != "empty_room" and not w.startswith("random")]
NUM_WALLS = 6
NUM_DROPS = 100
NUM_SLIPPERY = 20
SLIP = 0.2
MOST_STEPS = 2_000
LEARNED_GRIDS = {2: 50_000, 3: 100_000}  # rooms along a side, and steps of the walk

NO_WALLS: frozenset[frozenset[int]] = frozenset()

Lengths = dict[int, dict[int, int]]


def room_of(world: str) -> Room:
    return stitched_rooms() if world == "stitched_rooms" else published_room(world)


def walked(room: Room, place: int, actions: Iterable[int], walls: Set[frozenset[int]]) -> int:
    """Where actions lead in the room; walls stop the walker."""
    for action in actions:
        after = room.step(place, action)
        place = place if frozenset((place, after)) in walls else after
    return place


def lengths_of(room: Room, walls: Set[frozenset[int]]) -> Lengths:
    """True shortest paths between the places that are joined."""
    graph = nx.DiGraph(room.place_graph())
    for wall in walls:
        one, other = wall
        graph.remove_edges_from([(one, other), (other, one)])
    return dict(nx.all_pairs_shortest_path_length(graph))


class Learned:
    """A learned map, and the state that stands for each place."""

    def __init__(self, world: str, seed: int, num_steps: int | None = None) -> None:
        self.room = room_of(world)
        walks = walks_in(world, seed, num_steps or STEPS[world])
        begin = time.perf_counter()
        result = fit_map(walks.batch, seed=seed, progress=False)
        self.seconds = time.perf_counter() - begin
        self.clones = result.model.clones
        self.map = CognitiveMap.from_result(result)
        self.episodes = [set(np.unique(places).tolist()) for places in np.atleast_2d(walks.places)]
        self.place_of = isomorphism(self.map, walks.truth)
        self.state_of = {place: state for state, place in (self.place_of or {}).items()}

    def count(
        self,
        search: Callable[[int, int], Plan],
        pairs: Iterable[tuple[int, int]],
        walls: Set[frozenset[int]] = NO_WALLS,
    ) -> dict[str, int]:
        """Of pairs of places: how many plans are as short as possible, arrive, or do not exist."""
        expected = lengths_of(self.room, walls)
        found = {"pairs": 0, "short": 0, "arrived": 0, "apart": 0, "refused": 0}
        for start, goal in pairs:
            steps = expected[start].get(goal)
            found["pairs" if steps is not None else "apart"] += 1
            try:
                one = search(self.state_of[start], self.state_of[goal])
            except UnreachableError:
                found["refused"] += 1
                continue
            found["short"] += one.num_steps == steps
            found["arrived"] += walked(self.room, start, one.actions, walls) == goal
        return found


def all_pairs(learned: Learned) -> dict[str, Any]:
    """Plans and bridges between all places."""
    places = range(learned.room.num_places)
    begin = time.perf_counter()
    plans = learned.count(
        lambda start, goal: plan(learned.map, start, goal), product(places, places)
    )
    seconds = time.perf_counter() - begin
    others = [(start, goal) for start, goal in product(places, places) if start != goal]
    bridges = learned.count(partial(bridge, learned.map), others)
    return {
        "pairs": plans["pairs"],
        "short": plans["short"],
        "arrived": plans["arrived"],
        "bridges": bridges["pairs"],
        "bridges_short": bridges["short"],
        "bridges_arrived": bridges["arrived"],
        "ms_per_plan": round(1e3 * seconds / plans["pairs"], 3),
    }


def detours(learned: Learned, seed: int) -> dict[str, Any]:
    """All pairs after walls went up, one place was shut in, and half the walls came down again."""
    rng = np.random.default_rng([seed, 1])
    graph = nx.Graph(learned.room.place_graph())
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    edges = list(graph.edges)
    shut_in = int(rng.integers(learned.room.num_places))
    picked = [edges[k] for k in rng.choice(len(edges), NUM_WALLS, replace=False)]
    around = [(shut_in, other) for other in graph[shut_in]]
    walls = {frozenset(pair) for pair in [*picked, *around]}
    state_of = learned.state_of
    closed = block(learned.map, [[state_of[place] for place in wall] for wall in walls])
    down = [wall for wall in walls if wall not in {frozenset(pair) for pair in around}]
    down = down[: len(down) // 2]
    doors = [
        (state_of[place], action, state_of[int(learned.room.next_place[place, action])])
        for place, action in np.argwhere(learned.room.tried).tolist()
        if frozenset((place, int(learned.room.next_place[place, action]))) in down
    ]
    opened = open_edges(closed, doors)
    places = range(learned.room.num_places)
    before = lengths_of(learned.room, NO_WALLS)
    after = lengths_of(learned.room, walls)
    row: dict[str, Any] = {
        "longer": sum(after[i].get(j, 0) > before[i][j] for i, j in product(places, places))
    }
    for name, edited, left in (
        ("detours", closed, walls),
        ("shortcuts", opened, walls - set(down)),
    ):
        found = learned.count(partial(plan, edited), product(places, places), left)
        row |= {
            name: found["pairs"],
            f"{name}_short": found["short"],
            f"{name}_arrived": found["arrived"],
            f"{name}_apart": found["apart"],
            f"{name}_refused": found["refused"],
        }
    return row


def from_belief(learned: Learned, seed: int) -> dict[str, Any]:
    """Dropped anywhere with no idea where: look, act, and reach a goal for certain."""
    rng = np.random.default_rng([seed, 2])
    room, expected = learned.room, lengths_of(learned.room, NO_WALLS)
    arrived, extra = 0, []
    for start, goal in rng.integers(room.num_places, size=(NUM_DROPS, 2)).tolist():
        place = [start]

        def act(action: int, place: list[int] = place) -> int:
            place[0] = room.step(place[0], action)
            return int(room.symbols[place[0]])

        try:
            journey = navigate(
                learned.map,
                learned.state_of[goal],
                act,
                first_symbol=int(room.symbols[start]),
                max_steps=300,
            )
        except ValueError:
            continue
        arrived += place[0] == goal
        extra.append(len(journey.actions) - expected[start][goal])
    return {"drops": NUM_DROPS, "drops_arrived": arrived, "extra_steps": float(np.mean(extra))}


def slippery(learned: Learned, seed: int, num_steps: int) -> dict[str, Any]:
    """Steps that policies need on a slippery floor, over those that the best policy expects."""
    rng = np.random.default_rng([seed, 3])
    room = learned.room
    floor = CognitiveMap.from_room(room, slip=SLIP)
    again = room.random_walk(num_steps, seed=[seed, 4], slip=SLIP).batch()
    # To begin with, any action may come out as any other; EM learns how often.
    moves = torch.tensor(np.stack([matrix.toarray() for matrix in learned.map.matrices]))
    start = PointCHMM.from_counts(learned.clones, moves + 0.1 * moves.sum(0))
    found = CognitiveMap.from_result(fit_em(start, again, num_iters=20, progress=False))
    node_of = found.node_of([learned.state_of[place] for place in range(room.num_places)])
    ratios, learned_ratios, plans = [], [], []
    for start, goal in rng.integers(room.num_places, size=(NUM_SLIPPERY, 2)).tolist():
        if start == goal:
            continue
        best = shortest_policy(floor, goal)
        own = shortest_policy(found, learned.state_of[goal])
        expected = best.expected_steps(start)
        for ratio, actions in ((ratios, best.actions), (learned_ratios, own.actions[node_of])):
            steps = [_slide(room, start, goal, actions.tolist(), rng) for _ in range(50)]
            ratio.append(np.mean(steps) / expected)
        plans.append(plan(floor, start, goal).log_prob)
    return {
        "policies": len(ratios),
        "steps_over_expected": float(np.mean(ratios)),
        "learned_steps_over_expected": float(np.mean(learned_ratios)),
        "plan_probability": float(np.mean(np.exp(plans))),
    }


def _slide(room: Room, place: int, goal: int, actions: list[int], rng: np.random.Generator) -> int:
    """Steps to the goal by the best action of every place, on a floor that slips."""
    steps = 0
    while place != goal:
        if steps == MOST_STEPS or actions[place] < 0:
            return MOST_STEPS  # lost: the policy does not lead to the goal
        action = actions[place]
        others = [a for a in np.flatnonzero(room.tried[place]).tolist() if a != action]
        if others and rng.random() < SLIP:
            action = int(rng.choice(others))
        place = room.step(place, action)
        steps += 1
    return steps


def never_walked(learned: Learned) -> dict[str, Any]:
    """Pairs of places that no episode has both of."""
    places = range(learned.room.num_places)
    apart = [
        (start, goal)
        for start, goal in product(places, places)
        if not any({start, goal} <= seen for seen in learned.episodes)
    ]
    found = learned.count(partial(plan, learned.map), apart)
    return {
        "unwalked": found["pairs"],
        "unwalked_short": found["short"],
        "unwalked_arrived": found["arrived"],
    }


def world_row(world: str, seed: int, num_steps: int | None = None) -> dict[str, Any]:
    """Everything about one learned map."""
    learned = Learned(world, seed, num_steps)
    row: dict[str, Any] = {
        "world": world,
        "seed": seed,
        "places": learned.room.num_places,
        "exact": learned.place_of is not None,
        "fit_seconds": round(learned.seconds, 2),
    }
    if learned.place_of is None:
        return row
    return {
        **row,
        **all_pairs(learned),
        **detours(learned, seed),
        **from_belief(learned, seed),
        **slippery(learned, seed, num_steps or STEPS[world]),
        **never_walked(learned),
    }


def level_row(side: int, num_pairs: int, seed: int = 0, *, num_steps: int = 0) -> dict[str, Any]:
    """Flat against two-level planning on a grid of side x side rooms of 5 x 5 places.

    With ``num_steps`` on the map that ``fit_map`` learns from such a walk, else on the true one.
    """
    room, _ = grid_of_rooms(side, side, size=5, num_symbols=6 if num_steps else 4, seed=seed)
    whole, state_of, seconds_of_fit = _map_of(room, num_steps, seed)
    row: dict[str, Any] = {
        "map": "learned" if num_steps else "true",
        "fit_seconds": seconds_of_fit,
        "rooms": side * side,
        "places": room.num_places,
        "pairs": num_pairs,
        "short_and_arrived": 0,
    }
    if not state_of:
        return row
    begin = time.perf_counter()
    hierarchy = Hierarchy(whole)
    prepared = time.perf_counter() - begin
    pairs = np.random.default_rng(seed).integers(room.num_places, size=(num_pairs, 2)).tolist()
    flat, levels = [], []
    seconds = {"flat": 0.0, "levels": 0.0}
    for start, goal in (map(state_of.__getitem__, pair) for pair in pairs):
        begin = time.perf_counter()
        flat.append(plan(whole, start, goal))
        middle = time.perf_counter()
        levels.append(hierarchy.plan(start, goal))
        seconds["flat"] += middle - begin
        seconds["levels"] += time.perf_counter() - middle
    lengths = dict(nx.all_pairs_shortest_path_length(room.place_graph()))
    right = [
        one.num_steps == two.num_steps == lengths[start][goal]
        and walked(room, start, two.actions, NO_WALLS) == goal
        for (start, goal), one, two in zip(pairs, flat, levels, strict=True)
    ]
    far = np.argsort([one.num_steps for one in flat])[-max(1, num_pairs // 10) :]
    expanded = [np.array([one.num_expanded for one in found]) for found in (flat, levels)]
    return {
        **row,
        "short_and_arrived": sum(right),
        "communities": int(hierarchy.labels.max()) + 1,
        "gateways": len(hierarchy.gateways),
        "flat_expanded": expanded[0].mean(),
        "levels_expanded": expanded[1].mean(),
        "flat_expanded_far": expanded[0][far].mean(),
        "levels_expanded_far": expanded[1][far].mean(),
        "flat_ms": 1e3 * seconds["flat"] / num_pairs,
        "levels_ms": 1e3 * seconds["levels"] / num_pairs,
        "prepare_seconds": prepared,
        "num_prepared": hierarchy.num_prepared,
    }


def _map_of(room: Room, num_steps: int, seed: int) -> tuple[CognitiveMap, dict[int, int], float]:
    """The map of a room, the state of each place if it is exact, processor seconds of the fit."""
    truth = CognitiveMap.from_room(room)
    if not num_steps:
        return truth, {place: place for place in truth.states.tolist()}, 0.0
    walk = room.random_walk(num_steps, seed=[seed, 5])
    begin = time.process_time()
    found = CognitiveMap.from_result(fit_map(walk.batch(), seed=seed, progress=False))
    seconds = time.process_time() - begin
    place_of = isomorphism(found, truth) or {}
    return found, {place: state for state, place in place_of.items()}, seconds


def report(worlds: pd.DataFrame, levels: pd.DataFrame) -> str:
    """Both tables and the machine."""
    exact = worlds[worlds["exact"]]
    lines = [f"{len(exact)} of {len(worlds)} maps exact; plans on these:", ""]
    if len(exact):
        sums = exact.drop(columns=["seed", "exact"]).groupby("world", sort=False)
        shares = {
            "plans": ("pairs", "short", "arrived"),
            "bridges": ("bridges", "bridges_short", "bridges_arrived"),
            "detours": ("detours", "detours_short", "detours_arrived"),
            "shortcuts": ("shortcuts", "shortcuts_short", "shortcuts_arrived"),
            "never walked": ("unwalked", "unwalked_short", "unwalked_arrived"),
        }
        table = sums.agg(maps=("places", "size"), places=("places", "first"))
        for name, columns in shares.items():
            total, short, arrived = (sums[column].sum().astype(int) for column in columns)
            table[name] = [
                f"{min(s, a):,}/{t:,}" for t, s, a in zip(total, short, arrived, strict=True)
            ]
        refused = sums["detours_refused"].sum().astype(int)
        table["refused"] = [
            f"{r}/{a}"
            for r, a in zip(refused, sums["detours_apart"].sum().astype(int), strict=True)
        ]
        table["beliefs"] = [
            f"{a}/{n}"
            for a, n in zip(
                sums["drops_arrived"].sum().astype(int),
                sums["drops"].sum().astype(int),
                strict=True,
            )
        ]
        table["extra steps"] = sums["extra_steps"].mean().round(1)
        table["slippery"] = sums["steps_over_expected"].mean().round(3)
        table["learned"] = sums["learned_steps_over_expected"].mean().round(3)
        table["ms/plan"] = sums["ms_per_plan"].mean().round(2)
        lines += [
            table.to_string(),
            "",
            "right/all, right being as short as the true shortest path and arriving at the goal;",
            "detours after walls went up, shortcuts after half of them came down; refused: goals",
            "shut in by walls, with an error; never walked: no episode has both places; beliefs:",
            "walks from an unknown place that end at the goal, and their steps beyond the shortest",
            "path; slippery: mean steps of the best policy over those it expects; learned: the",
            "same of the policy on a slippery floor that was learned, from the map of the dry one.",
            "",
        ]
    if len(levels):
        lines += ["Flat and two-level planning on grids of rooms:", ""]
        lines += [levels.round(2).to_string(index=False), ""]
    return "\n".join([*lines, describe()])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", nargs="*", default=WORLDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of the usual length of the walks")
    parser.add_argument("--grids", nargs="*", type=int, default=[2, 3, 4, 6, 8])
    parser.add_argument(
        "--learned-grids",
        nargs="*",
        type=int,
        default=list(LEARNED_GRIDS),
        choices=list(LEARNED_GRIDS),
        help="grids that are learned from a walk",
    )
    parser.add_argument("--pairs", type=int, default=300, help="plans on each grid")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = list(product(options.worlds, options.seeds))
    worlds = pd.DataFrame(
        [world_row(world, seed, options.steps) for world, seed in tqdm(jobs, desc="worlds")]
    )
    grids = [(side, 0) for side in options.grids]
    grids += [(side, LEARNED_GRIDS[side]) for side in options.learned_grids]
    levels = pd.DataFrame(
        [level_row(side, options.pairs, num_steps=steps) for side, steps in tqdm(grids, "grids")]
    )
    worlds.to_csv(options.out / "planning_worlds.csv", index=False)
    levels.to_csv(options.out / "planning_levels.csv", index=False)
    text = report(worlds, levels) if len(worlds) else levels.to_string(index=False)
    (options.out / "planning.txt").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
