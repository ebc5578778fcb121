"""``chmm posterior``: what the draws of a run say, as tables and pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import MatplotlibDeprecationWarning
from matplotlib.figure import Figure

from ..atomic import write_atomically
from ..checkpoint import load_draws
from ..posterior.draws import PosteriorDraws
from ..posterior.inference_data import to_inference_data
from ..posterior.maps import map_posterior
from ..posterior.plots import plot_counts, plot_map_posterior, plot_predictive_check
from ..posterior.relabelling import relabel
from ..posterior.summaries import summary_table
from .figures import picture
from .options import (
    Action,
    AsJson,
    Episode,
    Observation,
    Position,
    PosteriorOut,
    Progress,
    Run,
    RunData,
    Seed,
)
from .outcome import pairs, show, shows_progress
from .runs import open_run

__all__ = ["posterior"]

_PRINTED = 10  # transitions; the file has more


def posterior(
    run: Run,
    data: RunData = None,
    out: PosteriorOut = None,
    observation: Observation = None,
    action: Action = None,
    episode: Episode = None,
    position: Position = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """What the draws of RUN say: a table by ArviZ, the certain and uncertain edges, pictures.

    [bold]chmm fit walk.csv --clones 15 --method gibbs[/bold]

    [bold]chmm posterior walk.run[/bold]

    What does not depend on how clones are numbered comes first; the rest is about clones that got
    one numbering in all draws. LOO is in bits per step, each step predicted from those before it.
    """
    folder = run / "posterior" if out is None else out
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file, expected a folder; choose another name.")
    model, values = load_draws(run)
    opened = open_run(
        run, data, observation=observation, action=action, episode=episode, position=position
    )
    bars = shows_progress(progress)
    draws = PosteriorDraws(model, opened.batch, values, has_prior=True, seed=seed)
    found = relabel(draws, progress=bars)
    idata = to_inference_data(found.draws, seed=seed, progress=bars)
    maps = map_posterior(found.draws, seed=seed, progress=bars)
    summary = summary_table(found.draws)
    edges = maps.edge_table()
    loo = _loo(idata, draws)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "summary.csv": summary.to_csv(index_label="quantity").encode(),
        "edges.csv": edges.to_csv(index=False).encode(),
        "chains.png": _chains(idata),
        "map.png": picture(_drawn(plot_map_posterior, maps, (7.5, 6))),
        "places.png": picture(_drawn(plot_counts, maps.num_places, (5, 3.5))),
        "predictive.png": picture(_drawn(plot_predictive_check, idata, (5, 4.5))),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    record = {
        "run": str(run),
        "data": str(opened.data),
        "method": opened.checkpoint.settings.get("method"),
        "num_chains": draws.shape[0],
        "num_draws": draws.shape[1],
        "summary": [{"quantity": name, **row} for name, row in summary.to_dict("index").items()],
        "loo": loo,
        "agreement_before": float(found.agreement_before.mean()),
        "agreement": float(found.agreement.mean()),
        "num_places": {
            "median": float(np.median(maps.num_places)),
            "5%": float(np.quantile(maps.num_places, 0.05)),
            "95%": float(np.quantile(maps.num_places, 0.95)),
        },
        "edges": edges.to_dict("records"),
        "out": str(folder),
        "files": list(contents),
    }
    show(record, _text(record, summary, edges), as_json=as_json)


def _loo(idata: Any, draws: PosteriorDraws) -> dict[str, float]:
    """Leave-one-step-out loss in bits per step, and how many steps it is unreliable for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pareto k is reported instead
        found = az.loo(idata, var_name="obs", pointwise=True)
    k = np.asarray(found.pareto_k)
    elpd = float(found.elpd if hasattr(found, "elpd") else found.elpd_loo)  # 1.x, 0.x
    se = float(found.se)
    scale = math.log(2) * len(k)
    return {
        "elpd": elpd,
        "bits_per_step": -elpd / scale,
        "se": se / scale,
        "share_of_pareto_k_above_0.7": float((k > 0.7).mean()),
    }


def _chains(idata: Any) -> bytes:
    """ArviZ's traces of what does not depend on numbering."""
    names = [name for name in ("log_prob", "num_used") if name in idata["posterior"]]
    with warnings.catch_warnings():
        # ArviZ 0.x uses what newer versions of Matplotlib deprecate.
        warnings.simplefilter("ignore", MatplotlibDeprecationWarning)
        if hasattr(az, "plot_trace_dist"):  # 1.x
            plots = az.plot_trace_dist(idata, var_names=names, backend="matplotlib")
            figure = plots.viz["figure"].item()
        else:
            figure = az.plot_trace(idata, var_names=names).ravel()[0].figure
            figure.set_layout_engine("constrained")
        content = picture(figure)
    plt.close(figure)
    return content


def _drawn(plot: Callable[[Any, Any], Any], what: Any, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    plot(what, figure.subplots())
    return figure


def _text(record: dict[str, Any], summary: pd.DataFrame, edges: pd.DataFrame) -> str:
    of_states = summary.index.str.startswith("transition[")
    shown = pd.concat([summary[~of_states], summary[of_states].head(_PRINTED)])
    certain = int((edges["inclusion"] >= 0.95).sum())
    loo = record["loo"]
    lines = {
        "draws": f"{record['num_chains']} chains of {record['num_draws']:,} ({record['method']})",
        "LOO": f"{loo['bits_per_step']:.4f} bits/step, standard error {loo['se']:.4f}",
        "same state": f"{record['agreement']:.3f} of the steps of two draws "
        f"({record['agreement_before']:.3f} as numbered by the sampler)",
        "places": "{median:g} ({5%:g} to {95%:g})".format(**record["num_places"]),
        "edges": f"{certain} certain (in 95 % of the draws) of {len(edges)} in any draw",
        "saved in": f"{record['out']}: {', '.join(record['files'])}",
    }
    return f"{shown.to_string(float_format='{:.4g}'.format)}\n\n{pairs(lines)}"
