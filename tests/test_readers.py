"""Episodes of labels, tables and files: labels to symbols, and nothing lost on disk."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.vocabulary import Vocabulary

EPISODES = [
    {
        "obs": ["wall", "door", None],
        "actions": ["up", "down"],
        "positions": [[0, 0], [0, 1], [0, 2]],
    },
    {"obs": ["exit"], "actions": ["stop"], "positions": [[4, 4]]},
    {"obs": ["door", "door"], "actions": ["up"], "positions": [[1, 1], [1, 2]]},
]
OBS = [[2, 0, -1], [1], [0, 0]]
ACTIONS = [[1, 0], [], [1]]
TABLE = pd.DataFrame(
    {
        "run": ["b", "b", "a", "b", "c", "c"],
        "seen": ["wall", "door", "exit", None, "door", "door"],
        "did": ["up", "down", "stop", None, "up", None],
        "x": [0, 0, 4, 0, 1, 1],
        "y": [0, 1, 4, 2, 1, 2],
    }
)
COLUMNS = {"episode": "run", "observation": "seen", "action": "did", "position": ["x", "y"]}


def check(batch, *, positions=True):
    assert [part.obs.tolist() for part in batch] == OBS
    assert [part.actions.tolist() for part in batch] == ACTIONS
    assert batch.vocabulary.labels == ("door", "exit", "wall") and batch.num_symbols == 3
    assert batch.action_vocabulary.labels == ("down", "up") and batch.num_actions == 2
    if positions:
        expected = [episode["positions"] for episode in EPISODES]
        assert [part.positions.tolist() for part in batch] == expected


def same(one, other):
    assert (one.single, one.num_actions, one.names) == (
        other.single,
        other.num_actions,
        other.names,
    )
    assert one.vocabulary == other.vocabulary
    assert one.action_vocabulary == other.action_vocabulary
    for name in ("flat_obs", "flat_actions", "offsets", "flat_positions"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None) and (a is None or (a.dtype == b.dtype and a.equal(b)))


@pytest.mark.parametrize("kind", ["dicts", "tuples", "arrays", "actions for each step"])
def test_episodes(kind):
    episodes = EPISODES
    if kind == "tuples":
        episodes = [(e["obs"], e["actions"], np.array(e["positions"])) for e in EPISODES]
    elif kind == "arrays":
        as_array = [(np.array(e["obs"], dtype=object), np.array(e["actions"])) for e in EPISODES]
        episodes = (pair for pair in as_array)
    elif kind == "actions for each step":
        episodes = [e | {"actions": [*e["actions"], "home"][: len(e["obs"])]} for e in EPISODES]
    check(SequenceBatch.from_episodes(episodes), positions=kind != "arrays")


def test_episodes_without_actions():
    batch = SequenceBatch.from_episodes(["abca", list("cab")])
    assert [part.obs.tolist() for part in batch] == [[0, 1, 2, 0], [2, 0, 1]]
    assert batch.num_actions == 1 and batch.action_vocabulary is None
    tensors = SequenceBatch.from_episodes([torch.tensor([7, 3]), torch.tensor([3])])
    assert tensors.flat_obs.tolist() == [1, 0, 0] and tensors.vocabulary.labels == (3, 7)
    tuples = SequenceBatch.from_episodes([[(1, 2), (0, 1), (1, 2)]])
    assert tuples.flat_obs.tolist() == [1, 0, 1] and tuples.vocabulary.labels == ((0, 1), (1, 2))


def test_labels_map_back():
    batch = SequenceBatch.from_episodes(EPISODES)
    assert [batch.vocabulary.decode(part.obs) for part in batch] == [e["obs"] for e in EPISODES]


def test_given_vocabularies_and_unseen_labels():
    train = SequenceBatch.from_episodes(EPISODES)
    options = {"vocabulary": train.vocabulary, "action_vocabulary": train.action_vocabulary}
    batch = SequenceBatch.from_episodes(
        [(["exit", "attic"], ["down"])], unseen="missing", **options
    )
    assert batch.flat_obs.tolist() == [1, -1] and batch.flat_actions.tolist() == [0, 0]
    assert (batch.num_symbols, batch.num_actions) == (3, 2)
    assert batch.vocabulary is train.vocabulary
    with pytest.raises(ValueError, match=r"obs holds 'attic'.*unseen='missing'"):
        SequenceBatch.from_episodes([(["exit", "attic"], ["down"])], **options)
    with pytest.raises(ValueError, match=r"actions holds 'jump'.*vocabulary"):
        SequenceBatch.from_episodes([(["exit", "exit"], ["jump"])], unseen="missing", **options)
    assert SequenceBatch.from_episodes(["ba"], vocabulary=["b", "a"]).flat_obs.tolist() == [0, 1]


def test_table():
    batch = SequenceBatch.from_dataframe(TABLE, **COLUMNS)
    assert batch.names == ("b", "a", "c")
    check(batch)
    shuffled = TABLE.iloc[[0, 2, 1, 4, 3, 5]]  # interleaved episodes, row labels out of order
    same(SequenceBatch.from_dataframe(shuffled, **COLUMNS), batch)
    assert batch.select([2, 0]).names == ("c", "b") and batch[1].names == ("a",)


def test_table_with_default_columns():
    table = TABLE.rename(columns={"run": "episode", "seen": "observation", "did": "action"})
    table = table.rename(columns={"x": "position_x", "y": "position_y"})
    check(SequenceBatch.from_dataframe(table))
    single = SequenceBatch.from_dataframe(pd.DataFrame({"observation": [4, 2, 4]}))
    assert single.single and single.obs.tolist() == [1, 0, 1] and single.num_actions == 1


def test_table_of_numbers_with_empty_cells():
    table = pd.DataFrame({"observation": [4, np.nan, 2], "action": [1, 0, np.nan]})
    batch = SequenceBatch.from_dataframe(table)
    assert batch.obs.tolist() == [1, -1, 0] and batch.actions.tolist() == [1, 0]
    assert batch.vocabulary.labels == (2, 4)
    assert [type(label) for label in batch.vocabulary] == [int, int]


def example(kind):
    if kind == "labelled table":
        return SequenceBatch.from_dataframe(TABLE, **COLUMNS)
    if kind == "single walk":
        rng = np.random.default_rng(0)
        obs, actions = rng.integers(-1, 3, size=40), rng.integers(2, size=39)
        return SequenceBatch.from_arrays(obs, actions, positions=rng.random((40, 2)))
    return SequenceBatch.from_arrays([[5, 0], [1], [-1, 1, 1]], num_actions=6)


@pytest.mark.parametrize("kind", ["labelled table", "single walk", "plain symbols"])
def test_npz_keeps_everything(tmp_path, kind):
    batch = example(kind)
    batch.to_file(tmp_path / "data.npz")
    same(SequenceBatch.from_file(tmp_path / "data.npz"), batch)
    with np.load(tmp_path / "data.npz", allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)


def test_npz_keeps_labels_that_are_tuples(tmp_path):
    batch = SequenceBatch.from_episodes([[(0, "red"), (1, None)]])
    batch.to_file(tmp_path / "data.npz")
    same(SequenceBatch.from_file(tmp_path / "data.npz"), batch)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_on_disk(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"data.{suffix}"
    batch = example("labelled table")
    batch.to_file(path)
    same(SequenceBatch.from_file(path), batch)
    assert SequenceBatch.from_file(path, unseen="missing", vocabulary=["door"]).num_observed == 3
    batch = example("single walk")
    batch.to_file(path)
    again = SequenceBatch.from_file(path)
    assert again.obs.equal(batch.obs) and again.actions.equal(batch.actions)
    np.testing.assert_allclose(again.positions, batch.positions, rtol=1e-15, atol=0)


def test_csv_written_by_hand(tmp_path):
    path = tmp_path / "walk.csv"
    path.write_text("seen,did,loss\nNone,up,1\nNA,down,2\n,up,3\nnan,,4\n")
    batch = SequenceBatch.from_file(path, observation="seen", action="did")
    assert batch.vocabulary.labels == ("NA", "None") and batch.obs.tolist() == [1, 0, -1, -1]
    assert batch.actions.tolist() == [1, 0, 1]


def test_labels_of_a_long_mixed_column_are_one_kind(tmp_path):
    """Read in chunks, the numbers of early rows would be other labels than those of late ones."""
    file = tmp_path / "long.csv"
    labels = ["1", "2", "3"] * 200_000 + ["1", "2", "x"] * 100
    file.write_text("observation\n" + "\n".join(labels) + "\n", encoding="utf-8")
    assert sorted(SequenceBatch.from_file(file).vocabulary) == ["1", "2", "3", "x"]


def test_rows_longer_than_the_header_are_refused(tmp_path):
    file = tmp_path / "shifted.csv"
    file.write_text("episode,observation\ne0,a,L\ne0,b,R\n", encoding="utf-8")
    with pytest.raises(ValueError, match="rows have more cells than the header has names"):
        SequenceBatch.from_file(file)


def test_npz_of_somebody_else(tmp_path):
    path = tmp_path / "walk.npz"
    np.savez(path, x=[3, 0, -1], a=[1, 2], position=np.eye(3, 2), loss=np.zeros(9))
    batch = SequenceBatch.from_file(path, observation="x", action="a")
    assert batch.obs.tolist() == [3, 0, -1] and batch.actions.tolist() == [1, 2]
    assert batch.vocabulary is None and batch.action_vocabulary is None
    assert (batch.num_symbols, batch.num_actions) == (4, 3) and batch.positions.shape == (3, 2)
    np.savez(path, observation=np.array(["b", "a", ""]), episode=[0, 0, 1], action=[5, 5, 5])
    batch = SequenceBatch.from_file(path)
    assert batch.lengths.tolist() == [2, 1] and batch.flat_obs.tolist() == [1, 0, -1]
    assert batch.flat_actions.tolist() == [5, 0, 0]


def test_dataframe_round_trip():
    batch = example("labelled table")
    frame = batch.to_dataframe()
    assert frame["observation"].isna().tolist() == [False, False, True, False, False, False]
    assert frame["action"].isna().tolist() == [False, False, True, True, False, True]
    same(SequenceBatch.from_dataframe(frame), batch)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"reading .* needs pyarrow.*chmm-pyro\[parquet\]"):
        SequenceBatch.from_file(tmp_path / "data.parquet")
    with pytest.raises(ImportError, match=r"writing .* needs pyarrow.*chmm-pyro\[parquet\]"):
        example("plain symbols").to_file(tmp_path / "out.parquet")


def episodes(*args, **options):
    return lambda path: SequenceBatch.from_episodes(*args, **options)


def table(frame, **options):
    frame = frame if isinstance(frame, list) else pd.DataFrame(frame)
    return lambda path: SequenceBatch.from_dataframe(frame, **options)


def file(name, write=None, **options):
    def call(path):
        if write is not None:
            write(path / name)
        SequenceBatch.from_file(path / name, **options)

    return call


def savez(**arrays):
    def write(path):
        np.savez(path, **arrays)

    return write


def text(content):
    return lambda path: path.write_text(content)


def damaged(**changes):
    def write(path):
        example("plain symbols").to_file(path)
        with np.load(path) as archive:
            arrays = dict(archive) | changes
        np.savez(path, **arrays)

    return write


META = json.dumps(
    {"single": True, "num_actions": 6, "vocabulary": None, "action_vocabulary": None, "names": None}
)
BAD = [
    (episodes([]), ValueError, "episodes is empty"),
    (episodes("abc"), TypeError, r"episodes is a str.*write \[episode\]"),
    (episodes(EPISODES[0]), TypeError, "episodes is a dict"),
    (episodes([["a"], []]), ValueError, r"episodes\[1\] obs is empty.*drop it"),
    (episodes([{"observations": ["a"]}]), ValueError, r"episodes\[0\] has keys.*'obs'"),
    (episodes([("a", "b")]), ValueError, r"episodes\[0\] is a tuple of 2.*write a list"),
    (episodes([(["a"], ["b"], [0], [1])]), ValueError, r"episodes\[0\] is a tuple of 4"),
    (episodes([3]), TypeError, r"episodes\[0\] obs is a int, expected a list"),
    (episodes([[["a"]]]), TypeError, r"obs holds a label that cannot be hashed.*tuple"),
    (episodes([(["a"], []), ["b"]]), ValueError, r"episodes\[1\] has no actions but others"),
    (episodes([(list("abc"), ["x"])] * 2), ValueError, r"actions\[0\] has 1 entries for 3"),
    (
        episodes([(list("ab"), ["x"]), (list("ab"), [None])]),
        ValueError,
        r"actions\[1\]\[0\] is missing",
    ),
    (episodes([[None]]), ValueError, "obs holds no label"),
    (episodes(["ab"], action_vocabulary=["x"]), ValueError, "action_vocabulary is given but"),
    (episodes(["ab"], unseen="ignore"), ValueError, "unseen = 'ignore'"),
    (table([1, 2]), TypeError, "df is a list, expected a pandas DataFrame"),
    (table({"observation": []}), ValueError, "df has no rows"),
    (table({"seen": [1]}), ValueError, r"observation = 'observation' is not a column.*\['seen'\]"),
    (table(TABLE, observation="saw"), ValueError, "observation = 'saw' is not a column.*'seen'"),
    (table(TABLE, observation="seen", action="a"), ValueError, "action = 'a' is not a column"),
    (table(TABLE, observation="seen", episode="e"), ValueError, "episode = 'e' is not a column"),
    (table(TABLE, observation="seen", position=["x", "z"]), ValueError, "position = 'z' is not"),
    (table(TABLE, observation="seen", position="did"), TypeError, "positions has dtype"),
    (table({"observation": [1, 2], "episode": [0, None]}), ValueError, "'episode' is missing in"),
    (table({"observation": [1, -1]}), ValueError, "obs holds -1.*empty"),
    (table({"observation": [1, 1], "action": [None, 1]}), ValueError, "actions holds no label"),
    (file("x.txt", text("a")), ValueError, "path = .*x.txt' is of the unknown type '.txt'.*csv"),
    (file("x.csv"), FileNotFoundError, "path = .*x.csv' is not a file"),
    (file("x.csv", text("")), ValueError, "path = .*x.csv' cannot be read as .csv"),
    (file("x.csv", text("seen\n1\n")), ValueError, "observation = 'observation' is not a column"),
    (file("x.npz", text("nonsense")), ValueError, "x.npz' cannot be read as .npz"),
    (
        file("x.npz", savez(observation=np.array([{}], dtype=object))),
        ValueError,
        "x.npz' cannot be read as .npz.*no pickled objects",
    ),
    (file("x.npz", savez(x=[1])), ValueError, r"observation = 'observation' is not .*\['x'\]"),
    (
        file("x.npz", savez(observation=[0, -2])),
        ValueError,
        "observation = 'observation' holds -2.*>= 0",
    ),
    (
        file("x.npz", savez(observation=[0, 1], episode=[1])),
        ValueError,
        "episode = 'episode' has 1 entries for 2 observations",
    ),
    (file("x.npz", damaged(chmm_format=2)), ValueError, "x.npz' has format 2.*upgrade"),
    (file("x.npz", damaged(meta="{")), ValueError, "x.npz' is damaged"),
    (file("x.npz", damaged(meta="{}")), ValueError, "x.npz' is damaged"),
    (file("x.npz", damaged(offsets=[0, 9])), ValueError, "x.npz' is damaged .*offsets"),
    (file("x.npz", damaged(obs=[-2] * 6, meta=META)), ValueError, "x.npz' is damaged"),
    (
        file("x.npz", damaged(), vocabulary=Vocabulary(["a"])),
        ValueError,
        "vocabulary is given for .*drop the argument",
    ),
    (
        lambda path: SequenceBatch.from_episodes([[(1, 2)]]).to_file(path / "x.csv"),
        TypeError,
        r"label \(1, 2\) cannot be written to .csv.*npz",
    ),
    (
        lambda path: SequenceBatch.from_arrays([0]).to_file(path / "x.pkl"),
        ValueError,
        "unknown type '.pkl'",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[case[2] for case in BAD])
def test_bad_input(call, kind, message, tmp_path):
    with pytest.raises(kind, match=f"(?s){message}"):
        call(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_numbers_in_a_table_match_labels_that_are_texts(tmp_path, suffix):
    """A column of numbers alone does not say that they are texts; a vocabulary of texts does."""
    path = tmp_path / f"other{suffix}"
    table = pd.DataFrame({"observation": [1, 2, None], "action": [7, 8, None]})
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    batch = SequenceBatch.from_file(
        path, vocabulary=["x", "2", "1"], action_vocabulary=["7", "8", "up"]
    )
    assert batch.flat_obs.tolist() == [2, 1, -1] and batch.flat_actions.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"obs holds 2 .*unknown"):  # numbers stay numbers
        SequenceBatch.from_file(path, vocabulary=[1, "2"])
    with pytest.raises(ValueError, match="obs holds 1 "):  # lists say what their labels are
        SequenceBatch.from_episodes([[1]], vocabulary=["1"])
