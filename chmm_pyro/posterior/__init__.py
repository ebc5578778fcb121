"""What draws say: ArviZ groups, one numbering of clones, maps and their uncertainty."""

from .draws import PosteriorDraws, posterior_draws
from .inference_data import Group, to_inference_data
from .maps import MapPosterior, map_posterior
from .plots import (
    plot_clone_budgets,
    plot_co_assignment,
    plot_counts,
    plot_map_posterior,
    plot_plan_success,
    plot_predictive_check,
)
from .relabelling import Relabelling, StateRHat, relabel, state_rhat
from .summaries import co_assignment, log_predictive, log_predictive_steps, summary_table

__all__ = [
    "Group",
    "MapPosterior",
    "PosteriorDraws",
    "Relabelling",
    "StateRHat",
    "co_assignment",
    "log_predictive",
    "log_predictive_steps",
    "map_posterior",
    "plot_clone_budgets",
    "plot_co_assignment",
    "plot_counts",
    "plot_map_posterior",
    "plot_plan_success",
    "plot_predictive_check",
    "posterior_draws",
    "relabel",
    "state_rhat",
    "summary_table",
    "to_inference_data",
]
