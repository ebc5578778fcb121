"""Whether a map is the true map under other names, and where it differs if not."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .cognitive_map import CognitiveMap

__all__ = ["MapDifference", "compare_maps", "isomorphism"]

_MOST_ANCHORS = 5  # starts tried when a map that is not isomorphic is laid over the truth

Edge = tuple[int, int, int]
Colours = tuple[list[int], list[int]]
Targets = list[list[int]]  # for each node and action, -1 where it was never tried


def isomorphism(
    cognitive_map: CognitiveMap,
    truth: CognitiveMap,
    *,
    tolerance: float = 0.05,
    negligible: float = 0.0,
) -> dict[int, int] | None:
    """The bijection of two maps' nodes that keeps symbols and labelled edges, if there is one.

    Every node and action must have been tried in both or in neither, and lead to the same nodes
    (the same support) with probabilities that differ by at most ``tolerance``.  Markers of episode
    starts are left out first, with :func:`~chmm_pyro.maps.edits.without` or
    :func:`~chmm_pyro.maps.edits.recurrent`.

    Nodes get colours, at first their symbols, refined by the colours that each action leads to
    and comes from until nothing changes.  Where several nodes still share a colour, one is tried
    as the partner of each in turn; on a connected deterministic map this decides all others, as a
    synchronised traversal from that pair would.

    Args:
        cognitive_map: usually a learned map.
        truth: usually ``CognitiveMap.from_room(room)``.
        tolerance: largest difference of two probabilities; irrelevant for deterministic maps.
        negligible: outcomes of at most this probability need not be in both maps.

    Returns:
        State of ``cognitive_map`` to state of ``truth``, or None; :func:`compare_maps` says why.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> room, turned = Room([[0, 1]]), Room([[1, 0]])
        >>> isomorphism(CognitiveMap.from_room(room), CognitiveMap.from_room(room))
        {0: 0, 1: 1}
        >>> isomorphism(CognitiveMap.from_room(room), CognitiveMap.from_room(turned)) is None
        True
    """
    if cognitive_map.num_nodes != truth.num_nodes:
        return None
    found, expected = _outcomes(cognitive_map), _outcomes(truth)
    likely = (
        [edge for edge, probability in outcomes.items() if probability > negligible]
        for outcomes in (found, expected)
    )
    edges = (next(likely), next(likely))
    start = (cognitive_map.symbols.tolist(), truth.symbols.tolist())
    for partner in _bijections(edges, start):
        images = {(partner[i], action, partner[j]): p for (i, action, j), p in found.items()}
        if all(
            abs(images.get(edge, 0.0) - expected.get(edge, 0.0)) <= tolerance
            for edge in images.keys() | expected.keys()
        ):
            names = truth.states[partner].tolist()
            return dict(zip(cognitive_map.states.tolist(), names, strict=True))
    return None


def _outcomes(cognitive_map: CognitiveMap) -> dict[Edge, float]:
    """The probability of each edge between node indices."""
    edges, probabilities = cognitive_map.edges.tolist(), cognitive_map.probabilities.tolist()
    return {(i, action, j): p for (i, action, j), p in zip(edges, probabilities, strict=True)}


def _bijections(edges: tuple[list[Edge], list[Edge]], colours: Colours) -> Iterator[list[int]]:
    """All pairings of node indices that no refinement of colours excludes."""
    one, other = _refine(edges, colours)
    sizes = Counter(one)
    if sizes != Counter(other):
        return
    shared = [colour for colour, size in sizes.items() if size > 1]
    if not shared:
        where = {colour: node for node, colour in enumerate(other)}
        yield [where[colour] for colour in one]
        return
    colour = min(shared, key=lambda shade: sizes[shade])
    node, unique = one.index(colour), len(one)  # refined colours are below the number of nodes
    for partner, shade in enumerate(other):
        if shade == colour:
            pair = ([*one], [*other])
            pair[0][node] = pair[1][partner] = unique
            yield from _bijections(edges, pair)


def _refine(edges: tuple[list[Edge], list[Edge]], colours: Colours) -> Colours:
    """Colours, the same for nodes of both maps, that depend on all neighbours' colours."""
    num_colours = len({*colours[0], *colours[1]})
    while True:
        signatures = []
        for shades, of in zip(colours, edges, strict=True):
            around: list[list[tuple[int, int, int]]] = [[] for _ in shades]
            for old, action, new in of:
                around[old].append((0, action, shades[new]))
                around[new].append((1, action, shades[old]))
            signatures.append(
                [(shade, *sorted(near)) for shade, near in zip(shades, around, strict=True)]
            )
        number = {s: k for k, s in enumerate(sorted({*signatures[0], *signatures[1]}))}
        colours = ([number[s] for s in signatures[0]], [number[s] for s in signatures[1]])
        if len(number) == num_colours:
            return colours
        num_colours = len(number)


