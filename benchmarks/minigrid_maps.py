"""Maps of MiniGrid worlds learned from what a walker sees: predictions, and plans carried out.

In each world a random walker records its partial egocentric views, ``fit_map`` learns a map from
them, and

- the map and n-grams predict the next view of a held-out walk;
- a plan made on the map leads from the start of an episode to the goal of the real environment;
- walkers put down at places unknown to them find the goal with ``navigate``.

Writes ``results/minigrid.csv``, and a picture ``results/minigrid_<world>.png`` of the first seed of
each world.  Runs that are in the CSV already are skipped, so the script can be stopped and started
again.  ``python benchmarks/minigrid_maps.py --help``.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib.pyplot as plt
import minigrid  # noqa: F401  (registers its environments)
import networkx as nx
import numpy as np
import pandas as pd
import torch
from matplotlib.collections import LineCollection
from numpy.typing import NDArray
from tqdm import tqdm

from chmm_pyro import MISSING, SequenceBatch
from chmm_pyro.environments import World
from chmm_pyro.environments.recorder import label_of, record
from chmm_pyro.inference import fit_map
from chmm_pyro.inference.result import FitResult, bits_per_step
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.scores import score_map
from chmm_pyro.planning import Plan, UnreachableError, plan
from chmm_pyro.planning.navigation import navigate
from chmm_pyro.plotting import map_layout

RESULTS = Path(__file__).parent / "results" / "minigrid.csv"
WORLDS = {  # steps of the recording, options of fit_map
    "MiniGrid-Empty-8x8-v0": (20_000, {}),
    "MiniGrid-SimpleCrossingS11N5-v0": (20_000, {}),
    "MiniGrid-FourRooms-v0": (200_000, {"num_clones": 1_500, "num_starts": 1, "num_repairs": 12}),
}
ACTIONS = ("turn left", "turn right", "forward")  # the others of MiniGrid's seven do nothing here
ORDERS = (1, 2, 4, 8, 16)

IntArray = NDArray[np.int64]


class Arrival(gymnasium.Wrapper):
    """The walker sees its 7x7 view and feels a reward; it has no compass and no mission."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        return self._seen(observation, 0.0), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, *rest = self.env.step(action)
        return self._seen(observation, float(reward)), reward, *rest

    def _seen(self, observation: Any, reward: float) -> dict[str, Any]:
        return {"arrived": int(reward > 0), "image": observation["image"]}


def explore(observation: Any, rng: np.random.Generator) -> int:
    """A random walk that goes forward half of the time."""
    return int(rng.choice(3, p=[0.25, 0.25, 0.5]))


