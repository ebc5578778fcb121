"""``chmm fit``: from a table of steps to a saved model."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer

from ..checkpoint import load_checkpoint, save_checkpoint
from ..clones import CloneStructure
from ..inference.em import fit_em
from ..inference.gumbel import fit_gumbel
from ..inference.map_fit import fit_map
from ..inference.result import FitResult, bits_per_step
from ..inference.svi import fit_svi
from ..inference.viterbi import fit_viterbi
from ..maps.usage import states_used
from ..models.base import CloneModel
from ..models.point import PointCHMM
from ..models.relaxed import RelaxedCHMM
from ..posterior.summaries import log_predictive
from ..sequences import SequenceBatch
from ..tables import BlockColumns
from .data import hold_out, in_symbols_of, read
from .fit_posterior import POSTERIOR_METHODS, fit_posterior
from .options import (
    Action,
    ActionModel,
    ActionModels,
    AsJson,
    BatchSize,
    Chains,
    Clones,
    Concentration,
    Data,
    Draws,
    Dtype,
    Dtypes,
    Episode,
    HeldOut,
    Iters,
    LearningRate,
    LearnInitial,
    Method,
    Methods,
    Observation,
    Position,
    Progress,
    Pseudocount,
    RunOut,
    Seed,
    Start,
    States,
    Sticks,
    Storage,
    Storages,
    Tol,
    Warmup,
)
from .outcome import INTERRUPTED, bits_text, check_possible, pairs, show, shows_progress

__all__ = ["fit"]

_MAX_DENSE = 50_000_000  # transition probabilities that are stored one by one


_DEFAULT_ITERS = {
    Method.SVI: 200,
    Method.EM: 100,
    Method.VITERBI: 100,
    Method.VB: 100,
    Method.GUMBEL: 300,
}
_OF_SAMPLERS = {"--chains", "--draws", "--warmup", "--concentration", "--sticks"}
_KNOWN = {
    Method.SVI: {"--iters", "--lr", "--batch-size", "--tol", "--pseudocount"},
    Method.EM: {"--iters", "--tol", "--pseudocount"},
    Method.VITERBI: {"--iters", "--pseudocount"},
    Method.MAP: {"--iters", "--pseudocount"},
    Method.VB: {"--iters", "--batch-size", "--tol", "--draws", "--concentration"},
    Method.GIBBS: _OF_SAMPLERS,
    Method.NUTS: _OF_SAMPLERS,
    Method.GUMBEL: {"--iters", "--lr"},
}


def fit(
    data: Data,
    clones: Clones = None,
    states: States = None,
    start: Start = None,
    method: Methods = Method.SVI,
    iters: Iters = None,
    lr: LearningRate = None,
    pseudocount: Pseudocount = 0.0,
    tol: Tol = None,
    batch_size: BatchSize = None,
    chains: Chains = None,
    draws: Draws = None,
    warmup: Warmup = None,
    concentration: Concentration = None,
    sticks: Sticks = None,
    held_out: HeldOut = None,
    seed: Seed = 0,
    action_model: ActionModels = ActionModel.CONDITIONAL,
    learn_initial: LearnInitial = False,
    storage: Storages = Storage.AUTO,
    dtype: Dtypes = None,
    observation: Observation = None,
    action: Action = None,
    episode: Episode = None,
    position: Position = None,
    out: RunOut = None,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Learn a model from DATA and save it as a RUN.

    [bold]chmm fit walk.csv --clones 20 --held-out 0.1[/bold]

    [bold]chmm fit walk.csv --method map[/bold] finds the number of states itself.

    [bold]chmm fit walk.csv --start walk.run --method gibbs --out walk.gibbs[/bold] samples models.

    Ctrl-C stops after the current update and saves what has been reached.
    """
    given = {
        "--iters": iters,
        "--lr": lr,
        "--pseudocount": pseudocount or None,
        "--tol": tol,
        "--batch-size": batch_size,
        "--chains": chains,
        "--draws": draws,
        "--warmup": warmup,
        "--concentration": concentration,
        "--sticks": sticks,
    }
    _refuse({name: given[name] for name in given if name not in _KNOWN[method]}, method)
    if method in POSTERIOR_METHODS and storage is not Storage.AUTO:
        _refuse({"--parameters": storage.value}, method)
    sizes = {"--clones": clones, "--states": states, "--start": start}
    if method is Method.MAP:
        unfit = {
            **sizes,
            "--action-model joint": action_model is ActionModel.JOINT or None,
            "--learn-initial": learn_initial or None,
            "--parameters": None if storage is Storage.AUTO else storage.value,
        }
        _refuse(unfit, method)
    elif sum(option is not None for option in sizes.values()) != 1:
        raise ValueError(
            "the number of hidden states is open: give one of --clones (for each symbol), "
            "--states (in all) or --start (an earlier fit); try --clones 20, or --method map, "
            "which finds the number itself."
        )
    run = data.with_suffix(".run") if out is None else out
    if run.exists() and not run.is_dir():
        raise ValueError(f"--out {run} is a file, expected a folder; choose another name.")
    batch = read(data, observation=observation, action=action, episode=episode, position=position)
    if start is not None:
        _refuse_size_options(start, method, action_model, learn_initial, storage, dtype)
        checkpoint = load_checkpoint(start)
        batch = in_symbols_of(batch, checkpoint)
    train, held = (batch, None) if held_out is None else hold_out(batch, held_out, seed)
    if start is not None:
        model = checkpoint.model
        check_possible(model.distribution(train), train.obs, f"{data} under {start}")
    elif method is not Method.MAP:
        model = _new_model(
            _structure(clones, states, train, batch.num_symbols),
            train,
            storage,
            seed=seed,
            learn_initial=learn_initial,
            action_model=action_model.value,
            dtype=torch.float32 if dtype is None else getattr(torch, dtype.value),
        )
    result = _run(
        method,
        None if method is Method.MAP else model,
        train,
        given,
        started=start is not None,
        learn_initial=learn_initial,
        action_model=action_model.value,
        dtype=None if dtype is None else getattr(torch, dtype.value),
        seed=seed,
        progress=shows_progress(progress),
    )
    save_checkpoint(
        run,
        result,
        settings={
            "data": str(data),
            "num_observed": train.num_observed,
            "columns": {
                "observation": observation,
                "action": action,
                "episode": episode,
                "position": position,
            },
            "held_out": held_out,
            "held_out_seed": None if held_out is None else seed,
            "start": start and str(start),
        },
    )
    _report(run, result, held, as_json)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


