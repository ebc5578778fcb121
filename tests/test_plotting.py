"""Pictures hold what they should: counted, measured, and drawn without a display."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import Room, published_room
from chmm_pyro.graph_layout import unfold
from chmm_pyro.inference import fit_em, fit_svi, fit_viterbi
from chmm_pyro.models import PointCHMM
from chmm_pyro.plotting import (
    plot_graph,
    plot_place_fields,
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


def _nodes(ax: Axes) -> list[PathCollection]:
    return [c for c in ax.collections if isinstance(c, PathCollection)]


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


def test_graph_has_the_true_nodes_and_edges(true_model: PointCHMM, batch) -> None:
    ax = _drawn(plot_graph(true_model, batch, labels=True))
    assert [len(nodes.get_offsets()) for nodes in _nodes(ax)] == [2, 2, 2]
    segments = _lines(ax)[0].get_segments()
    assert len(segments) == 6  # seven sides between cells, one of them blocked
    lengths = [np.linalg.norm(a - b) for a, b in segments]
    np.testing.assert_allclose(lengths, 1, atol=0.15)
    assert sorted(text.get_text() for text in ax.texts) == list("012345")
    assert ax.get_title() == "6 states of 6 used"


def test_graph_at_known_positions(true_model: PointCHMM, batch) -> None:
    ax = _drawn(plot_graph(true_model, batch, positions=batch.positions))
    drawn = np.concatenate([np.asarray(nodes.get_offsets()) for nodes in _nodes(ax)])
    by_symbol = ROOM.positions[np.argsort(ROOM.symbols, kind="stable")]
    np.testing.assert_allclose(drawn, by_symbol[:, ::-1] * [1, -1], atol=1e-12)


def test_states_of_one_place_do_not_hide_each_other(batch: SequenceBatch) -> None:
    model = fit_em(PointCHMM(CloneStructure([5, 5, 5]), 4), batch, num_iters=30, progress=False)
    ax = plot_graph(model.model, batch, positions=batch.positions)
    drawn = np.concatenate([np.asarray(nodes.get_offsets()) for nodes in _nodes(ax)])
    apart = np.linalg.norm(drawn[:, None] - drawn, axis=-1) + 9 * np.eye(len(drawn))
    assert len(drawn) > 6
    assert apart.min() > 0.01


def test_graph_of_a_batch_with_labels_leaves_rare_edges_out(true_model: PointCHMM) -> None:
    walk = ROOM.random_walk(num_steps=40, seed=2, num_episodes=3)
    batch = SequenceBatch.from_episodes(
        [
            (["abc"[i] for i in obs], actions)
            for obs, actions in zip(walk.obs, walk.actions, strict=True)
        ],
        vocabulary=Vocabulary(["a", "b", "c"]),
    )
    ax = _drawn(plot_graph(true_model, batch, min_count=10**6))
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    assert _lines(ax)[0].get_segments() == []


def test_graph_refuses_other_positions(true_model: PointCHMM, batch) -> None:
    with pytest.raises(ValueError, match=r"positions has shape \(3, 2\), expected \(2000, 2\)"):
        plot_graph(true_model, batch, positions=batch.positions[:3])


@pytest.mark.parametrize(
    "room", [published_room("rectangular_room"), Room(np.zeros((4, 9), int))], ids=["6x8", "4x9"]
)
def test_rooms_unfold_as_rooms(room: Room) -> None:
    steps = [(p, q) for p, row in enumerate(room.next_place.tolist()) for q in row if p < q]
    pairs = np.unique(steps, axis=0)
    shuffled = np.random.default_rng(1).permutation(room.num_places)
    drawn = unfold(room.num_places, np.sort(shuffled[pairs], axis=1))[shuffled]
    assert _misfit(drawn, room.positions.astype(float)) < 0.05


def _misfit(drawn: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Share of the variance that no rotation, reflection, shift and scale explains."""
    drawn, true = drawn - drawn.mean(0), true - true.mean(0)
    singular = np.linalg.svd(drawn.T @ true, compute_uv=False)
    return 1 - singular.sum() ** 2 / ((drawn**2).sum() * (true**2).sum())


def test_layout_keeps_twins_and_components_apart() -> None:
    twins = np.array([[0, 1], [0, 2], [1, 3], [2, 3]])  # 1 and 2 have the same neighbours
    other = np.array([[4, 5]])
    xy = unfold(7, np.concatenate([twins, other]))
    apart = np.linalg.norm(xy[:, None] - xy, axis=-1) + 9 * np.eye(7)
    assert apart.min() > 0.5
    assert xy[:4, 0].max() < xy[4:6, 0].min() < xy[6, 0]
    row, middle = [[0, 1], [1, 2]], [[3, 4], [4, 5]]
    grid = [*row, *middle, *np.add(row, 6), *([k, k + 3] for k in range(6))]
    # A second centre, which two dimensions cannot tell from the first by distances.
    again = unfold(10, np.array([*grid, *([k, 9] for k in (1, 3, 5, 7))]))
    assert np.linalg.norm(again[4] - again[9]) > 0.1
    big = np.stack([np.arange(400), np.arange(1, 401)], axis=1)
    assert np.isfinite(unfold(401, big)).all()


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


def test_colours_are_stable_and_distinct() -> None:
    np.testing.assert_array_equal(symbol_colors(8)[:3], symbol_colors(3))
    assert len(np.unique(symbol_colors(30), axis=0)) == 30
    assert torch.as_tensor(symbol_colors(30)).isfinite().all()
