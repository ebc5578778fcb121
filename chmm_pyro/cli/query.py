"""``chmm eval``, ``chmm decode`` and ``chmm sample``: questions to a saved model."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import typer

from ..atomic import write_atomically
from ..checkpoint import Checkpoint, load_checkpoint
from ..inference.result import bits_per_step
from ..maps.usage import place_purity, states_used
from ..sequences import SequenceBatch
from ..vocabulary import Vocabulary
from .options import (
    Action,
    Actions,
    AsJson,
    Count,
    Data,
    Episode,
    First,
    Observation,
    Out,
    Position,
    Run,
    Seed,
    Steps,
    Unseen,
    Unseens,
)
from .outcome import bits_text, pairs, show
from .runs import open_run

__all__ = ["decode", "evaluate", "sample"]


def evaluate(
    run: Run,
    data: Data,
    unseen: Unseens = Unseen.ERROR,
    observation: Observation = None,
    action: Action = None,
    episode: Episode = None,
    position: Position = None,
    as_json: AsJson = False,
) -> None:
    """How well RUN predicts DATA: bits per step, states used, and purity where positions are known.

    [bold]chmm eval walk.run other_walk.csv[/bold]
    """
    opened = open_run(
        run,
        data,
        unseen=unseen.value,
        observation=observation,
        action=action,
        episode=episode,
        position=position,
    )
    checkpoint, batch, hmm = opened.checkpoint, opened.batch, opened.hmm
    bits = bits_per_step(checkpoint.model, batch)
    states = hmm.posterior_mode(batch.obs).states
    purity = None if batch.positions is None else place_purity(states, batch.positions)
    record = {
        "run": str(run),
        "data": str(data),
        "num_sequences": batch.num_sequences,
        "num_steps": batch.num_steps,
        "num_observed": batch.num_observed,
        "log_prob": -bits * np.log(2) * batch.num_observed,
        "bits_per_step": bits,
        "num_states": hmm.clones.num_states,
        "states_used": states_used(states),
        "place_purity": purity,
        "action_model": hmm.action_model,
    }
    lines = {
        "data": f"{batch.num_steps:,} steps, {batch.num_observed:,} observed",
        "bits/step": bits_text(bits),
        "log-likelihood": f"{record['log_prob']:.3f} nats",
        "states used": f"{record['states_used']} of {hmm.clones.num_states}",
    }
    if purity is not None:
        lines["state to place"] = f"{purity:.4f} purity"
    show(record, pairs(lines), as_json=as_json)


def decode(
    run: Run,
    data: Data,
    out: Out = None,
    unseen: Unseens = Unseen.ERROR,
    observation: Observation = None,
    action: Action = None,
    episode: Episode = None,
    as_json: AsJson = False,
) -> None:
    """The most probable hidden states of DATA, as a table with a row for each step.

    [bold]chmm decode walk.run walk.csv --out states.csv[/bold]

    States are numbered symbol by symbol; clone is the number within the symbol.
    """
    opened = open_run(
        run, data, unseen=unseen.value, observation=observation, action=action, episode=episode
    )
    checkpoint, batch, hmm = opened.checkpoint, opened.batch, opened.hmm
    path = hmm.posterior_mode(batch.obs)
    states = path.states[path.states >= 0].numpy()
    if as_json:
        ends = batch.offsets[1:-1].numpy()
        names = batch.names or range(batch.num_sequences)
        sequences = [
            {"episode": name, "states": part, "log_prob": score}
            for name, part, score in zip(
                names, np.split(states, ends), path.score.reshape(-1).tolist(), strict=True
            )
        ]
        show({"run": str(run), "data": str(data), "sequences": sequences}, "", as_json=True)
        return
    symbol = hmm.clones.symbol_of_state[states]
    frame = _steps(batch)
    frame["observation"] = _named(checkpoint.vocabulary, batch.flat_obs.numpy())
    frame["state"] = states
    frame["symbol"] = _named(checkpoint.vocabulary, symbol)
    frame["clone"] = states - hmm.clones.offsets[symbol]
    _write(frame, out)


def sample(
    run: Run,
    steps: Steps = None,
    actions: Actions = None,
    first: First = None,
    num: Count = 1,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Draw sequences from RUN, as a table that `chmm fit` can read.

    [bold]chmm sample walk.run --steps 20 --actions right,right,down[/bold]
    """
    checkpoint = load_checkpoint(run)
    model = checkpoint.model
    taken = None if actions is None else _codes(checkpoint.action_vocabulary, actions, "--actions")
    if taken is not None and max(taken) >= model.num_actions:
        raise ValueError(
            f"--actions holds {max(taken)}, expected actions below {model.num_actions}."
        )
    if steps is not None:
        length = steps
    elif taken is not None:
        length = len(taken) + 1
    else:
        raise ValueError("the length is open: give --steps, --actions or both; try --steps 20.")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        driven = _actions(checkpoint, taken, num, length - 1)
        plan = SequenceBatch.from_arrays(
            np.zeros((num, length), dtype=np.int64), driven, num_actions=model.num_actions
        )
        begin = None if first is None else _codes(checkpoint.vocabulary, first, "--first")[0]
        drawn = model.distribution(plan).sample(first_symbol=begin)
    batch = replace(
        SequenceBatch.from_arrays(drawn.numpy(), driven, num_actions=model.num_actions),
        vocabulary=checkpoint.vocabulary,
        action_vocabulary=checkpoint.action_vocabulary,
    )
    frame = batch.to_dataframe()
    if not as_json:
        _write(frame, out)
        return
    columns = [column for column in ("observation", "action") if column in frame]
    sequences = []
    for _, episode in frame.groupby("episode"):
        found = {column: episode[column].tolist() for column in columns}
        if "action" in found:
            del found["action"][-1]  # nothing follows the last step
        sequences.append(found)
    show({"run": str(run), "seed": seed, "sequences": sequences}, "", as_json=True)