def _structure(
    clones: str | None, states: int | None, train: SequenceBatch, num_symbols: int
) -> CloneStructure:
    if states is not None:
        return CloneStructure.proportional(train.flat_obs, states, num_symbols=num_symbols)
    assert clones is not None
    try:
        counts = [int(count) for count in clones.split(",")]
    except ValueError as error:
        raise ValueError(f"--clones {clones}, expected a number or numbers with commas.") from error
    if len(counts) == 1:
        counts = counts * num_symbols
    if len(counts) != num_symbols:
        raise ValueError(
            f"--clones {clones} has {len(counts)} numbers, expected one, or one for each of the "
            f"{num_symbols} symbols."
        )
    return CloneStructure(counts)


def _new_model(
    clones: CloneStructure, batch: SequenceBatch, storage: Storage, **options: Any
) -> CloneModel:
    if storage is Storage.AUTO:
        dense = batch.num_actions * clones.num_states**2
        storage = Storage.SOFTMAX if dense <= _MAX_DENSE else Storage.BLOCKS
    if storage is Storage.BLOCKS:
        options["columns"] = BlockColumns.from_batch(clones, batch.num_actions, batch)
    return PointCHMM(clones, batch.num_actions, parameterization=storage.value, **options)


def _run(
    method: Method,
    model: CloneModel | None,
    train: SequenceBatch,
    given: dict[str, Any],
    *,
    started: bool,
    learn_initial: bool,
    action_model: str,
    dtype: torch.dtype | None,
    seed: int,
    progress: bool,
) -> FitResult:
    """Fit with the options that were given."""
    options: dict[str, Any] = {"seed": seed, "progress": progress}
    if model is None:
        if given["--iters"] is not None:
            options["num_iters"] = given["--iters"]
        # Its own pseudocount grows with the data.
        return fit_map(
            train, dtype=dtype or torch.float32, pseudocount=given["--pseudocount"], **options
        )
    if method in _DEFAULT_ITERS:
        options["num_iters"] = given["--iters"] or _DEFAULT_ITERS[method]
    if method in POSTERIOR_METHODS:
        return fit_posterior(
            method,
            model,
            train,
            given,
            started=started,
            learn_initial=model.initial.learned if started else learn_initial,
            action_model=model.action_model if started else action_model,
            dtype=dtype or torch.float64,
            **options,
        )
    if given["--lr"] is not None:
        options["learning_rate"] = given["--lr"]
    if method is Method.GUMBEL:
        found = fit_gumbel(RelaxedCHMM.from_model(model), train, **options)
        plain = copy.deepcopy(model)
        plain.load_state_dict(found.model.state_dict())
        return replace(found, model=plain)
    options["pseudocount"] = given["--pseudocount"] or 0.0
    if method is Method.VITERBI:
        return fit_viterbi(model, train, **{**options, "seed": None})
    if method is Method.EM:
        return fit_em(model, train, tol=given["--tol"], **options)
    return fit_svi(model, train, tol=given["--tol"], batch_size=given["--batch-size"], **options)


