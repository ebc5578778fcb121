"""The command ``chmm`` in this process, and data for it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pandas as pd
from typer.testing import CliRunner

from chmm_pyro.cli import app
from chmm_pyro.environments import ACTIONS, Room
from chmm_pyro.vocabulary import Vocabulary

__all__ = ["chmm", "done", "json_of", "walk_table"]


def chmm(*arguments: Any) -> Any:
    """Exit code, stdout and stderr; what is not handled is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(*arguments: Any) -> str:
    """What a command that has to succeed writes."""
    result = chmm(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def json_of(*arguments: Any) -> Any:
    """The record that it writes with ``--json``."""
    return json.loads(done(*arguments, "--json"))


def walk_table(
    room: Room, symbols: list[str], num_steps: int, episodes: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """What a newcomer might have: labels, episodes, positions."""
    walk = room.random_walk(num_steps, seed=seed, num_episodes=episodes)
    batch = replace(walk.batch(), vocabulary=Vocabulary(symbols))
    return replace(batch, action_vocabulary=Vocabulary(ACTIONS)).to_dataframe()
