"""The command ``chmm`` as people and scripts use it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from shell import chmm as _chmm
from shell import done as _done
from shell import json_of as _json
from shell import walk_table

from chmm_pyro import environments, inference
from chmm_pyro.checkpoint import load_checkpoint, save_checkpoint
from chmm_pyro.cli import data, demo, fit
from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import Room
from chmm_pyro.models import PointCHMM
from chmm_pyro.sequences import SequenceBatch

ROOM = Room([[0, 1, 2], [2, 0, 1]])
SYMBOLS = ["red", "green", "blue"]


def _table(num_steps: int = 300, episodes: int | None = 4, seed: int = 0) -> pd.DataFrame:
    """What a newcomer might have: labels, episodes, positions."""
    return walk_table(ROOM, SYMBOLS, num_steps, episodes, seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and a model fitted to it."""
    folder = tmp_path_factory.mktemp("cli")
    _table().to_csv(folder / "walk.csv", index=False)
    _done("fit", folder / "walk.csv", "--clones", 4, "--iters", 40, "--pseudocount", 0.001)
    return folder


# ------------------------------------------------------------------------------- the whole way


def test_a_newcomers_table_from_fit_to_sample(tmp_path: Path) -> None:
    table = _table().rename(columns={"observation": "colour", "action": "move"})
    table.loc[5, "colour"] = None
    table.to_csv(tmp_path / "walk.csv", index=False)
    columns = ("--observation", "colour", "--action", "move")
    fitted = _json(
        *("fit", tmp_path / "walk.csv", "--clones", 5, "--iters", 60, "--held-out", 1),
        *("--pseudocount", 0.001, "--seed", 1, *columns),
    )
    run = tmp_path / "walk.run"
    assert fitted["run"] == str(run)
    assert fitted["num_iters"] == 60
    assert (fitted["num_sequences"], fitted["num_states"]) == (3, 15)
    assert fitted["bits_per_step"] < 0.5
    assert fitted["held_out_bits_per_step"] < 0.6

    loaded = load_checkpoint(run)
    assert set(loaded.vocabulary or ()) == set(SYMBOLS)
    batch = SequenceBatch.from_file(
        tmp_path / "walk.csv",
        observation="colour",
        action="move",
        vocabulary=loaded.vocabulary,
        action_vocabulary=loaded.action_vocabulary,
    )
    scored = _json("eval", run, tmp_path / "walk.csv", *columns)
    assert scored["bits_per_step"] == inference.bits_per_step(loaded.model, batch)
    assert scored["num_observed"] == scored["num_steps"] - 1
    assert 0.9 < scored["place_purity"] <= 1

    decoded = pd.read_csv(_saved(tmp_path, "decode", run, tmp_path / "walk.csv", *columns))
    path = loaded.model.distribution(batch).posterior_mode(batch.obs).states
    np.testing.assert_array_equal(decoded["state"], path[path >= 0])
    assert list(decoded.columns) == ["episode", "step", "observation", "state", "symbol", "clone"]
    seen = decoded["observation"].notna()
    assert (decoded["observation"] == decoded["symbol"])[seen].all()
    assert seen.sum() == len(decoded) - 1

    drawn = _saved(tmp_path, "sample", run, "--steps", 50, "--num", 3)
    again = _json("fit", drawn, "--clones", 3, "--iters", 2)
    assert (again["num_sequences"], again["num_steps"]) == (3, 150)


def _saved(folder: Path, *arguments: Any) -> Path:
    out = folder / f"{arguments[0]}.csv"
    assert _done(*arguments, "--out", out) == ""
    return out


def test_text_output_says_the_same_as_json(folder: Path) -> None:
    arguments = ("eval", folder / "walk.run", folder / "walk.csv")
    record, text = _json(*arguments), _done(*arguments)
    assert f"{record['bits_per_step']:.5f}" in text
    assert f"{record['states_used']} of 12" in text
    assert f"{record['place_purity']:.4f} purity" in text
    assert record["log_prob"] == pytest.approx(
        -record["bits_per_step"] * np.log(2) * record["num_observed"]
    )


# ---------------------------------------------------------------------------------------- fitting