def _steps(batch: SequenceBatch) -> pd.DataFrame:
    """The episode (where there are several) and the step of each row."""
    lengths = batch.offsets.diff().numpy()
    frame = pd.DataFrame({"step": np.concatenate([np.arange(n) for n in lengths])})
    if not batch.single:
        names: Any = batch.names or range(batch.num_sequences)
        frame.insert(0, "episode", np.repeat(np.fromiter(names, dtype=object), lengths))
    return frame


def _named(vocabulary: Vocabulary | None, symbols: Any) -> Any:
    if vocabulary is None:
        return pd.Series(symbols, dtype="Int64").mask(symbols < 0)
    return np.fromiter(vocabulary.decode(symbols), dtype=object)


def _codes(vocabulary: Vocabulary | None, text: str, option: str) -> list[int]:
    """Symbols of labels that were typed with commas."""
    labels = text.split(",")
    by_text: dict[str, Hashable] = {str(label): label for label in vocabulary or ()}
    codes = []
    for label in labels:
        if vocabulary is not None and label in by_text:
            codes.append(int(vocabulary.encode([by_text[label]])[0]))
        elif vocabulary is None and label.isdigit():
            codes.append(int(label))
        else:
            known = ", ".join(list(by_text)[:20]) or "numbers"
            raise ValueError(f"{option} holds {label!r}, expected labels with commas: {known}.")
    return codes


def _actions(
    checkpoint: Checkpoint, taken: list[int] | None, num: int, length: int
) -> np.ndarray[Any, Any]:
    """``(num, length)`` actions."""
    model = checkpoint.model
    if taken is not None:
        return np.tile(np.resize(np.array(taken), length), (num, 1))
    logits = model.action_logits
    weights = torch.ones(model.num_actions) if logits is None else logits.softmax(-1)
    drawn = torch.multinomial(weights, num * length, replacement=True) if length else weights[:0]
    return drawn.view(num, length).long().numpy()


def _write(frame: pd.DataFrame, out: Path | None) -> None:
    text = frame.to_csv(index=False)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomically(out, text.encode())
        typer.echo(f"{len(frame):,} rows in {out}", err=True)
