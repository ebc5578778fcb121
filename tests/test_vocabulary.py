"""Labels to symbols and back."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from chmm_pyro.vocabulary import Vocabulary

LABELS = ["exit", 7, 2.5, ("red", (3, None)), True]


def test_round_trip_of_any_hashable_label():
    labels = [*LABELS, frozenset({1}), b"x", pd.Timestamp("2020-01-01")]
    vocabulary = Vocabulary(labels)
    symbols = vocabulary.encode([labels[3], None, *labels])
    assert symbols.tolist() == [3, -1, *range(len(labels))]
    assert vocabulary.decode(symbols) == [labels[3], None, *labels]
    assert len(vocabulary) == len(labels) and list(vocabulary) == labels


@pytest.mark.parametrize(
    "values",
    [
        [3, 1, 1],
        np.array([3, 1, 1], dtype=np.int16),
        [np.int64(3), 1.0, np.float32(1)],
        torch.tensor([3, 1, 1]),
        [torch.tensor(3), torch.tensor(1), 1],
        pd.Series([3, 1, 1], index=[5, 5, 9]),
        pd.Categorical([3, 1, 1]),
        (x for x in (3, 1, 1)),
    ],
    ids=lambda values: type(values).__name__,
)
def test_equal_labels_of_different_containers(values):
    assert Vocabulary([1, 3]).encode(values).tolist() == [1, 0, 0]


def test_order_is_sorted_or_as_first_met():
    assert Vocabulary.from_data(["b", "a", "b"]).labels == ("a", "b")
    assert Vocabulary.from_data([(2, 1), (1, 9)]).labels == ((1, 9), (2, 1))
    assert Vocabulary.from_data(["b", 3, "a", 3]).labels == ("b", 3, "a")


def test_missing_cells():
    for cell in (None, np.nan, "", pd.NA, pd.NaT):
        assert Vocabulary(["a"]).encode(np.array([cell, "a"], dtype=object)).tolist() == [-1, 0]
        assert Vocabulary.from_data(["a", cell]).labels == ("a",)


def test_integers_that_a_table_stored_as_floats():
    vocabulary = Vocabulary.from_data(np.array([3.0, np.nan, 1.0]))
    assert [type(label) for label in vocabulary] == [int, int]
    assert Vocabulary.from_data(np.array([3.5, 1.0])).labels == (1.0, 3.5)


def test_unseen_labels_are_a_choice():
    vocabulary = Vocabulary(["a", "b"])
    assert vocabulary.encode(["b", "c", None], unseen="missing").tolist() == [1, -1, -1]
    with pytest.raises(ValueError, match=r"values holds 'c' \(2 cells .*the 2 labels of the"):
        vocabulary.encode(["b", "c", "d"])
    with pytest.raises(ValueError, match=r"'c' \(1 cell with .*--unseen missing"):
        vocabulary.encode(["b", "c"])


def test_json_round_trip():
    vocabulary = Vocabulary(LABELS)
    text = json.dumps(vocabulary.to_jsonable(), allow_nan=False)
    read = Vocabulary.from_jsonable(json.loads(text))
    assert read == vocabulary
    assert [type(label) for label in read] == [type(label) for label in vocabulary]


def test_immutable_hashable_and_picklable():
    vocabulary = Vocabulary(np.array(["a", "b"]))
    assert [type(label) for label in vocabulary] == [str, str]
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
    assert len({vocabulary, Vocabulary(["a", "b"]), Vocabulary(["b", "a"])}) == 2
    assert np.str_("a") in vocabulary and "c" not in vocabulary
    with pytest.raises(AttributeError, match="immutable"):
        vocabulary.labels = ()


AB = Vocabulary(["a", "b"])
BAD = [
    (lambda: Vocabulary([]), ValueError, "labels is empty, expected at least one"),
    (lambda: Vocabulary("ab"), TypeError, "labels = 'ab'.*use list"),
    (lambda: Vocabulary(["a", "b", "a"]), ValueError, r"labels\[2\] = 'a' equals labels\[0\]"),
    (lambda: Vocabulary([1, True]), ValueError, r"labels\[1\] = True equals labels\[0\] = 1"),
    (lambda: Vocabulary(["a", None]), ValueError, r"labels\[1\] = None means a missing"),
    (lambda: Vocabulary([float("nan")]), ValueError, r"labels\[0\] = nan means a missing"),
    (lambda: Vocabulary([["a"]]), TypeError, r"labels\[0\] = \['a'\] is not hashable.*tuple"),
    (lambda: Vocabulary([np.zeros(2)]), TypeError, r"array of shape \(2,\).*tuple"),
    (lambda: Vocabulary.from_data([None]), ValueError, "values holds no label"),
    (lambda: Vocabulary.from_data([0, -1]), ValueError, "values holds -1.*vocabulary"),
    (lambda: AB.encode([["a"]]), TypeError, "values holds a label that cannot be hashed"),
    (lambda: AB.encode(np.zeros((2, 2))), TypeError, r"values has shape \(2, 2\).*tuple"),
    (lambda: AB.encode(["a"], unseen="skip"), ValueError, "unseen = 'skip'"),
    (lambda: AB.decode([0, 2]), ValueError, "symbols holds 2, expected -1 <= symbol < 2"),
    (lambda: AB.decode([-2]), ValueError, "symbols holds -2"),
    (lambda: Vocabulary([b"x"]).to_jsonable(), TypeError, "b'x' of type bytes.*JSON"),
    (lambda: Vocabulary([float("inf")]).to_jsonable(), TypeError, "inf of type float"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[case[2] for case in BAD])
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=f"(?s){message}"):
        call()
