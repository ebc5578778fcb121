"""Pictures hold what they should: counted, measured, and drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from worlds import exact_model

from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import EgocentricRoom, Room, bordered_room
from chmm_pyro.inference import fit_em, fit_svi, fit_viterbi
from chmm_pyro.inference.consolidate import consolidate
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.edits import open_edges, without
from chmm_pyro.maps.scores import places_of_states
from chmm_pyro.maps.usage import state_usage
from chmm_pyro.models import PointCHMM
from chmm_pyro.planning import Plan, plan
from chmm_pyro.plotting import (
    plot_clone_usage,
    plot_consolidation,
    plot_graph,
    plot_map,
    plot_objective,
    plot_place_fields,
    plot_plan,
    plot_room,
    plot_training,
    symbol_colors,
)
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.vocabulary import Vocabulary

ROOM = Room([[0, 1, 2], [2, 0, 1]], blocked=[((0, 0), (0, 1))])


@pytest.fixture(autouse=True)
def headless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    backend = mpl.get_backend()
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("a plot was shown"))
    yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.fixture
def batch() -> SequenceBatch:
    return ROOM.random_walk(num_steps=2000, seed=1).batch()


@pytest.fixture
def true_model() -> PointCHMM:
    """One state for each place, numbered symbol by symbol, with the room's own transitions."""
    order = np.argsort(ROOM.symbols, kind="stable")
    state = np.argsort(order)
    counts = np.zeros((4, 6, 6))
    for place, successors in enumerate(ROOM.next_place):
        counts[np.arange(4), state[place], state[successors]] = 1
    return PointCHMM.from_counts(CloneStructure([2, 2, 2]), counts)


