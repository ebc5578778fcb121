"""Learned maps as graphs: nodes in the colours of their symbols, edges as wide as their use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from ..distribution import CloneHMM
from ..maps.cognitive_map import CognitiveMap
from ..planning.plans import Plan
from ..sequences import SequenceBatch
from ..vocabulary import Vocabulary
from .colors import INK, PALETTE, axes_or_new, name_of, symbol_colors, text_color
from .graph_layout import unfold

__all__ = ["map_layout", "plot_consolidation", "plot_graph", "plot_map", "plot_plan"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Positions = Literal["unfold", "known"] | ArrayLike
Labels = Literal["auto", "symbol", "state", "none"]

# Diameters of nodes in lengths of an edge.
_SMALLEST, _LARGEST, _WITH_TEXT = 0.26, 0.62, 0.56
_CROWD = 0.24  # radius of the circle on which states of one place stand


class _Model(Protocol):
    """A :class:`~chmm_pyro.models.base.CloneModel`."""

    def distribution(self, batch: SequenceBatch) -> CloneHMM: ...


def map_layout(cognitive_map: CognitiveMap, positions: Positions = "unfold") -> FloatArray:
    """``(N, 2)`` x and y of each node, y upwards.

    Args:
        cognitive_map: the map.
        positions: ``"unfold"`` for distances that resemble numbers of steps, found from the edges
            alone, so that rooms look like rooms (a mirror image is the same map); ``"known"`` for
            the coordinates of the map, row and column; or ``(N, 2)`` x and y.

    Raises:
        ValueError: a map without coordinates, or positions of another shape.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 1], [2, -1]]))
        >>> map_layout(cognitive_map, "known").tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]]
    """
    if isinstance(positions, str):
        if positions == "unfold":
            return unfold(cognitive_map.num_nodes, _traffic(cognitive_map)[0])
        if positions != "known":
            raise ValueError(f"positions = {positions!r}, expected 'unfold', 'known' or an array.")
        if cognitive_map.positions is None or cognitive_map.positions.shape[1] != 2:
            raise ValueError(
                f"positions = 'known', but {cognitive_map} has no rows and columns, expected a map "
                "read from data with positions; use 'unfold'."
            )
        return _spread(cognitive_map.positions[:, ::-1] * [1, -1] + 0.0)  # no negative zeros
    xy = np.asarray(positions, dtype=float)
    if xy.shape != (cognitive_map.num_nodes, 2) or not np.isfinite(xy).all():
        raise ValueError(
            f"positions has shape {xy.shape}, expected finite ({cognitive_map.num_nodes}, 2): x "
            "and y of each node."
        )
    return xy


def plot_map(
    cognitive_map: CognitiveMap,
    ax: Axes | None = None,
    *,
    positions: Positions = "unfold",
    labels: Labels = "auto",
    arrows: bool = True,
    vocabulary: Vocabulary | None = None,
) -> Axes:
    """A map as a graph.

    Colours are symbols; nodes and edges grow with use.  All actions and both directions share an
    edge; staying at a node is not drawn.

    Args:
        cognitive_map: the map.
        ax: where; by default in a new figure.
        positions: as in :func:`map_layout`.
        labels: what is written on nodes; ``"auto"`` is the symbol if there are more than eight,
            which colours alone cannot tell apart.
        arrows: mark edges of one direction.
        vocabulary: what the symbols are called.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> ax = plot_map(CognitiveMap.from_room(Room([[0, 1], [2, 2]])))
        >>> ax.get_title()
        '4 places, 3 symbols'
    """
    ax = axes_or_new(ax)
    shown = np.unique(cognitive_map.symbols)
    if labels == "auto":
        labels = "symbol" if len(shown) > len(PALETTE) else "none"
    if labels not in ("symbol", "state", "none"):
        raise ValueError(f"labels = {labels!r}, expected 'auto', 'symbol', 'state' or 'none'.")
    texts = {
        "none": None,
        "state": [str(state) for state in cognitive_map.states.tolist()],
        "symbol": [name_of(symbol, vocabulary) for symbol in cognitive_map.symbols.tolist()],
    }[labels]
    xy = map_layout(cognitive_map, positions)
    _draw(ax, cognitive_map, xy, texts, arrows=arrows)
    if labels != "symbol":
        _legend(ax, shown.tolist(), vocabulary)
    ax.set_title(f"{cognitive_map.num_nodes} places, {len(shown)} symbols")
    return ax


def plot_graph(
    model: _Model,
    batch: SequenceBatch,
    ax: Axes | None = None,
    *,
    positions: Positions = "unfold",
    labels: Labels = "auto",
) -> Axes:
    """The map on the most probable path of a model, drawn as by :func:`plot_map`.

    Args:
        model: fitted model.
        batch: sequences to decode.
        ax: where; by default in a new figure.
        positions: as in :func:`map_layout`.
        labels: as in :func:`plot_map`.

    Raises:
        ValueError: data impossible under the model.
    """
    cognitive_map = CognitiveMap.from_model(model, batch, counts="path")
    ax = plot_map(
        cognitive_map, ax, positions=positions, labels=labels, vocabulary=batch.vocabulary
    )
    num_states = model.distribution(batch).clones.num_states
    ax.set_title(f"{cognitive_map.num_nodes} states of {num_states} used")
    return ax


def plot_plan(
    cognitive_map: CognitiveMap,
    plan: Plan,
    ax: Axes | None = None,
    *,
    positions: Positions = "unfold",
    vocabulary: Vocabulary | None = None,
) -> Axes:
    """A plan on its map: the numbered places that it visits, the others faded.

    Args:
        cognitive_map: the map, or one with other walls but the same states.
        plan: what to draw.
        ax: where; by default in a new figure.
        positions: as in :func:`map_layout`.
        vocabulary: what the symbols are called.

    Raises:
        ValueError: a plan over states that are not on the map.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> from chmm_pyro.planning import plan
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 1], [2, 2]]))
        >>> ax = plot_plan(cognitive_map, plan(cognitive_map, 0, 3))
        >>> [text.get_text() for text in ax.texts]
        ['0', '1', '2']
    """
    ax = axes_or_new(ax)
    nodes = cognitive_map.node_of(plan.states)
    texts = [""] * cognitive_map.num_nodes
    for step, node in enumerate(nodes.tolist()):
        texts[node] = str(step)
    xy = map_layout(cognitive_map, positions)
    _draw(ax, cognitive_map, xy, texts, path=nodes)
    _legend(ax, np.unique(cognitive_map.symbols).tolist(), vocabulary)
    steps = f"{plan.num_steps} step{'' if plan.num_steps == 1 else 's'}"
    certain = np.exp(plan.log_prob)
    ax.set_title(f"a plan of {steps}" + (f", probability {certain:.2g}" if certain < 1 else ""))
    return ax


def plot_consolidation(
    before: CognitiveMap,
    after: CognitiveMap,
    axes: Sequence[Axes] | NDArray[Any] | None = None,
    *,
    place_of: Mapping[int, int] | None = None,
    positions: Positions = "unfold",
    vocabulary: Vocabulary | None = None,
) -> NDArray[Any]:
    """A map before and after its duplicate states were merged.

    Args:
        before: the map of the fit.
        after: the map of the consolidated model.
        axes: two; by default in a new figure.
        place_of: for each state of ``before`` what it has become, from
            :func:`~chmm_pyro.maps.scores.places_of_states` of both decoded paths; its duplicates
            then stand around the same spot in both pictures.  Without it each map is unfolded by
            itself.
        positions: of ``after``, as in :func:`map_layout` (and of ``before``, without
            ``place_of``).
        vocabulary: what the symbols are called.

    Returns:
        ``(2,)`` the axes.
    """
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")[1]
    pair = np.asarray(axes).reshape(-1)
    if len(pair) != 2:
        raise ValueError(f"axes holds {len(pair)}, expected two: before and after.")
    xy = map_layout(after, positions)
    if place_of is None:
        old = map_layout(before, positions)
    else:
        missing = [state for state in before.states.tolist() if state not in place_of]
        if missing:
            raise ValueError(
                f"place_of has no state {missing[0]}, expected all of the map before; decode the "
                "data that both maps were read from."
            )
        old = _spread(xy[after.node_of([place_of[state] for state in before.states.tolist()])])
    # Duplicates are entered from here and left to there: arrows would hide everything else.
    plot_map(before, pair[0], positions=old, labels="none", arrows=False, vocabulary=vocabulary)
    plot_map(after, pair[1], positions=xy, labels="none", vocabulary=vocabulary)
    if (legend := pair[0].get_legend()) is not None:
        legend.remove()
    pair[0].set_title(f"before: {before.num_nodes} states")
    pair[1].set_title(f"after: {after.num_nodes} states")
    if place_of is not None:
        for ax in pair:
            ax.set(xlim=pair[1].get_xlim(), ylim=pair[1].get_ylim())
    return pair


# ---------------------------------------------------------------------------------- drawing


def _traffic(cognitive_map: CognitiveMap) -> tuple[IntArray, FloatArray, NDArray[np.bool_]]:
    """``(E, 2)`` pairs of different nodes, how often moved between, and whether both ways.

    The first node of a pair is where a one-way edge begins.
    """
    moves = cognitive_map.edges[:, [0, 2]]
    between = moves[:, 0] != moves[:, 1]
    moves, counts = moves[between], cognitive_map.counts[between]
    pairs, index = np.unique(np.sort(moves, axis=1), axis=0, return_inverse=True)
    used = np.bincount(index.reshape(-1), weights=counts, minlength=len(pairs)).astype(float)
    forward = np.bincount(index.reshape(-1), weights=moves[:, 0] < moves[:, 1])
    back = np.bincount(index.reshape(-1), weights=moves[:, 0] > moves[:, 1])
    pairs = np.where((forward > 0)[:, None], pairs, pairs[:, ::-1])
    return pairs, used, (forward > 0) & (back > 0)


def _spread(xy: FloatArray) -> FloatArray:
    """States of the same place (their means differ by less than half a step) around it."""
    _, spot, crowds = np.unique(np.round(2 * xy), axis=0, return_inverse=True, return_counts=True)
    spot = spot.reshape(-1)
    order = np.argsort(spot, kind="stable")
    rank = np.empty(len(xy))
    rank[order] = np.arange(len(xy)) - np.repeat(np.cumsum(crowds) - crowds, crowds)
    turn = 2 * np.pi * rank / crowds[spot] + np.pi / 4
    around = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return np.where((crowds[spot] > 1)[:, None], xy + _CROWD * around, xy)


def _draw(
    ax: Axes,
    cognitive_map: CognitiveMap,
    xy: FloatArray,
    texts: Sequence[str] | None,
    *,
    path: IntArray | None = None,
    arrows: bool = True,
) -> None:
    """Edges, nodes, a path over them, and texts; in this order, all in lengths of an edge."""
    pairs, used, both_ways = _traffic(cognitive_map)
    unit = _typical_length(xy, pairs)
    usage = np.sqrt(cognitive_map.usage / cognitive_map.usage.max())
    diameters = unit * (_SMALLEST + (_LARGEST - _SMALLEST) * usage)
    if texts is not None and path is None:
        diameters = np.maximum(diameters, unit * _WITH_TEXT)
    diameters = np.minimum(diameters, _room_for_nodes(xy))
    colors = symbol_colors(int(cognitive_map.symbols.max()) + 1)[cognitive_map.symbols]
    text_diameter = unit * _WITH_TEXT
    on_path = np.isin(np.arange(len(xy)), [] if path is None else path)
    if path is not None:
        # Places of the plan need room beside each other only, the faded ones lie behind them.
        diameters = np.minimum(unit * _SMALLEST, _room_for_nodes(xy))
        step = (
            _typical_length(xy, np.stack([path[:-1], path[1:]], axis=1)) if len(path) > 1 else unit
        )
        diameters[on_path] = np.minimum(step * _LARGEST, _room_for_nodes(xy[on_path]))
        text_diameter = float(np.median(diameters[on_path]))
        colors = np.where(on_path[:, None], colors, 0.4 * colors + 0.6)
    widths = 0.6 + 2.6 * np.sqrt(used / used.max(initial=1.0))
    ax.add_collection(
        LineCollection(
            [*xy[pairs]],
            colors=INK,
            linewidths=0.6 if path is not None else widths,
            alpha=0.45,
            zorder=1,
        )
    )
    for begin, end in pairs[~both_ways & arrows].tolist():
        _arrow(ax, xy[begin], xy[end], color=INK, linewidth=0.6, zorder=1.5)
    borders = to_rgba_array("white").repeat(len(xy), axis=0)
    if path is not None:
        borders[on_path] = to_rgba_array(INK)[0]
        ax.add_collection(LineCollection([xy[path]], colors="black", linewidths=3, zorder=2))
    order = np.argsort(on_path, kind="stable")
    ax.add_collection(
        EllipseCollection(
            diameters[order],
            diameters[order],
            np.zeros(len(xy)),
            units="xy",
            offsets=xy[order],
            offset_transform=ax.transData,
            facecolors=colors[order],
            edgecolors=borders[order],
            linewidths=0.8,
            zorder=3,
        )
    )
    margin = max(0.6 * unit, 0.55 * float(diameters.max()))
    (left, low), (right, high) = xy.min(0) - margin, xy.max(0) + margin
    ax.set(xlim=(left, right), ylim=(low, high))
    ax.set_aspect("equal")
    ax.set_axis_off()
    if texts is not None:
        _write(ax, xy, texts, colors, text_diameter)


def _typical_length(xy: FloatArray, pairs: IntArray) -> float:
    lengths = np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 1]], axis=1)
    return float(np.median(lengths)) if len(lengths) and np.median(lengths) > 0 else 1.0


def _room_for_nodes(xy: FloatArray) -> FloatArray:
    """``(N,)`` diameters at which no node overlaps its nearest neighbour."""
    if len(xy) < 2:
        return np.full(len(xy), np.inf)
    return 0.95 * KDTree(xy).query(xy, k=2)[0][:, 1]


def _arrow(ax: Axes, begin: FloatArray, end: FloatArray, **style: Any) -> None:
    """A head just beyond the middle of an edge."""
    middle = begin + 0.62 * (end - begin)
    head = FancyArrowPatch(
        tuple(begin + 0.5 * (end - begin)),
        tuple(middle),
        arrowstyle="-|>",
        mutation_scale=11,
        shrinkA=0,
        shrinkB=0,
        **style,
    )
    ax.add_patch(head)


def _write(
    ax: Axes, xy: FloatArray, texts: Sequence[str], colors: FloatArray, diameter: float
) -> None:
    """Texts as large as the nodes allow, in the figure as it is now."""
    box = ax.get_window_extent()
    points = 72 / ax.figure.dpi
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    scale = points * min(box.width / (right - left), box.height / (high - low))
    longest = max(map(len, texts))
    size = float(np.clip(scale * diameter / max(1.5, 0.75 * longest), 4, 14))
    for text, (x, y), color in zip(texts, xy, colors, strict=True):
        if text:
            ax.text(
                x,
                y,
                text,
                ha="center",
                va="center_baseline",
                fontsize=size,
                color=text_color(color),
                zorder=4,
                parse_math=False,
            )


def _legend(ax: Axes, symbols: list[int], vocabulary: Vocabulary | None) -> None:
    """A row for each symbol, where they are few enough."""
    if len(symbols) > 2 * len(PALETTE):
        return
    colors = symbol_colors(max(symbols) + 1)
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=8, color=tuple(colors[symbol]))
        for symbol in symbols
    ]
    legend = ax.legend(
        handles,
        [str(number) for number, _ in enumerate(symbols)],
        title="symbol",
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        handletextpad=0.2,
    )
    # Written afterwards: a legend leaves out names that begin with an underscore.
    for text, symbol in zip(legend.get_texts(), symbols, strict=True):
        text.set_parse_math(False)
        text.set_text(name_of(symbol, vocabulary))