class GridWorld:
    """The world that a seed draws, and the truth about it.

    Attributes:
        env: the environment.
        poses: ``{(row, column, heading): place}`` of all that can be reached.
        labels: what each place shows.
        targets: ``(P, 3)`` where the actions lead, the place itself at the goal.
        at_goal: ``(P,)`` places that end the episode.
    """

    def __init__(self, name: str, seed: int, max_steps: int = 1_000) -> None:
        self.env = Arrival(gymnasium.make(name, max_steps=max_steps))
        self.seed = seed
        self.reset()
        inner: Any = self.env.unwrapped
        grid = inner.grid
        first = (int(inner.agent_pos[1]), int(inner.agent_pos[0]), int(inner.agent_dir))
        self.poses, todo = {first: 0}, [first]
        self.labels: list[Any] = []
        targets: list[list[int]] = []
        for row, column, heading in todo:
            cell = grid.get(column, row)
            arrived = cell is not None and cell.type == "goal"
            self.put((row, column, heading))
            self.labels.append(label_of(self.env._seen(inner.gen_obs(), float(arrived))))
            targets.append([self.poses[row, column, heading]] * 3)
            for action in range(0 if arrived else 3):
                self.put((row, column, heading))
                inner.step(action)
                pose = (int(inner.agent_pos[1]), int(inner.agent_pos[0]), int(inner.agent_dir))
                if pose not in self.poses:
                    self.poses[pose] = len(todo)
                    todo.append(pose)
                targets[-1][action] = self.poses[pose]
        self.targets = np.array(targets)
        self.at_goal = np.array([label[0] == 1 for label in self.labels])

    def reset(self) -> Any:
        return self.env.reset(seed=self.seed)[0]

    def put(self, pose: tuple[int, int, int]) -> Any:
        """Put the walker down somewhere; returns what it sees."""
        inner: Any = self.env.unwrapped
        inner.agent_pos, inner.agent_dir = (pose[1], pose[0]), pose[2]
        return self.env._seen(inner.gen_obs(), 0.0)

    def record(self, num_steps: int, seed: int, **options: Any) -> SequenceBatch:
        return record(
            self.env, explore, num_steps, seed, actions=range(3), reset_seed=self.seed, **options
        )

    def places(self, batch: SequenceBatch) -> IntArray:
        """Where a recording was, as it is shaped."""
        poses = batch.positions.numpy().reshape(-1, 3)
        numbers = [self.poses.get(tuple(pose), MISSING) for pose in poses.tolist()]
        return np.reshape(numbers, batch.obs.shape)

    def arrivals(self, batch: SequenceBatch) -> list[int]:
        """The symbols of a recording that are seen at the goal."""
        return [symbol for symbol, label in enumerate(batch.vocabulary.labels) if label[0] == 1]

    def world(self, batch: SequenceBatch) -> World:
        """The truth in the symbols of a recording; nothing is tried at the goal."""
        return World(
            symbols=batch.vocabulary.encode(self.labels, unseen="missing"),
            positions=np.array(list(self.poses))[:, :2],
            next_place=self.targets,
            tried=np.repeat(~self.at_goal[:, None], 3, axis=1),
            action_names=ACTIONS,
        )

    def steps_to_goal(self) -> dict[int, int]:
        """Fewest actions from each place to the goal."""
        graph = nx.DiGraph((int(new), old) for old, row in enumerate(self.targets) for new in row)
        goals = set(np.flatnonzero(self.at_goal).tolist())
        return dict(nx.multi_source_dijkstra_path_length(graph, goals))


class NGram:
    """Predicts the symbol that most often followed the longest context seen in training.

    A context is the last ``order`` symbols with the actions that led on from them; an unseen one is
    shortened until it has been seen.
    """

    def __init__(self, batch: SequenceBatch, order: int) -> None:
        self.order = order
        self.followers: dict[Any, Counter[int]] = defaultdict(Counter)
        for *context, symbol in self._contexts(batch):
            for start in range(len(context)):
                self.followers[tuple(context[start:])][symbol] += 1
        self.best = {seen: count.most_common(1)[0][0] for seen, count in self.followers.items()}

    def accuracy(self, batch: SequenceBatch) -> float:
        right = [self._predict(context) == symbol for *context, symbol in self._contexts(batch)]
        return float(np.mean(right))

    def _predict(self, context: list[Any]) -> int | None:
        seen = (tuple(context[start:]) for start in range(len(context)))
        return next((self.best[tail] for tail in seen if tail in self.best), None)

    def _contexts(self, batch: SequenceBatch) -> Any:
        for one in batch:
            symbols, actions = one.obs.tolist(), one.actions.tolist()
            pairs = list(zip(symbols, actions, strict=False))
            for step, symbol in enumerate(symbols[1:], start=1):
                yield *pairs[max(0, step - self.order) : step], symbol