def _drawn(ax: Axes) -> Axes:
    """Rendered, so that errors in drawing surface too."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    return ax


def _lines(ax: Axes) -> list[LineCollection]:
    return [c for c in ax.collections if isinstance(c, LineCollection)]


def _nodes(ax: Axes) -> NDArray[np.float64]:
    """Where the nodes stand."""
    (nodes,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    return np.asarray(nodes.get_offsets())


def test_room_shows_symbols_and_walls() -> None:
    room = Room([[0, 1, 2], [2, -1, 1]], blocked=[((0, 0), (0, 1))])
    ax = _drawn(plot_room(room))
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2", "2", "1"]
    image = ax.images[0].get_array()
    np.testing.assert_array_equal(image[1, 1], 1)  # the hole stays white
    np.testing.assert_array_equal(image[0, 2], symbol_colors(3)[2])
    walls = _lines(ax)[1].get_segments()
    # Ten sides of the outer wall less the hole's one, three sides of the hole, one wall twice.
    assert len(walls) == 9 + 3 + 2
    inner = [wall for wall in walls if np.allclose(wall, [[0.5, -0.5], [0.5, 0.5]])]
    assert len(inner) == 2


def test_given_axes_are_used_and_no_figure_is_made(true_model: PointCHMM, batch) -> None:
    axes = Figure().subplots(2, 2)
    result = fit_em(PointCHMM(true_model.clones, 4), batch, num_iters=2, progress=False)
    posterior = true_model.distribution(batch).filter(batch.obs)
    assert plot_room(ROOM, axes[0, 0]) is axes[0, 0]
    assert plot_training({"EM": result}, axes[0, 1]) is axes[0, 1]
    assert plot_graph(true_model, batch, axes[1, 0]) is axes[1, 0]
    cognitive_map = CognitiveMap.from_room(ROOM)
    route = plan(cognitive_map, 0, 5)
    assert plot_plan(cognitive_map, route, axes[1, 0]) is axes[1, 0]
    assert plot_map(cognitive_map, axes[1, 0]) is axes[1, 0]
    assert plot_clone_usage([1, 2, 3, 4, 5, 6], true_model.clones, axes[0, 1]) is axes[0, 1]
    assert plot_objective(result.objective_history, axes[0, 1]) is axes[0, 1]
    pair = axes[:, 0]
    assert list(plot_consolidation(cognitive_map, cognitive_map, pair)) == list(pair)
    assert list(plot_place_fields(posterior, batch.positions, ROOM, [axes[1, 1]])) == [axes[1, 1]]
    assert plt.get_fignums() == []


@pytest.mark.parametrize("x", ["iterations", "seconds"])
def test_training_curves_are_the_histories(x, batch: SequenceBatch) -> None:
    model = PointCHMM(CloneStructure([3, 3, 3]), 4)
    results = {
        "SVI": fit_svi(model, batch, num_iters=4, progress=False),
        "EM": fit_em(model, batch, num_iters=6, progress=False),
    }
    ax = _drawn(plot_training(results, x=x))
    curves = [line for line in ax.lines if line.get_linestyle() == "-"]
    for curve, result in zip(curves, results.values(), strict=True):
        np.testing.assert_array_equal(curve.get_ydata(), result.bits_per_step_history)
        expected = result.seconds_history if x == "seconds" else np.arange(result.num_iters)
        np.testing.assert_array_equal(curve.get_xdata(), expected)
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_texts()[1].get_text().startswith("EM: ")
    assert x.removesuffix("s") in ax.get_xlabel()


def test_training_refuses_what_has_no_curve(true_model: PointCHMM, batch) -> None:
    with pytest.raises(ValueError, match="results is empty"):
        plot_training({})
    with pytest.raises(ValueError, match="x = 'hours'"):
        plot_training({"EM": None}, x="hours")  # type: ignore[arg-type, dict-item]
    hard = fit_viterbi(true_model, batch, num_iters=1, progress=False)
    with pytest.raises(ValueError, match=r"results\['hard'\] has no log_prob_history"):
        plot_training({"hard": hard})


# ---------------------------------------------------------------------------------------- maps


def test_graph_has_the_true_nodes_and_edges(true_model: PointCHMM, batch) -> None:
    ax = _drawn(plot_graph(true_model, batch, labels="state"))
    assert len(_nodes(ax)) == 6
    segments = _lines(ax)[0].get_segments()
    assert len(segments) == 6  # seven sides between cells, one of them blocked
    lengths = [np.linalg.norm(a - b) for a, b in segments]
    np.testing.assert_allclose(lengths, 1, atol=0.15)
    assert sorted(text.get_text() for text in ax.texts) == list("012345")
    assert ax.get_title() == "6 states of 6 used"
    assert len(ax.patches) == 0  # every move can be undone


def test_colours_are_symbols_and_sizes_are_usage(true_model: PointCHMM, batch) -> None:
    cognitive_map = CognitiveMap.from_model(true_model, batch)
    ax = _drawn(plot_map(cognitive_map))
    (nodes,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    colors = symbol_colors(3)[cognitive_map.symbols]
    np.testing.assert_array_equal(nodes.get_facecolors(), colors)
    order = np.argsort(cognitive_map.usage)
    assert (np.diff(nodes.get_widths()[order]) >= 0).all()
    assert np.ptp(nodes.get_widths()) > 0.03
    assert nodes.get_widths().max() < 1  # neighbours never overlap
    narrow, wide = np.sort(_lines(ax)[0].get_linewidths())[[0, -1]]
    assert wide > narrow
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0", "1", "2"]


def test_known_positions(true_model: PointCHMM, batch) -> None:
    ax = _drawn(plot_graph(true_model, batch, positions="known"))
    by_symbol = ROOM.positions[np.argsort(ROOM.symbols, kind="stable")]
    np.testing.assert_allclose(_nodes(ax), by_symbol[:, ::-1] * [1, -1], atol=1e-12)
    moved = by_symbol + 5.0
    np.testing.assert_array_equal(_nodes(plot_graph(true_model, batch, positions=moved)), moved)


def test_states_of_one_place_do_not_hide_each_other(batch: SequenceBatch) -> None:
    model = fit_em(PointCHMM(CloneStructure([5, 5, 5]), 4), batch, num_iters=30, progress=False)
    drawn = _nodes(plot_graph(model.model, batch, positions="known"))
    apart = np.linalg.norm(drawn[:, None] - drawn, axis=-1) + 9 * np.eye(len(drawn))
    assert len(drawn) > 6
    assert apart.min() > 0.1


def test_one_way_edges_have_arrows() -> None:
    cognitive_map = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"))
    one_way = without(open_edges(cognitive_map, [(1, 0, 2)]), actions=[1])
    ax = _drawn(plot_map(one_way))
    assert len(_lines(ax)[0].get_segments()) == 1  # both lead between the same two places
    assert len(ax.patches) == 0
    ring = open_edges(cognitive_map, [(0, 1, 2), (2, 0, 1)])
    assert len(_drawn(plot_map(ring)).patches) == 2  # from 0 to 2 and from 1 to 0


@pytest.mark.parametrize("number", [3, 12])
def test_any_label_is_written_as_it_is(number: int) -> None:
    """Dollars are mathematics and underscores hidden, unless someone takes care."""
    names = ["$x_^", "_hidden", "<b>&", *"abcdefghi"][:number]
    cognitive_map = CognitiveMap.from_room(Room(np.arange(number)[None]))
    ax = _drawn(plot_map(cognitive_map, vocabulary=Vocabulary(names)))
    if number > 8:  # more than colours can tell apart: written on the nodes
        assert [text.get_text() for text in ax.texts] == names
        assert ax.get_legend() is None
    else:
        assert not ax.texts
        legend = ax.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == names


def test_a_plan_is_numbered_along_its_places() -> None:
    cognitive_map = CognitiveMap.from_room(ROOM)
    route = plan(cognitive_map, 0, 1)
    assert route.num_steps == 3  # around the wall
    ax = _drawn(plot_plan(cognitive_map, route, positions="known"))
    places = {text.get_text(): text.get_position() for text in ax.texts}
    expected = {
        str(k): tuple(ROOM.positions[p][::-1] * [1, -1]) for k, p in enumerate([0, 3, 4, 1])
    }
    assert places == expected
    line = _lines(ax)[1].get_segments()[0]
    np.testing.assert_array_equal(line, [expected[str(k)] for k in range(4)])
    assert ax.get_title() == "a plan of 3 steps"
    slippery = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"), slip=0.5)
    title = plot_plan(slippery, plan(slippery, 0, 2)).get_title()
    assert title == "a plan of 2 steps, probability 0.5"


def test_a_plan_can_be_read_on_a_crowded_map() -> None:
    """Poses of one cell lie close together; those of the plan stand out and do not overlap."""
    world = CognitiveMap.from_room(EgocentricRoom(bordered_room(7, 7, walls="never")))
    found = plan(world, 0, 150)
    ax = plot_plan(world, found)
    assert min(text.get_fontsize() for text in ax.texts) > 6
    (nodes,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    steps = len(found.states)  # drawn last, over the others
    where, widths = nodes.get_offsets()[-steps:], nodes.get_widths()
    assert widths[-steps:].min() > 1.5 * widths[:-steps].max()
    apart = np.linalg.norm(where[:, None] - where, axis=-1)[np.triu_indices(steps, 1)]
    touch = (widths[-steps:, None] + widths[-steps:])[np.triu_indices(steps, 1)] / 2
    assert (apart > touch).all()


def test_consolidation_shows_duplicates_around_what_they_have_become() -> None:
    room = Room([[0, 1], [2, 3]])
    batch = room.random_walk(3000, seed=0).batch()
    model, place_of = exact_model(room, split=3)
    before = CognitiveMap.from_model(model, batch)
    result = consolidate(model, batch)
    after = CognitiveMap.from_result(result)
    paths = [m.distribution(batch).posterior_mode(batch.obs).states for m in (model, result.model)]
    left, right = plot_consolidation(before, after, place_of=places_of_states(*paths))
    assert left.get_title() == f"before: {before.num_nodes} states" and before.num_nodes > 8
    assert right.get_title() == "after: 4 states"
    old, new = _nodes(_drawn(left)), _nodes(right)
    places = place_of[before.states]
    for place in range(4):
        spread = np.linalg.norm(
            old[places == place] - new[room.symbols.tolist().index(place)], axis=1
        )
        assert (spread < 0.25).all()
    with pytest.raises(ValueError, match="place_of has no state 0"):
        plot_consolidation(before, after, place_of={1: 0})
    with pytest.raises(ValueError, match="axes holds 1, expected two"):
        plot_consolidation(before, after, [left])


def test_maps_refuse_what_they_cannot_draw(true_model: PointCHMM, batch) -> None:
    unplaced = CognitiveMap.from_model(true_model, replace(batch, flat_positions=None))
    with pytest.raises(ValueError, match=r"positions = 'known', but .* has no rows and columns"):
        plot_map(unplaced, positions="known")
    with pytest.raises(ValueError, match=r"positions has shape \(3, 2\), expected finite \(6, 2\)"):
        plot_map(unplaced, positions=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="positions = 'random', expected 'unfold'"):
        plot_map(unplaced, positions="random")
    with pytest.raises(ValueError, match="labels = 'name', expected 'auto'"):
        plot_map(unplaced, labels="name")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="state 9 is not on the map"):
        plot_plan(unplaced, Plan((9,), (), 0.0, 0))


# -------------------------------------------------------------------------------------- clones


def test_clone_usage_counts_each_state(true_model: PointCHMM, batch) -> None:
    clones = CloneStructure([3, 1, 2])
    ax = _drawn(
        plot_clone_usage([5, 0.2, 90, 7, 0, 30], clones, vocabulary=Vocabulary(list("a$_")))
    )
    assert [bar.get_height() for bar in ax.patches] == [90, 5, 0.2, 7, 30, 0]
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert ticks == ["a\n2 of 3", "$\n1 of 1", "_\n1 of 2"]
    assert ax.get_title() == "4 of 6 states used"
    usage = state_usage(true_model.distribution(batch).smooth(batch.obs))
    assert usage.sum() == pytest.approx(batch.num_steps)
    for wrong in ([1, 2], [0] * 6, [math.nan] * 6):
        with pytest.raises(ValueError, match=r"expected \(6,\) steps"):
            plot_clone_usage(wrong, clones)


def test_objective_curves(true_model: PointCHMM, batch) -> None:
    hard = fit_viterbi(true_model, batch, num_iters=3, progress=False)
    ax = _drawn(plot_objective(hard.objective_history, label="path score (nats)"))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), hard.objective_history)
    assert ax.get_ylabel() == "path score (nats)"
    with pytest.raises(ValueError, match="history is empty"):
        plot_objective(np.array([]))


# ---------------------------------------------------------------------------------- place fields


def test_place_fields_show_the_most_used_states(true_model: PointCHMM, batch) -> None:
    posterior = true_model.distribution(batch).filter(batch.obs)
    axes = plot_place_fields(posterior, batch.positions, ROOM, num_states=4)
    _drawn(axes[0])
    assert len(axes) == 4
    usage = posterior.dense().sum(0)
    best = int(usage.argmax())
    assert axes[0].get_title().startswith(f"state {best}: ")
    field = axes[0].images[0].get_array()
    place = ROOM.positions[np.argsort(ROOM.symbols, kind="stable")][best]
    assert np.unravel_index(field.argmax(), field.shape) == tuple(place)
    assert field.max() == pytest.approx(1, abs=0.05)


def test_more_axes_than_states_stay_empty(true_model: PointCHMM, batch) -> None:
    posterior = true_model.distribution(batch).filter(batch.obs)
    axes = plot_place_fields(posterior, batch.positions, ROOM, Figure().subplots(2, 4))
    assert [ax.axison for ax in axes] == [True] * 6 + [False] * 2


# -------------------------------------------------------------------------------------- colours


def test_colours_are_stable_and_distinct() -> None:
    np.testing.assert_array_equal(symbol_colors(8)[:3], symbol_colors(3))
    assert len(np.unique(symbol_colors(50), axis=0)) == 50
    assert torch.as_tensor(symbol_colors(99)).isfinite().all()


# Simulated dichromats, matrices for linear RGB from Machado et al. 2009, IEEE TVCG 15:1291.
SEEN_AS = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    "trichromacy": np.eye(3).tolist(),
}


@pytest.mark.parametrize("vision", SEEN_AS)
def test_eight_colours_differ_for_every_eye(vision: str) -> None:
    rgb = np.array([to_rgb(tuple(color)) for color in symbol_colors(8)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab = _lab(np.clip(linear @ np.array(SEEN_AS[vision]).T, 0, 1))
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + 999 * np.eye(8)
    assert apart.min() > 15  # in CIELAB, where 2.3 can just be noticed


def _lab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    to_xyz = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
    xyz = linear @ np.array(to_xyz).T / [0.9505, 1, 1.0888]
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
