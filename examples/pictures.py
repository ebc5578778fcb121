"""The pictures of the README, made again: python examples/pictures.py --help."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.linalg import orthogonal_procrustes

from chmm_pyro import CloneStructure
from chmm_pyro.environments import published_room
from chmm_pyro.inference import fit_em, fit_map, fit_svi
from chmm_pyro.inference.consolidate import consolidate
from chmm_pyro.maps import CognitiveMap, block, isomorphism, noisy_filter, places_of_states
from chmm_pyro.models import PointCHMM
from chmm_pyro.planning import plan
from chmm_pyro.plotting import (
    map_layout,
    plot_clone_usage,
    plot_consolidation,
    plot_map,
    plot_place_fields,
    plot_plan,
    plot_room,
    plot_training,
)

FOLDER = Path(__file__).parent / "pictures"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "savefig.dpi": 150,
}
SEED = 0


def figure(width, height):
    return Figure(figsize=(width, height), layout="constrained")


def room_and_map(name, steps):
    """What the walker never sees, and what it makes of what it sees."""
    room = published_room(name)
    result = fit_map(room.random_walk(steps, seed=SEED).batch(), seed=SEED)
    cognitive_map = CognitiveMap.from_result(result)
    exact = isomorphism(cognitive_map, CognitiveMap.from_room(room)) is not None
    height, width = room.layout.shape
    picture = figure(9.5, 3.9 if width > height else 5.6)
    left, right = picture.subplots(1, 2)
    plot_room(room, left)
    left.set_title(f"the room: {room.num_places} places, {room.num_symbols} symbols")
    plot_map(cognitive_map, right, positions=turned(cognitive_map), labels="symbol")
    right.set_title(
        f"the map learned from {steps:,} steps: {cognitive_map.num_nodes} places, "
        f"{'exact' if exact else 'not exact'}"
    )
    return picture, cognitive_map, result


def turned(cognitive_map):
    """The layout found from the moves alone, turned (and mirrored) as the room is drawn."""
    xy, known = (map_layout(cognitive_map, kind) for kind in ("unfold", "known"))
    turn, _ = orthogonal_procrustes(xy - xy.mean(0), known - known.mean(0))
    return xy @ turn


def plan_and_detour(cognitive_map):
    """The same goal before and after a wall goes up; nothing is learned again."""
    xy = turned(cognitive_map)
    corners = xy @ np.array([[-1, 1], [1, 1]])  # how far to the upper left and right
    start, goal = cognitive_map.states[corners.argmax(0)].tolist()
    first = plan(cognitive_map, start, goal)
    pairs = walls_across(cognitive_map, xy)
    closed = block(cognitive_map, pairs, bump=True)
    second = plan(closed, start, goal)
    picture = figure(9.5, 3.6)
    left, right = picture.subplots(1, 2)
    plot_plan(cognitive_map, first, left, positions=xy)
    plot_plan(closed, second, right, positions=xy)
    left.get_legend().remove()
    for one, other in pairs:
        ends = xy[cognitive_map.node_of([one, other])]
        across = np.array([[0, -1], [1, 0]]) @ (ends[1] - ends[0]) / 2
        side = np.stack([ends.mean(0) - across, ends.mean(0) + across])
        right.plot(*side.T, color="black", linewidth=4, solid_capstyle="projecting")
    left.set_title(f"a plan of {first.num_steps} steps")
    right.set_title(f"{len(pairs)} walls later: a detour of {second.num_steps} steps")
    return picture


def walls_across(cognitive_map, xy):
    """Edges over the middle of the picture, all but the lowest two."""
    middle = (xy[:, 0].min() + xy[:, 0].max()) / 2
    ends = cognitive_map.edges[:, [0, 2]]
    crossing = (xy[ends[:, 0], 0] < middle) & (xy[ends[:, 1], 0] > middle)
    pairs = np.unique(ends[crossing], axis=0)
    lowest = np.argsort(xy[pairs].mean(1)[:, 1])
    return cognitive_map.states[pairs[lowest[2:]]].tolist()


def fits_of_the_room(steps, clones, iters):
    """The same start, climbed by gradients of the likelihood alone and by EM."""
    room = published_room("rectangular_room")
    batch = room.random_walk(steps, seed=SEED).batch()
    model = PointCHMM(CloneStructure([clones] * room.num_symbols), num_actions=4, seed=SEED)
    pseudocount = 4e-7 * steps
    return {
        "gradients, likelihood alone": fit_svi(model, batch, num_iters=iters, seed=SEED),
        "gradients, with prior": fit_svi(
            model, batch, num_iters=iters, pseudocount=pseudocount, seed=SEED
        ),
        "EM, with the same prior": fit_em(model, batch, num_iters=iters, pseudocount=pseudocount),
    }


def training(results):
    """Bits per step of the walk before each update."""
    picture = figure(6.5, 3.4)
    plot_training(results, picture.subplots())
    return picture


def consolidation(result):
    """A near perfect likelihood spreads places over many states; consolidating finds them."""
    batch = result.data
    merged = consolidate(result, batch)
    paths = [
        one.model.distribution(batch).posterior_mode(batch.obs).states for one in (result, merged)
    ]
    before, after = (
        CognitiveMap.from_model(one.model, batch, counts="path") for one in (result, merged)
    )
    picture = figure(9.5, 3.8)
    plot_consolidation(before, after, picture.subplots(1, 2), place_of=places_of_states(*paths))
    return picture, merged


def clone_usage(result, merged):
    """How many clones of each symbol are used before and after."""
    picture = figure(9.5, 4.6)
    for ax, one in zip(picture.subplots(2, 1), (result, merged), strict=True):
        clones = one.model.clones
        path = one.model.distribution(one.data).posterior_mode(one.data.obs).states
        plot_clone_usage(np.bincount(path, minlength=clones.num_states), clones, ax)
        ax.set_title(f"{'before' if one is result else 'after'}: {ax.get_title()}")
    return picture


def place_fields(result):
    """Where states are active on short walks: unsure of the start, with eyes that may err."""
    room = published_room("rectangular_room")
    batch = room.random_walk(12, seed=SEED, num_episodes=2_000).batch()
    beliefs = noisy_filter(result.model, batch, pseudocount=0.05)
    picture = figure(9.5, 4.1)
    plot_place_fields(beliefs, batch.positions, room, picture.subplots(2, 4))
    return picture


def save(picture, path):
    """As a small file: these pictures have few colours."""
    image = io.BytesIO()
    picture.savefig(image, format="png", bbox_inches="tight", pad_inches=0.05)
    Image.open(image).convert("RGB").quantize(128, dither=0).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the .png files go")
    parser.add_argument("--steps", type=int, default=50_000, help="length of the walk in the room")
    parser.add_argument("--clones", type=int, default=70, help="of each symbol, where given")
    parser.add_argument("--iters", type=int, default=150, help="updates of gradients and EM")
    parser.add_argument("--world", default="two_rooms_13x9", help="the second world")
    options = parser.parse_args()
    with mpl.rc_context(STYLE):
        room, cognitive_map, result = room_and_map("rectangular_room", options.steps)
        world, _, _ = room_and_map(options.world, options.steps)
        fits = fits_of_the_room(options.steps, options.clones, options.iters)
        alone = fits["gradients, likelihood alone"]
        merging, merged = consolidation(alone)
        pictures = {
            "room_and_map": room,
            "another_map": world,
            "plan_and_detour": plan_and_detour(cognitive_map),
            "training": training(fits),
            "consolidation": merging,
            "clone_usage": clone_usage(alone, merged),
            "place_fields": place_fields(result),
        }
        options.out.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            save(picture, options.out / f"{name}.png")


if __name__ == "__main__":
    main()