def _refuse(given: dict[str, Any], method: Method) -> None:
    for name, value in given.items():
        if value is not None:
            option = name if value is True else f"{name} {value}"
            raise ValueError(f"{option} does not apply to --method {method.value}; drop it.")


def _refuse_size_options(
    start: Path,
    method: Method,
    action_model: ActionModel,
    learn_initial: bool,
    storage: Storage,
    dtype: Dtype | None,
) -> None:
    """An earlier fit has decided these already."""
    given = {
        "--action-model": action_model is not ActionModel.CONDITIONAL,
        "--learn-initial": learn_initial,
        "--parameters": storage is not Storage.AUTO,
        "--dtype": dtype is not None and method not in POSTERIOR_METHODS,
    }
    for name, wrong in given.items():
        if wrong:
            raise ValueError(f"{name} does not apply to --start {start}, which has it; drop it.")


def _report(run: Path, result: FitResult, held: SequenceBatch | None, as_json: bool) -> None:
    train = result.data
    hmm = result.model.distribution(train)
    used = states_used(hmm.posterior_mode(train.obs).states)
    held_bits = None
    if held is not None and result.draws is not None:
        held_bits = -float(log_predictive(result, held).sum()) / (math.log(2) * held.num_observed)
    elif held is not None:
        held_bits = bits_per_step(result.model, held)
    record = {
        "run": str(run),
        "method": result.settings["method"],
        "num_iters": result.num_iters,
        "seconds": result.wall_time,
        "bits_per_step": result.bits_per_step,
        "held_out_bits_per_step": held_bits,
        "num_sequences": train.num_sequences,
        "num_steps": train.num_steps,
        "num_states": hmm.clones.num_states,
        "states_used": used,
        "draws": None if result.draws is None else list(result.draws["transition"].shape[:2]),
        "converged": result.converged,
        "interrupted": result.interrupted,
        "settings": result.settings,
    }
    lines = {"data": f"{train.num_steps:,} steps, {hmm.clones.num_symbols} symbols"}
    if result.settings["method"] == "map":
        outcome = "" if result.converged else "not "
        lines["map"] = (
            f"{used} states, {outcome}every move has one outcome; {result.num_iters} attempts in "
            f"{result.wall_time:.1f} s"
        )
    elif result.draws is not None and result.settings["method"] != "vb":
        number, kept = result.draws["transition"].shape[:2]
        lines["draws"] = (
            f"{number} chains of {kept:,} after {result.num_warmup:,} in {result.wall_time:.1f} s"
        )
    else:
        asked = result.settings["num_iters"]
        lines["updates"] = f"{result.num_iters:,} of {asked:,} in {result.wall_time:.1f} s"
    lines["bits/step"] = bits_text(result.bits_per_step)
    if held_bits is not None:
        lines["held out"] = f"{bits_text(held_bits)} bits/step"
    lines["states used"] = f"{used} of {hmm.clones.num_states}"
    lines["saved in"] = f"{run}{' (interrupted)' if result.interrupted else ''}"
    text = pairs(lines)
    show(record, text, as_json=as_json)
