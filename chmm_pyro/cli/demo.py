"""``chmm demo``: the published room learned by gradients and by EM, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from ..atomic import write_atomically
from ..checkpoint import save_checkpoint
from ..clones import CloneStructure
from ..environments.published import published_room
from ..environments.rooms import ACTIONS, Room
from ..inference.em import fit_em
from ..inference.result import FitResult
from ..inference.svi import fit_svi
from ..inference.viterbi import fit_viterbi
from ..maps.usage import place_purity, states_used
from ..models.base import CloneModel
from ..models.enumerated import EnumeratedCHMM
from ..models.point import PointCHMM
from ..plotting.graphs import plot_graph
from ..plotting.rooms import plot_place_fields, plot_room
from ..plotting.training import plot_training
from ..sequences import SequenceBatch
from ..vocabulary import Vocabulary
from .figures import picture
from .options import AsJson, Progress, Seed
from .outcome import INTERRUPTED, bits_text, show, shows_progress, table

__all__ = ["demo"]

_PSEUDOCOUNT_PER_STEP = 4e-7  # measured: 0.02 for 50,000 steps of the room
_SVI_UPDATES, _EM_UPDATES, _RATE = 150, 200, 0.3
_QUICK = {"steps": 5_000, "clones": 30, "updates": 100}


def demo(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where pictures, walk and models go.")
    ] = Path("chmm_demo"),
    steps: Annotated[
        int | None,
        typer.Option(min=100, metavar="N", help="Steps of the walk.", show_default="50,000"),
    ] = None,
    clones: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Clones of each of the four symbols.", show_default="70"
        ),
    ] = None,
    seed: Seed = 0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Seconds instead of a minute: 5,000 steps, 30 clones, 100 updates. It shows how "
            "everything works, but the maps it finds are not clean.",
        ),
    ] = False,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Watch the published 6x8 room being learned by exact gradients (SVI) and by EM.

    A walker sees one of 4 symbols at each of 48 places. Both methods start from the same random
    model and climb the same objective; each fit is then made crisp by Viterbi training.
    """

    def say(text: str) -> None:
        typer.echo(text, err=as_json)

    bars = shows_progress(progress)
    steps = steps or (_QUICK["steps"] if quick else 50_000)
    clones = clones or (_QUICK["clones"] if quick else 70)
    svi_updates, em_updates = (_QUICK["updates"],) * 2 if quick else (_SVI_UPDATES, _EM_UPDATES)
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    compiled = _compile_kernels()
    if compiled > 3:
        say(f"(first use: compiling the CPU kernels took {compiled:.0f} s)\n")
    say("1. One model, two programs: gradient of the same small room, 50 steps, float64")
    equality = _enumeration_against_messages(seed)
    say(equality.text)

    room = published_room("rectangular_room")
    walk = room.random_walk(num_steps=steps, seed=seed)
    batch = replace(walk.batch(), action_vocabulary=Vocabulary(ACTIONS))
    pseudocount = _PSEUDOCOUNT_PER_STEP * steps
    structure = CloneStructure([clones] * room.num_symbols)
    model = PointCHMM(structure, len(ACTIONS), seed=seed)
    say(
        f"\n2. The room: {room.num_places} places, {room.num_symbols} symbols; a walk of "
        f"{steps:,} steps, {clones} clones for each symbol, pseudocount {pseudocount:g}"
    )
    shared: dict[str, Any] = {"pseudocount": pseudocount, "seed": seed, "progress": bars}
    plan: dict[str, Callable[[dict[str, FitResult]], FitResult]] = {
        "svi": lambda _: fit_svi(
            model, batch, num_iters=svi_updates, learning_rate=_RATE, **shared
        ),
        "em": lambda _: fit_em(model, batch, num_iters=em_updates, **shared),
        "svi-viterbi": lambda done: fit_viterbi(done["svi"].model, batch, progress=bars),
        "em-viterbi": lambda done: fit_viterbi(done["em"].model, batch, progress=bars),
    }
    results: dict[str, FitResult] = {}
    interrupted = False
    for name, run in plan.items():
        results[name] = run(results)
        interrupted = results[name].interrupted
        if interrupted:
            break
    rows = [_row(name, result) for name, result in results.items()]
    files = _write(out, room, batch, results)
    floor = math.log2(structure.num_states) / steps
    say("\n" + _table_of(rows))
    say(
        f"\nA perfect map is unsure of the first state only: about log2({structure.num_states}) / "
        f"{steps:,} = {floor:.5f} bits/step.\n\nPictures, models and the walk are in {out}/:"
    )
    say("\n".join(f"  {name}" for name in files))
    say(
        f"\nThe same with your own data, here with the walk:\n"
        f"  chmm fit {out / 'walk.csv'} --clones {clones} --pseudocount {pseudocount:g}"
    )
    seconds = time.perf_counter() - began
    if interrupted:
        say("\nInterrupted: the last fit is what had been reached.")
    say(f"\n{seconds:.0f} s in all")
    if as_json:
        record = {
            "enumeration": equality.record,
            "num_places": room.num_places,
            "num_steps": steps,
            "pseudocount": pseudocount,
            "methods": rows,
            "out": str(out),
            "files": files,
            "seconds": seconds,
            "interrupted": interrupted,
        }
        show(record, "", as_json=True)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


