"""Pictures of rooms, training, learned maps, plans and place fields.

Each function draws into the ``Axes`` it is given (or into a new figure), returns them, and never
shows or saves anything; without a display, figures are drawn in memory.
"""

from .colors import symbol_colors
from .graphs import map_layout, plot_consolidation, plot_graph, plot_map, plot_plan
from .rooms import plot_place_fields, plot_room
from .training import plot_objective, plot_training
from .usage import plot_clone_usage

__all__ = [
    "map_layout",
    "plot_clone_usage",
    "plot_consolidation",
    "plot_graph",
    "plot_map",
    "plot_objective",
    "plot_place_fields",
    "plot_plan",
    "plot_room",
    "plot_training",
    "symbol_colors",
]