def test_fit_is_the_library_fit(folder: Path, tmp_path: Path) -> None:
    _done(
        *("fit", folder / "walk.csv", "--method", "em", "--clones", "2,3,4", "--iters", 7),
        *("--pseudocount", 0.1, "--seed", 3, "--dtype", "float64", "--learn-initial"),
        *("--out", tmp_path / "run"),
    )
    batch = SequenceBatch.from_file(folder / "walk.csv")
    model = PointCHMM(
        CloneStructure([2, 3, 4]), 4, seed=3, learn_initial=True, dtype=fit.torch.float64
    )
    expected = inference.fit_em(model, batch, num_iters=7, pseudocount=0.1, progress=False)
    loaded = load_checkpoint(tmp_path / "run")
    for name, tensor in expected.model.state_dict().items():
        assert fit.torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.settings["data"] == str(folder / "walk.csv")


def test_viterbi_training_goes_on_from_another_fit(folder: Path, tmp_path: Path) -> None:
    crisp = _json(
        *("fit", folder / "walk.csv", "--start", folder / "walk.run", "--method", "viterbi"),
        *("--out", tmp_path / "crisp"),
    )
    before = _json("eval", folder / "walk.run", folder / "walk.csv")
    assert crisp["converged"]
    assert crisp["bits_per_step"] < before["bits_per_step"]
    assert load_checkpoint(tmp_path / "crisp").settings["start"] == str(folder / "walk.run")


def test_a_map_needs_no_number_of_clones(folder: Path, tmp_path: Path) -> None:
    _table(2000).to_csv(tmp_path / "walk.csv", index=False)
    options = ("fit", tmp_path / "walk.csv", "--method", "map", "--seed", 2)
    record = _json(*options)
    assert (record["method"], record["states_used"]) == ("map", ROOM.num_places)
    assert record["converged"]
    assert _json("eval", tmp_path / "walk.run", tmp_path / "walk.csv")["place_purity"] == 1
    assert "every move has one outcome" in _done(*options, "--iters", 20, "--pseudocount", 0.001)
    loaded = load_checkpoint(tmp_path / "walk.run")
    assert (loaded.settings["num_iters"], loaded.settings["pseudocount"]) == (20, 0.001)


@pytest.mark.parametrize(
    ("options", "check"),
    [
        (["--states", "11"], lambda model: model.clones.num_states == 11),
        (["--clones", "3,1,2"], lambda model: model.clones.num_clones == (3, 1, 2)),
        (["--clones", "2", "--parameters", "counts"], lambda m: hasattr(m.transition, "counts")),
        (["--clones", "2", "--parameters", "blocks"], lambda m: hasattr(m.transition, "columns")),
        (["--clones", "2", "--action-model", "joint"], lambda m: m.action_model == "joint"),
    ],
)
def test_kinds_of_models(
    options: list[str], check: Callable[[Any], bool], folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    _done("fit", folder / "walk.csv", *options, "--iters", 2, "--out", run)
    assert check(load_checkpoint(run).model)
    _done("eval", run, folder / "walk.csv")


def test_large_models_store_observed_blocks_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "_MAX_DENSE", 4 * 6 * 6 - 1)
    run = tmp_path / "run"
    _done("fit", folder / "walk.csv", "--clones", 2, "--iters", 2, "--out", run)
    assert hasattr(load_checkpoint(run).model.transition, "columns")


def test_the_end_of_a_single_sequence_is_held_out(tmp_path: Path) -> None:
    _table(200, episodes=None).to_csv(tmp_path / "one.csv", index=False)
    record = _json("fit", tmp_path / "one.csv", "--clones", 3, "--iters", 5, "--held-out", 0.25)
    assert record["num_steps"] == 150
    batch = SequenceBatch.from_file(tmp_path / "one.csv")
    train, held = data.hold_out(batch, 0.25, seed=0)
    np.testing.assert_array_equal(np.concatenate([train.obs, held.obs]), batch.obs)
    np.testing.assert_array_equal(train.actions, batch.actions[:149])
    np.testing.assert_array_equal(held.actions, batch.actions[150:])
    assert train.flat_actions[-1] == held.flat_actions[-1] == 0  # they lead nowhere
    np.testing.assert_array_equal(held.positions, batch.positions[150:])
    loaded = load_checkpoint(tmp_path / "one.run")
    assert record["held_out_bits_per_step"] == inference.bits_per_step(loaded.model, held)