# ----------------------------------------------------------------------------- two programs


class _Equality(NamedTuple):
    record: dict[str, Any]
    text: str


def _enumeration_against_messages(seed: int) -> _Equality:
    """Loss and gradient of the program that Pyro enumerates, and of the collapsed one."""
    room = Room([[0, 1, 2], [1, 2, 0], [2, 2, 1]])
    batch = room.random_walk(num_steps=50, seed=seed).batch()
    structure = CloneStructure([2, 3, 4])
    enumerated, collapsed = (
        kind(structure, len(ACTIONS), seed=seed, dtype=torch.float64)
        for kind in (EnumeratedCHMM, PointCHMM)
    )
    slow = _gradient(enumerated, TraceEnum_ELBO(max_plate_nesting=1), batch, repeats=3)
    fast = _gradient(collapsed, Trace_ELBO(), batch, repeats=50)
    scale = float(fast.gradient.abs().max())
    record = {
        "enumerated_loss": slow.loss,
        "collapsed_loss": fast.loss,
        "enumerated_seconds": slow.seconds,
        "collapsed_seconds": fast.seconds,
        "loss_difference": abs(slow.loss - fast.loss) / abs(fast.loss),
        "gradient_difference": float((slow.gradient - fast.gradient).abs().max()) / scale,
    }
    rows = [
        ["EnumeratedCHMM, TraceEnum_ELBO", f"{slow.loss:.10f}", f"{1e3 * slow.seconds:.2f} ms"],
        ["PointCHMM, exact messages", f"{fast.loss:.10f}", f"{1e3 * fast.seconds:.2f} ms"],
    ]
    text = table(["program", "loss (nats)", "one gradient"], rows)
    text += (
        f"\nlargest relative difference: loss {record['loss_difference']:.0e}, gradient "
        f"{record['gradient_difference']:.0e}"
    )
    return _Equality(record, text)


class _Gradient(NamedTuple):
    loss: float
    gradient: Tensor
    seconds: float


def _gradient(model: CloneModel, elbo: Any, batch: SequenceBatch, repeats: int) -> _Gradient:
    """Loss and gradient with respect to the transition logits, and the best of some times."""
    logits = model.transition.get_parameter("logits")
    seconds = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        loss = elbo.differentiable_loss(model, lambda _: None, batch)
        (gradient,) = torch.autograd.grad(loss, logits)
        seconds = min(seconds, time.perf_counter() - began)
    return _Gradient(float(loss.detach()), gradient, seconds)


def _compile_kernels() -> float:
    """Use every kernel once, so that no fit is charged for compiling; the seconds it took."""
    began = time.perf_counter()
    batch = SequenceBatch.from_arrays([0, 1, 0, 0, 1])
    for dtype in (torch.float32, torch.float64):
        model = PointCHMM(CloneStructure([2, 2]), num_actions=1, dtype=dtype)
        fit_svi(model, batch, num_iters=1, progress=False)
        fit_em(model, batch, num_iters=1, progress=False)
        fit_viterbi(model, batch, num_iters=1, progress=False)
    return time.perf_counter() - began