@dataclass(frozen=True)
class MapDifference:
    """Where a map laid over the truth differs from it.

    Attributes:
        mapping: state to true state; several states may lie over one.
        unmapped_states: states that lie nowhere.
        missing_places: true states under no state.
        split_places: true states under several states, with these.
        missing_edges: true ``(state, action, state)`` that no edge of the map lies over.
        extra_edges: edges of the map, in its states, that lie over none of the truth.
        wrong_probabilities: edges ``(state, action, state, probability, true probability)`` that
            differ by more than the tolerance; the outcomes over one true state are added up.
    """

    mapping: dict[int, int]
    unmapped_states: list[int] = field(default_factory=list)
    missing_places: list[int] = field(default_factory=list)
    split_places: dict[int, list[int]] = field(default_factory=dict)
    missing_edges: list[tuple[int, int, int]] = field(default_factory=list)
    extra_edges: list[tuple[int, int, int]] = field(default_factory=list)
    wrong_probabilities: list[tuple[int, int, int, float, float]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether the maps are the same."""
        return not any(vars(self)[name] for name in vars(self) if name != "mapping")

    def __str__(self) -> str:
        if self.is_empty:
            return "the maps are isomorphic"
        counts = {
            name.replace("_", " "): len(value)
            for name, value in vars(self).items()
            if name != "mapping" and value
        }
        return ", ".join(f"{name}: {number}" for name, number in counts.items())


def compare_maps(
    cognitive_map: CognitiveMap,
    truth: CognitiveMap,
    *,
    mapping: Mapping[int, int] | None = None,
    tolerance: float = 0.05,
) -> MapDifference:
    """What is wrong with a map; nothing if it is isomorphic to the truth.

    Args:
        cognitive_map: usually a learned map.
        truth: the true one.
        mapping: state to true state, such as the place where each state occurs most often
            (:func:`~chmm_pyro.maps.scores.places_of_states`); by default the map is laid over the
            truth by an isomorphism or, if there is none, by walking through both in step from the
            pairs of nodes that fit best.
        tolerance: as in :func:`isomorphism`.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> found = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"))
        >>> truth = CognitiveMap.from_room(Room([[0, 1], [-1, 2]], walls="never"))
        >>> difference = compare_maps(found, truth)
        >>> difference.missing_edges, difference.extra_edges
        ([(1, 3, 2), (2, 2, 1)], [(1, 1, 2), (2, 0, 1)])
        >>> str(difference)
        'unmapped states: 1, missing places: 1, missing edges: 2, extra edges: 2'
    """
    if mapping is None:
        mapping = isomorphism(cognitive_map, truth, tolerance=tolerance)
    if mapping is None:
        mapping = _lay_over(cognitive_map, truth)
    over: dict[int, list[int]] = {place: [] for place in truth.states.tolist()}
    for state in cognitive_map.states.tolist():
        if state in mapping:
            over[mapping[state]].append(state)
    names, true_names = cognitive_map.states.tolist(), truth.states.tolist()
    expected = {
        (true_names[old], action, true_names[new]): float(probability)
        for (old, action, new), probability in zip(
            truth.edges.tolist(), truth.probabilities, strict=True
        )
    }
    extra: list[tuple[int, int, int]] = []
    seen: defaultdict[tuple[int, int, int], float] = defaultdict(float)
    sources: dict[tuple[int, int, int], tuple[int, int, int]] = {}
    for (old, action, new), probability in zip(
        cognitive_map.edges.tolist(), cognitive_map.probabilities.tolist(), strict=True
    ):
        edge = (names[old], action, names[new])
        image = (mapping.get(edge[0]), action, mapping.get(edge[2]))
        if image in expected:
            # Outcomes over one true state count together, each source by itself.
            key = (edge[0], action, mapping[edge[2]])
            seen[key] += probability
            sources[key] = edge
        else:
            extra.append(edge)
    images = {(mapping[state], action, place): None for state, action, place in seen}
    wrong: list[tuple[int, int, int, float, float]] = []
    for (state, action, place), probability in seen.items():
        true = expected[mapping[state], action, place]
        if abs(probability - true) > tolerance:
            old, action, new = sources[state, action, place]
            wrong.append((old, action, new, probability, true))
    return MapDifference(
        mapping=dict(mapping),
        unmapped_states=[state for state in names if state not in mapping],
        missing_places=[place for place, states in over.items() if not states],
        split_places={place: states for place, states in over.items() if len(states) > 1},
        missing_edges=[edge for edge in expected if edge not in images],
        extra_edges=extra,
        wrong_probabilities=wrong,
    )


def _lay_over(cognitive_map: CognitiveMap, truth: CognitiveMap) -> dict[int, int]:
    """The partial mapping under which most edges agree, among those from the best anchors."""
    found: dict[int, int] = {}
    targets = (cognitive_map.likely_targets.tolist(), truth.likely_targets.tolist())
    while True:
        best: dict[int, int] = found
        best_score = 0
        free = [n for n in (-cognitive_map.usage).argsort(kind="stable").tolist() if n not in found]
        for node in free[:_MOST_ANCHORS]:
            for partner in (truth.symbols == cognitive_map.symbols[node]).nonzero()[0].tolist():
                start = {**found, node: partner}
                mapping, score = _walk_in_step(cognitive_map, truth, targets, start, node)
                if score > best_score:
                    best, best_score = mapping, score
        if best_score == 0:
            names, true_names = cognitive_map.states.tolist(), truth.states.tolist()
            return {names[node]: true_names[partner] for node, partner in found.items()}
        found = best


def _walk_in_step(
    cognitive_map: CognitiveMap,
    truth: CognitiveMap,
    targets: tuple[Targets, Targets],
    mapping: dict[int, int],
    start: int,
) -> tuple[dict[int, int], int]:
    """Extend a mapping of node indices along equal actions; and how many edges agree."""
    agree, queue = 0, deque([start])
    while queue:
        node = queue.popleft()
        for target, partner in zip(targets[0][node], targets[1][mapping[node]], strict=False):
            if min(target, partner) < 0:
                continue
            if cognitive_map.symbols[target] != truth.symbols[partner]:
                continue
            if target not in mapping:
                mapping[target] = partner
                queue.append(target)
            agree += mapping[target] == partner
    return mapping, agree