@torch.no_grad()
def map_accuracy(result: FitResult, batch: SequenceBatch) -> float:
    """How often the most probable next symbol, given all that was seen, is the one that comes."""
    model = result.model
    tables = model.transition.table().values.exp()
    emits = torch.eye(model.clones.num_symbols)[torch.tensor(model.clones.symbol_of_state)]
    right = []
    for one in batch:
        beliefs = model.distribution(one).filter(one.obs).dense()[:-1].float()
        guesses = torch.empty(len(beliefs), dtype=torch.long)
        for action, table in enumerate(tables.float()):
            at = one.actions == action
            guesses[at] = (beliefs[at] @ table @ emits).argmax(-1)
        right.append(guesses == one.obs[1:])
    return float(torch.cat(right).float().mean())


def plan_from_the_start(result: FitResult, found: CognitiveMap, goals: list[int]) -> Plan | None:
    """The most probable way from the state in which episodes begin; None if the map has no way.

    Where a map is not exact, the shortest way is often one that is not there.
    """
    batch = result.data
    paths = result.model.distribution(batch).posterior_mode(batch.obs).states
    try:
        start = int(torch.mode(paths[:, 0]).values)
        return plan(found, start, goals, criterion="probability")
    except UnreachableError:
        return None


def carried_out(world: GridWorld, actions: Sequence[int]) -> tuple[list[tuple[int, int]], bool]:
    """Rows and columns on the way, and whether it led to the goal; done without looking."""
    world.reset()
    inner: Any = world.env.unwrapped
    cells = [(int(inner.agent_pos[1]), int(inner.agent_pos[0]))]
    for action in actions:
        observation, _, over, *_ = world.env.step(action)
        cells.append((int(inner.agent_pos[1]), int(inner.agent_pos[0])))
        if over:
            return cells, observation["arrived"] == 1
    return cells, False


def navigated(
    world: GridWorld, batch: SequenceBatch, found: CognitiveMap, goals: list[int], trials: int
) -> dict[str, Any]:
    """From places drawn at random, which the walker is not told, to the goal."""
    rng = np.random.default_rng(0)
    fewest = world.steps_to_goal()
    poses = [pose for pose, place in world.poses.items() if fewest.get(place, 0) > 0]
    arrived, detours, arrivals = 0, [], world.arrivals(batch)
    for number in rng.choice(len(poses), size=trials):
        world.reset()
        first = world.put(poses[number])

        def symbol_of(observation: Any) -> int:
            return int(batch.vocabulary.encode([label_of(observation)], unseen="missing")[0])

        def act(action: int) -> int:
            return symbol_of(world.env.step(action)[0])

        try:
            journey = navigate(found, goals, act, first_symbol=symbol_of(first), max_steps=900)
        except ValueError:
            continue
        arrived += journey.obs[-1] in arrivals
        detours.append(len(journey.actions) / fewest[world.poses[poses[number]]])
    return {
        "navigated": arrived / trials,
        "navigated_steps_over_fewest": float(np.median(detours)) if detours else None,
    }