def test_held_out_data_may_be_impossible(tmp_path: Path) -> None:
    table = pd.DataFrame({"episode": [0] * 8 + [1] * 3, "observation": list("abababab" + "aab")})
    table.to_csv(tmp_path / "t.csv", index=False)
    seed = next(
        s
        for s in range(20)
        if SequenceBatch.from_file(tmp_path / "t.csv").split(1, seed=s)[1].num_steps == 3
    )
    options = ("fit", tmp_path / "t.csv", "--clones", 1, "--method", "em", "--held-out", 1)
    record = _json(*options, "--seed", seed)
    assert record["held_out_bits_per_step"] is None
    assert "inf" in _done(*options, "--seed", seed)


@pytest.mark.parametrize("method", [["em"], ["gibbs", "--draws", 3, "--warmup", 1]], ids=str)
@pytest.mark.parametrize(
    ("seen", "part"), [(["a", "b", None, None], "keeps out"), ([None, None, "a", "b"], "training")]
)
def test_a_part_without_observations_is_refused_before_the_fit(
    tmp_path: Path, method: list[Any], seen: list[Any], part: str
) -> None:
    pd.DataFrame({"observation": seen}).to_csv(tmp_path / "t.csv", index=False)
    options = ("fit", tmp_path / "t.csv", "--clones", 1, "--held-out", 0.5, "--method", *method)
    result = _chmm(*options)
    assert result.exit_code == 2
    assert f"{part} 2 steps without any observation, expected at least one" in result.stderr
    assert not (tmp_path / "t.run").exists()


# ------------------------------------------------------------------------------- other labels


@pytest.fixture
def integers(tmp_path: Path) -> Path:
    """A model fitted to integers as they are: no vocabulary."""
    batch = SequenceBatch.from_arrays([0, 1, 2, 0, 1, 2, 0, 1, 2], [1, 0, 1, 1, 0, 1, 1, 0])
    batch.to_file(tmp_path / "walk.npz")
    _done("fit", tmp_path / "walk.npz", "--clones", 2, "--iters", 3)
    return tmp_path / "walk.run"


def test_labels_of_a_table_are_matched_to_integers(integers: Path, tmp_path: Path) -> None:
    # The table shows symbols 0 and 2 and action 1 only; they must not be renumbered.
    pd.DataFrame({"observation": [0, 2, 0], "action": [1, 1, None]}).to_csv(
        tmp_path / "t.csv", index=False
    )
    found = _json("decode", integers, tmp_path / "t.csv")["sequences"][0]
    batch = SequenceBatch.from_arrays([0, 2, 0], [1, 1], num_actions=2)
    path = load_checkpoint(integers).model.distribution(batch).posterior_mode(batch.obs)
    assert found["states"] == path.states.tolist()
    assert found["log_prob"] == float(path.score)


