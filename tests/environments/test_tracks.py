"""The small worlds do what their stories say."""

import networkx as nx
import numpy as np
import pytest

from chmm_pyro.environments.tracks import grid_of_rooms, lap_track, t_maze


def test_t_maze_alternates():
    run = t_maze(6, stem=3, arm=2)
    trials = run.obs.reshape(6, 5)
    assert (trials[:, :3] == [0, 1, 2]).all()
    assert (trials[::2, 3:] == [3, 4]).all() and (trials[1::2, 3:] == [5, 6]).all()
    assert (run.contexts.reshape(6, 5) == np.array([[0], [1]] * 3)).all()
    assert run.shape == (2, 7) and run.batch().num_steps == 30
    np.testing.assert_array_equal(run.batch().positions.numpy(), run.cells)


def test_t_maze_at_random():
    turns = t_maze(400, alternate=False, seed=1).contexts[::7]
    assert 150 < turns.sum() < 250 and 150 < (turns[1:] != turns[:-1]).sum() < 250


def test_laps_differ_only_in_the_reward():
    run = lap_track(3, length=5, laps=4)
    laps = run.obs.reshape(3, 4, 5)
    assert (laps[:, 0, 0] == 5).all() and (laps[:, 1:, 0] == 0).all()
    assert (laps[:, :, 1:] == [1, 2, 3, 4]).all()
    assert (run.contexts.reshape(3, 4, 5) == np.arange(4)[:, None]).all()
    assert repr(run) == "TrackWalk(60 steps, 5 places, 4 contexts)"


@pytest.mark.parametrize(("rows", "columns", "size"), [(1, 1, 3), (2, 3, 4), (3, 2, 1)])
def test_rooms_are_joined_by_one_door_each(rows, columns, size):
    room, label = grid_of_rooms(rows, columns, size, num_symbols=2, seed=5)
    assert room.num_places == len(label) == rows * columns * size**2
    assert (np.bincount(label) == size**2).all()
    doors = {
        frozenset((i, j)) for i, j, _ in room.place_graph().edges(keys=True) if label[i] != label[j]
    }
    joined = {frozenset(label[list(door)].tolist()) for door in doors}
    grid = nx.convert_node_labels_to_integers(nx.grid_2d_graph(rows, columns))
    assert joined == {frozenset(edge) for edge in grid.edges} and len(doors) == len(joined)
    assert nx.is_strongly_connected(nx.DiGraph(room.place_graph()))


def test_bad_input():
    for call, name in (
        (lambda: t_maze(0), "num_trials"),
        (lambda: t_maze(1, arm=0), "arm"),
        (lambda: lap_track(1, laps=0), "laps"),
        (lambda: grid_of_rooms(1, 1, 0, 1), "size"),
    ):
        with pytest.raises(ValueError, match=f"{name} = 0"):
            call()
