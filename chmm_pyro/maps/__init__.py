"""What a model has learned, as a graph: read, compare, score and edit it."""

from .cells import context_selectivity, noisy_evidence, noisy_filter, recognise
from .cognitive_map import CognitiveMap, Localisation, UncertainMapError
from .comparison import MapDifference, compare_maps, isomorphism
from .edges import EdgeTest, significant_edges
from .edits import block, open_edges, recurrent, without
from .scores import EdgeScores, MapScores, edge_scores, places_of_states, score_map
from .usage import place_fields, place_purity, state_usage, states_used

__all__ = [
    "CognitiveMap",
    "EdgeScores",
    "EdgeTest",
    "Localisation",
    "MapDifference",
    "MapScores",
    "UncertainMapError",
    "block",
    "compare_maps",
    "context_selectivity",
    "edge_scores",
    "isomorphism",
    "noisy_evidence",
    "noisy_filter",
    "open_edges",
    "place_fields",
    "place_purity",
    "places_of_states",
    "recognise",
    "recurrent",
    "score_map",
    "significant_edges",
    "state_usage",
    "states_used",
    "without",
]