def test_integers_are_matched_to_labels(tmp_path: Path) -> None:
    pd.DataFrame({"observation": [5, 7, 5, 7, 7]}).to_csv(tmp_path / "t.csv", index=False)
    _done("fit", tmp_path / "t.csv", "--clones", 2, "--iters", 2)
    np.savez(tmp_path / "other.npz", observation=np.array([7, 5, 7]))
    found = _json("decode", tmp_path / "t.run", tmp_path / "other.npz")["sequences"][0]
    assert [state // 2 for state in found["states"]] == [1, 0, 1]


def test_unseen_labels_are_a_choice(folder: Path, tmp_path: Path) -> None:
    table = _table(20, episodes=None)
    table.loc[3, "observation"] = "purple"
    table.to_csv(tmp_path / "new.csv", index=False)
    refused = _chmm("eval", folder / "walk.run", tmp_path / "new.csv")
    assert refused.exit_code == 2
    assert "observation holds 'purple'" in refused.stderr
    record = _json("eval", folder / "walk.run", tmp_path / "new.csv", "--unseen", "missing")
    assert record["num_observed"] == 19


# ------------------------------------------------------------------------------------- sampling


def test_labels_are_text_where_the_model_has_text(tmp_path: Path) -> None:
    """A table says whether 1 is a number by what else its column holds."""
    mixed, numbers, run = tmp_path / "mixed.csv", tmp_path / "numbers.csv", tmp_path / "run"
    pd.DataFrame({"observation": ["1", "2", "x"] * 30}).to_csv(mixed, index=False)
    pd.DataFrame({"observation": ["1", "2"] * 30}).to_csv(numbers, index=False)
    _done("fit", mixed, "--clones", 2, "--iters", 2, "--out", run)
    assert _json("eval", run, numbers)["num_steps"] == 60


def test_single_steps_need_no_actions(folder: Path, tmp_path: Path) -> None:
    """There is no move that an action could have driven."""
    one = tmp_path / "one.csv"
    pd.DataFrame({"observation": ["red"], "action": ["up"]}).to_csv(one, index=False)
    assert _json("eval", folder / "walk.run", one)["num_steps"] == 1


def test_positions_of_a_fit_are_not_asked_of_other_data(tmp_path: Path) -> None:
    table = pd.DataFrame({"observation": ["a", "b"] * 30, "x": range(60)})
    there, other, run = tmp_path / "there.csv", tmp_path / "other.csv", tmp_path / "run"
    table.to_csv(there, index=False)
    table[["observation"]].to_csv(other, index=False)
    _done("fit", there, "--clones", 2, "--iters", 2, "--position", "x", "--out", run)
    assert _json("eval", run, other)["num_steps"] == 60


def test_nothing_observed_is_one_line(tmp_path: Path) -> None:
    unknown = tmp_path / "unknown.csv"
    run = tmp_path / "run"
    pd.DataFrame({"observation": ["a", "b"] * 20}).to_csv(tmp_path / "seen.csv", index=False)
    _done("fit", tmp_path / "seen.csv", "--clones", 2, "--iters", 2, "--out", run)
    pd.DataFrame({"observation": ["?"] * 5}).to_csv(unknown, index=False)
    result = _chmm("eval", run, unknown, "--unseen", "missing")
    assert result.exit_code == 2 and "none observed" in result.stderr
    refused = _chmm("fit", tmp_path / "seen.csv", "--start", run, "--action-model", "joint")
    assert refused.exit_code == 2 and "--action-model does not apply to --start" in refused.stderr


def test_samples_follow_actions_and_seeds(folder: Path) -> None:
    run = folder / "walk.run"
    arguments = ("sample", run, "--actions", "left,right,right", "--num", 4)
    one, same, other = (_json(*arguments, "--seed", seed) for seed in (1, 1, 2))
    assert one == same
    assert one["sequences"] != other["sequences"]
    assert len(one["sequences"]) == 4
    for sequence in one["sequences"]:
        assert sequence["action"] == ["left", "right", "right"]
        assert len(sequence["observation"]) == 4
    longer = _json(*arguments, "--steps", 6, "--first", "blue")["sequences"]
    assert longer[0]["action"] == ["left", "right", "right", "left", "right"]
    assert {sequence["observation"][0] for sequence in longer} == {"blue"}
    text = _done("sample", run, "--steps", 1)
    assert text.startswith("episode,observation")


# ----------------------------------------------------------------------------------- exit codes

BAD: dict[str, tuple[list[str], str]] = {
    "no states": (["fit", "{data}"], "give one of --clones"),
    "both": (["fit", "{data}", "--clones", "3", "--states", "9"], "give one of --clones"),
    "no file": (["fit", "nothing.csv", "--clones", "3"], "'nothing.csv' is not a file"),
    "other file": (["fit", "{folder}/walk.txt", "--clones", "3"], "unknown type '.txt'"),
    "no column": (
        ["fit", "{data}", "--clones", "3", "--observation", "colour"],
        "'colour' is not a column of the table",
    ),
    "clones": (["fit", "{data}", "--clones", "some"], "--clones some, expected a number"),
    "zero clones": (["fit", "{data}", "--clones", "0"], "expected at least 1 clone"),
    "some clones": (["fit", "{data}", "--clones", "1,2"], "for each of the 3 symbols"),
    "few states": (["fit", "{data}", "--states", "2"], "at least one clone for each"),
    "lr of em": (
        ["fit", "{data}", "--clones", "3", "--method", "em", "--lr", "0.1"],
        "--lr 0.1 does not apply to --method em",
    ),
    "tol of viterbi": (
        ["fit", "{data}", "--start", "{run}", "--method", "viterbi", "--tol", "0.1"],
        "--tol 0.1 does not apply to --method viterbi",
    ),
    **{
        f"{option} of a map": (
            ["fit", "{data}", "--method", "map", *option.split()],
            f"{option} does not apply to --method map",
        )
        for option in (
            "--clones 3",
            "--states 9",
            "--learn-initial",
            "--tol 0.1",
            "--action-model joint",
            "--parameters counts",
        )
    },
    "negative pseudocount": (
        ["fit", "{data}", "--clones", "3", "--pseudocount", "-1"],
        "pseudocount = -1.0",
    ),
    "held out": (["fit", "{data}", "--clones", "3", "--held-out", "4"], "held_out = 4 of 4"),
    "not a folder": (["fit", "{data}", "--clones", "3", "--out", "{data}"], "is a file"),
    "no run": (["eval", "{folder}", "{data}"], "is not a checkpoint"),
    "damaged run": (["eval", "{damaged}", "{data}"], "config.json cannot be read"),
    "no actions": (["eval", "{run}", "{plain}"], "the data have no actions"),
    "other actions": (["eval", "{run}", "{moves}"], "action holds 'jump'"),
    "no length": (["sample", "{run}"], "give --steps, --actions or both"),
    "unknown action": (["sample", "{run}", "--actions", "up,jump"], "--actions holds 'jump'"),
    "unknown first": (["sample", "{run}", "--steps", "3", "--first", "9"], "--first holds '9'"),
    "out in no folder": (["decode", "{run}", "{data}", "--out", "no/where.csv"], "no/"),
}


@pytest.fixture(scope="module")
def places(folder: Path) -> dict[str, str]:
    damaged = folder / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    table = _table(10, episodes=None)
    table.drop(columns="action").to_csv(folder / "plain.csv", index=False)
    table.assign(action="jump").to_csv(folder / "moves.csv", index=False)
    return {
        "data": str(folder / "walk.csv"),
        "run": str(folder / "walk.run"),
        "folder": str(folder),
        "damaged": str(damaged),
        "plain": str(folder / "plain.csv"),
        "moves": str(folder / "moves.csv"),
    }


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(case: str, places: dict[str, str]) -> None:
    arguments, message = BAD[case]
    result = _chmm(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    "arguments", [["fly"], ["fit"], ["fit", "x.csv", "--method", "magic"], ["eval", "x", "--lr"]]
)
def test_bad_usage_is_code_2(arguments: list[str]) -> None:
    result = _chmm(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert result.stdout == ""


@pytest.fixture
def alternating(tmp_path: Path) -> Path:
    """A model that has seen a and b take turns, and nothing else."""
    pd.DataFrame({"observation": list("ab" * 20)}).to_csv(tmp_path / "ab.csv", index=False)
    _done("fit", tmp_path / "ab.csv", "--clones", 1, "--method", "em", "--iters", 3)
    pd.DataFrame({"observation": list("ababb")}).to_csv(tmp_path / "abb.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("command", ["eval", "decode", "fit"])
def test_impossible_data_are_code_3(command: str, alternating: Path) -> None:
    run, new = alternating / "ab.run", alternating / "abb.csv"
    arguments = ["fit", new, "--start", run] if command == "fit" else [command, run, new]
    result = _chmm(*arguments)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "impossible at step 4" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHMM_PYRO_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        _chmm("fit", "nothing.csv", "--clones", 2)


def test_a_failed_fit_leaves_the_earlier_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*args: Any, **kwargs: Any) -> None:
        raise ValueError("the objective is nan at update 3")

    monkeypatch.setattr(fit, "fit_svi", diverge)
    run = tmp_path / "run"
    save_checkpoint(run, PointCHMM(CloneStructure([2]), 1, seed=5))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    failed = _chmm("fit", folder / "walk.csv", "--clones", 2, "--out", run)
    assert failed.exit_code == 2
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


# ------------------------------------------------------------------------------------- Ctrl-C


_COMMAND = [sys.executable, "-c", "from chmm_pyro.cli import main; main()"]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}


def test_ctrl_c_saves_what_has_been_fitted(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["fit", str(folder / "walk.csv"), "--clones", "4", "--iters", "1000000"]
    process = subprocess.Popen(
        [*_COMMAND, *command, "--progress", "--json", "--out", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        cwd=tmp_path,
    )
    assert process.stderr is not None
    heard = b""
    while not re.search(rb"[1-9]\d*/1000000", heard):  # until the bar shows an update
        heard += (chunk := process.stderr.read1())
        assert chunk, heard.decode()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr.decode()
    record = json.loads(stdout)
    assert record["interrupted"]
    assert 0 < record["num_iters"] < 1_000_000
    assert b"Traceback" not in stderr
    loaded = load_checkpoint(run)
    assert loaded.history["interrupted"]
    assert loaded.history["num_iters"] == record["num_iters"]


def test_ctrl_c_before_there_is_anything_to_save(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "read", interrupt)
    result = _chmm("fit", folder / "walk.csv", "--clones", 2, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_reader_that_stops_early_is_no_error(folder: Path) -> None:
    chmm = shlex.join([*_COMMAND, "decode", f"{folder}/walk.run", f"{folder}/walk.csv"])
    done = subprocess.run(
        ["bash", "-c", f"{chmm} | head -n 2"], capture_output=True, env=_environment(), check=True
    )
    assert done.stdout.count(b"\n") == 2
    assert done.stderr == b""


# ------------------------------------------------------------------------------ help and output


@pytest.mark.parametrize(
    "command", ["demo", "fit", "eval", "decode", "sample", "map", "plan", "report"]
)
def test_help_suffices(command: str) -> None:
    text = _done(command, "--help")
    assert "Usage: " in text
    options = set(re.findall(r"│ [ *]*(--[a-z-]+)", text))
    assert {"--help", "--json"} <= options
    if command != "demo":
        assert f"chmm {command} walk" in text  # an example to copy
    listed = _done("--help")
    assert command in listed
    assert "Exit codes: 0 done; 2 bad usage" in listed


def test_version() -> None:
    assert re.fullmatch(r"chmm-pyro \d+\.\d+.*\n", _done("--version"))


def test_json_stays_pure_with_bars(folder: Path, tmp_path: Path) -> None:
    result = _chmm(
        *("fit", folder / "walk.csv", "--clones", 2, "--iters", 3, "--out", tmp_path / "run"),
        *("--json", "--progress"),
    )
    assert json.loads(result.stdout)["num_iters"] == 3
    assert "3/3" in result.stderr
    quiet = _chmm(
        *("fit", folder / "walk.csv", "--clones", 2, "--iters", 3, "--out", tmp_path / "run")
    )
    assert quiet.stderr == ""  # not a terminal, so no bars


# ---------------------------------------------------------------------------------- the demo

_SMALL_DEMO = ("demo", "--quick", "--steps", 600, "--clones", 15)


def test_demo_shows_everything(tmp_path: Path) -> None:
    result = _chmm(*_SMALL_DEMO, "--out", tmp_path / "demo", "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record["enumeration"]["loss_difference"] < 1e-12
    assert record["enumeration"]["gradient_difference"] < 1e-10
    assert record["enumeration"]["enumerated_seconds"] > record["enumeration"]["collapsed_seconds"]
    assert [row["name"] for row in record["methods"]] == ["svi", "em", "svi-viterbi", "em-viterbi"]
    for row in record["methods"]:
        loaded = load_checkpoint(tmp_path / "demo" / row["name"])
        assert loaded.history["bits_per_step"] == row["bits_per_step"]
        assert row["states_used"] <= 60
        assert 0 < row["place_purity"] <= 1
    for name in record["files"]:
        path = tmp_path / "demo" / name
        assert path.exists()
        if name.endswith(".png"):
            assert path.read_bytes().startswith(b"\x89PNG")
            assert path.stat().st_size > 10_000
    assert "state->place purity" in result.stderr  # with --json, the text goes there
    scored = _json("eval", tmp_path / "demo" / "em", tmp_path / "demo" / "walk.csv")
    em = record["methods"][1]
    assert scored["bits_per_step"] == em["bits_per_step"]
    assert scored["place_purity"] == em["place_purity"]


def test_demo_reports_on_stdout_and_survives_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    svi = inference.fit_svi

    def interrupted_later(model: Any, batch: Any, **options: Any) -> Any:
        result = svi(model, batch, **options)
        return result if batch.num_steps < 100 else replace(result, interrupted=True)

    monkeypatch.setattr(demo, "fit_svi", interrupted_later)
    result = _chmm(*_SMALL_DEMO, "--out", tmp_path)
    assert result.exit_code == 130
    assert "SVI (Adam, exact gradient)" in result.stdout
    assert "EM (Baum-Welch)" not in result.stdout.split("bits/step")[1]
    assert "Interrupted" in result.stdout
    assert load_checkpoint(tmp_path / "svi").history["num_iters"] == 100
    assert (tmp_path / "graph.png").exists()
    assert not (tmp_path / "em").exists()


def test_demo_uses_the_published_room() -> None:
    assert environments.published_room("rectangular_room").num_places == 48