def run(
    name: str, seed: int, num_steps: int, options: dict[str, Any], picture: Path | None, trials: int
) -> dict[str, Any]:
    """One world: record, fit, predict, plan."""
    world = GridWorld(name, seed)
    batch = world.record(num_steps, seed=seed, progress=False)
    later = {"vocabulary": batch.vocabulary, "unseen": "missing", "progress": False}
    held_out = world.record(num_steps // 5, seed=seed + 10_000, **later)
    begin = time.perf_counter()
    result = fit_map(batch, seed=seed, **options)
    seconds = time.perf_counter() - begin
    found = CognitiveMap.from_result(result, counts="path")
    path = result.model.distribution(batch).posterior_mode(batch.obs).states.numpy()
    truth = world.world(batch)
    scores = score_map(found, CognitiveMap.from_room(truth), path, world.places(batch))
    goals = found.states[np.isin(found.symbols, world.arrivals(batch))].tolist()
    chosen = plan_from_the_start(result, found, goals)
    cells, arrived = carried_out(world, chosen.actions if chosen else ())
    row = {
        "world": name,
        "seed": seed,
        "num_steps": num_steps,
        "seconds": round(seconds, 1),
        "poses": len(world.poses),
        "views": batch.num_symbols,
        "confusable_pairs": len(truth.confusable_places()),
        **scores.as_row(),
        "difference": "" if scores.isomorphic else str(scores.difference).split("\n")[0],
        "held_out_bits_per_step": bits_per_step(result.model, held_out),
        "map_accuracy": map_accuracy(result, held_out),
        **{f"ngram_{n}_accuracy": NGram(batch, n).accuracy(held_out) for n in ORDERS},
        "plan_arrives": arrived,
        "plan_steps": chosen.num_steps if chosen else None,
        "fewest_steps": world.steps_to_goal()[0],
        **navigated(world, batch, found, goals, trials),
    }
    if picture is not None:
        draw(world, found, cells, row, picture)
    return row


def draw(
    world: GridWorld,
    found: CognitiveMap,
    cells: list[tuple[int, int]],
    row: dict[str, Any],
    path: Path,
) -> None:
    """The plan in the environment, the map unfolded from its edges alone, and the accuracies."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    world.reset()
    tile = 16
    left.imshow(world.env.unwrapped.get_frame(highlight=False, tile_size=tile))
    way = (np.array(cells) + 0.5) * tile
    left.plot(way[:, 1], way[:, 0], color="#e69f00", linewidth=3)
    reached = "reaches" if row["plan_arrives"] else "misses"
    left.set_title(f"a plan of {row['plan_steps']} actions {reached} the goal", fontsize=10)
    left.set_axis_off()
    xy = map_layout(found)
    pairs = np.unique(np.sort(found.edges[:, [0, 2]], axis=1), axis=0)
    middle.add_collection(LineCollection([*xy[pairs]], colors="#33333355", linewidths=0.6))
    column, height = found.positions[:, 1], found.positions[:, 0]
    shade = np.stack([column / column.max(), np.full_like(column, 0.45), height / height.max()], 1)
    middle.scatter(*xy.T, s=4_000 / len(xy), c=shade, zorder=2)
    middle.set_title(
        f"learned from views: {found.num_nodes} states, {row['poses']} true poses\n"
        "(red: column, blue: row)",
        fontsize=10,
    )
    middle.set_aspect("equal")
    middle.set_axis_off()
    names = [f"{n}-gram" for n in ORDERS] + ["map"]
    values = [row[f"ngram_{n}_accuracy"] for n in ORDERS] + [row["map_accuracy"]]
    bars = right.barh(names, values, color=["#999999"] * len(ORDERS) + ["#0072b2"])
    right.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
    right.set(xlim=(0, 1.12), xlabel="next view predicted, held-out walk")
    right.invert_yaxis()
    right.spines[["top", "right"]].set_visible(False)
    right.set_title(row["world"], fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of those of each world")
    parser.add_argument("--trials", type=int, default=50, help="walkers put down somewhere")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(options.out).to_dict("records") if options.out.exists() else []
    known = {(row["world"], row["seed"], row["num_steps"]) for row in rows}
    todo = []
    for name in options.worlds:
        default, settings = WORLDS.get(name, (20_000, {}))
        steps = options.steps or default
        todo += [(name, seed, steps, settings) for seed in options.seeds]
    for job in tqdm([job for job in todo if job[:3] not in known], desc="runs"):
        name, seed, *_ = job
        picture = options.out.with_name(f"minigrid_{name.split('-')[1]}.png")
        first = seed == options.seeds[0]
        rows.append(run(*job, picture if first else None, options.trials))
        pd.DataFrame(rows).round(5).to_csv(options.out, index=False)
    table = pd.DataFrame(rows)
    shown = ["world", "seed", "poses", "num_nodes", "purity", "isomorphic", "map_accuracy"]
    shown += ["ngram_1_accuracy", "ngram_16_accuracy", "plan_arrives", "navigated", "seconds"]
    with pd.option_context("display.width", 200, "display.max_columns", 20):
        print(table[shown].to_string(index=False))


if __name__ == "__main__":
    main()