# --------------------------------------------------------------------------------- results

_TITLES = {
    "svi": "SVI (Adam, exact gradient)",
    "em": "EM (Baum-Welch)",
    "svi-viterbi": "SVI, then Viterbi training",
    "em-viterbi": "EM, then Viterbi training",
}


def _row(name: str, result: FitResult) -> dict[str, Any]:
    batch = result.data
    states = result.model.distribution(batch).posterior_mode(batch.obs).states
    assert batch.positions is not None
    return {
        "name": name,
        "method": _TITLES[name],
        "num_iters": result.num_iters,
        "seconds": result.wall_time,
        "bits_per_step": result.bits_per_step,
        "states_used": states_used(states),
        "place_purity": place_purity(states, batch.positions),
    }


def _table_of(rows: list[dict[str, Any]]) -> str:
    header = ["method", "iterations", "seconds", "bits/step", "states used", "state->place purity"]
    cells = [
        [
            row["method"],
            str(row["num_iters"]),
            f"{row['seconds']:.1f}",
            bits_text(row["bits_per_step"]),
            str(row["states_used"]),
            f"{row['place_purity']:.4f}",
        ]
        for row in rows
    ]
    return table(header, cells)


def _write(out: Path, room: Room, batch: SequenceBatch, results: dict[str, FitResult]) -> list[str]:
    """Pictures, the walk and the models; the names of what was written."""
    figures = {
        "room.png": _room_figure(room),
        "training.png": _training_figure(results),
        "graph.png": _graph_figure(batch, results),
        "place_fields.png": _place_field_figure(room, batch, results),
    }
    for name, figure in figures.items():
        write_atomically(out / name, picture(figure))
    write_atomically(out / "walk.csv", batch.to_dataframe().to_csv(index=False).encode())
    for name, result in results.items():
        save_checkpoint(out / name, result)
    return [*figures, "walk.csv", *(f"{name}/" for name in results)]


def _room_figure(room: Room) -> Figure:
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    plot_room(room, figure.subplots())
    return figure


def _training_figure(results: dict[str, FitResult]) -> Figure:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    curves = {_TITLES[name]: results[name] for name in ("svi", "em") if name in results}
    left, right = figure.subplots(1, 2, sharey=True)
    plot_training(curves, left, x="iterations")
    plot_training(curves, right, x="seconds")
    right.set_ylabel("")
    figure.suptitle("Learning the room: likelihood of the walk under the model being trained")
    return figure


def _crisp(results: dict[str, FitResult]) -> dict[str, FitResult]:
    """Of each method the fit after Viterbi training, if it got so far, by title."""
    found = [
        name if name in results else name.removesuffix("-viterbi")
        for name in ("svi-viterbi", "em-viterbi")
    ]
    return {_TITLES[name]: results[name] for name in found if name in results}


def _graph_figure(batch: SequenceBatch, results: dict[str, FitResult]) -> Figure:
    crisp = _crisp(results)
    figure = Figure(figsize=(7.5 * len(crisp), 6), layout="constrained")
    axes = figure.subplots(1, len(crisp), squeeze=False)[0]
    for ax, (title, result) in zip(axes, crisp.items(), strict=True):
        plot_graph(result.model, batch, ax)
        ax.set_title(f"{title}: {ax.get_title()}")
    figure.suptitle(
        "The learned maps, laid out by their transitions alone (a mirror image is the same map)"
    )
    return figure


def _place_field_figure(room: Room, batch: SequenceBatch, results: dict[str, FitResult]) -> Figure:
    title, result = next(iter(_crisp(results).items()))
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    with torch.no_grad():
        beliefs = result.model.distribution(batch).filter(batch.obs)
    assert batch.positions is not None
    plot_place_fields(beliefs, batch.positions, room, figure.subplots(3, 4))
    figure.suptitle(f"Place fields of the twelve most used states ({title})")
    return figure
