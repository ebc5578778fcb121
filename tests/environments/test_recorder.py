"""Recordings of real Gymnasium environments, against the environments stepped by hand."""

import gymnasium
import minigrid  # noqa: F401  (registers its environments)
import numpy as np
import pytest
from gymnasium import spaces
from scipy.stats import chisquare

from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.environments.recorder import label_of, record
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.result import bits_per_step
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch


class Ring(gymnasium.Env):
    """Six places in a ring; the action is how far to go.  Ends at place 5 or after seven steps."""

    def __init__(self, observation_space, show, action_space=None, move=int):
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(3)
        self.show, self.move = show, move
        self.place = self.steps = 0
        self.resets = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets.append(seed)
        self.place, self.steps = int(self.np_random.integers(3)), 0
        return self.show(self.place), {}

    def step(self, action):
        self.place = (self.place + self.move(action)) % 6
        self.steps += 1
        return self.show(self.place), 0.0, self.place == 5, self.steps == 7, {}


def ring(**options):
    return Ring(spaces.Discrete(6), np.int64, **options)


def stepped_by_hand(env, batch, seed):
    """The labels that the recorded actions bring about, an episode at a time."""
    for number, episode in enumerate(batch):
        observation, _ = env.reset(seed=seed) if number == 0 else env.reset()
        labels, over = [observation], False
        for action in batch.action_vocabulary.decode(episode.actions):
            assert not over, "the environment had ended the episode before"
            observation, _, terminated, truncated, _ = env.step(action)
            labels.append(observation)
            over = terminated or truncated
        yield labels, batch.vocabulary.decode(episode.obs), over


def newest(world):
    """The name with its highest version: older ones warn, and Gymnasium 1.0 lacks newer ones."""
    return max(name for name in gymnasium.registry if name.startswith(f"{world}-v"))


TOYS = [
    ("FrozenLake", {}),
    ("FrozenLake", {"is_slippery": False, "map_name": "8x8"}),
    ("Taxi", {}),
    ("CliffWalking", {"max_episode_steps": 300}),
]


@pytest.mark.parametrize(("world", "options"), TOYS)
def test_toy_worlds(world, options):
    name = newest(world)
    env = gymnasium.make(name, **options)
    batch = record(env, None, 1500, 3, progress=False)
    assert batch.num_steps == 1500 and batch.num_actions == env.action_space.n
    episodes = list(stepped_by_hand(gymnasium.make(name, **options), batch, seed=3))
    for expected, found, _ in episodes:
        assert found == expected
    assert all(over for _, _, over in episodes[:-1]), "an episode was cut"
    assert len(episodes) > 1
    counts = np.bincount(
        np.concatenate([one.actions for one in batch]), minlength=batch.num_actions
    )
    assert chisquare(counts).pvalue > 1e-4


def test_seeds_decide_the_recording_and_nothing_global_does():
    env = gymnasium.make("FrozenLake-v1")
    before = np.random.get_state()[1].copy()
    one, same, other = (record(env, None, 400, seed, progress=False) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.flat_obs, same.flat_obs)
    np.testing.assert_array_equal(one.flat_actions, same.flat_actions)
    assert not np.array_equal(one.flat_actions, other.flat_actions)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_minigrid():
    env = gymnasium.make("MiniGrid-SimpleCrossingS9N1-v0", max_steps=60)
    seen = {"actions": [0, 1, 2], "discretise": lambda obs: obs["image"]}
    batch = record(env, None, 600, 1, reset_seed=4, progress=False, **seen)
    assert batch.num_actions == 3 and batch.positions.shape[2] == 3
    replay = gymnasium.make("MiniGrid-SimpleCrossingS9N1-v0", max_steps=60)
    for episode in batch:
        observation, _ = replay.reset(seed=4)
        labels = batch.vocabulary.decode(episode.obs)
        for step, pose in enumerate(episode.positions.tolist()):
            agent = replay.unwrapped
            assert pose == [agent.agent_pos[1], agent.agent_pos[0], agent.agent_dir]
            assert labels[step] == tuple(observation["image"].ravel())
            if step + 1 < episode.num_steps:
                observation, *_ = replay.step(int(episode.actions[step]))
    assert len(batch) == 10  # an episode of 60 steps has 61 observations
    whole = record(env, None, 5, 4, progress=False)
    direction, image, mission = whole.vocabulary.decode(whole.flat_obs)[0]
    assert direction in range(4) and len(image) == 147 and "goal" in mission
    assert whole.num_actions == 7


def test_another_world_at_each_reset_unless_asked_otherwise():
    env = gymnasium.make("MiniGrid-FourRooms-v0", max_steps=5)
    starts = []
    for reset_seed in (None, 3):
        batch = record(env, None, 60, 0, reset_seed=reset_seed, progress=False)
        starts.append({tuple(one.positions[0].tolist()) for one in batch})
    assert len(starts[0]) > 5 and len(starts[1]) == 1


BOX = spaces.Box(-1.0, 1.0, (2,))
SPACES = {
    "Discrete": (spaces.Discrete(6), np.int64, {}, 3),
    "MultiDiscrete": (
        spaces.MultiDiscrete([3, 2]),
        lambda place: np.array([place // 2, place % 2]),
        {},
        (1, 1),
    ),
    "MultiBinary": (spaces.MultiBinary(6), lambda place: np.eye(6, dtype=np.int8)[place], {}, None),
    "Box of integers": (
        spaces.Box(0, 9, (2, 2), dtype=np.uint8),
        lambda place: np.array([[place, 0], [1, 2]], dtype=np.uint8),
        {},
        (3, 0, 1, 2),
    ),
    "Box of floats, rounded": (
        BOX,
        lambda place: np.array([place / 6, -place / 6], dtype=np.float32),
        {"discretise": lambda obs: np.floor(6 * obs + 0.5).astype(int)},
        (3, -3),
    ),
    "Box of floats, one float": (
        BOX,
        lambda place: np.array([place / 2, 0], dtype=np.float32),
        {"discretise": lambda obs: obs[0]},
        1.5,
    ),
    "Dict": (
        spaces.Dict({"z": spaces.Discrete(6), "a": spaces.MultiDiscrete([6])}),
        lambda place: {"z": np.int64(place), "a": np.array([place])},
        {},
        ((3,), 3),
    ),
    "Tuple": (
        spaces.Tuple([spaces.Discrete(6), spaces.Text(2)]),
        lambda place: (place, f"p{place}"),
        {},
        (3, "p3"),
    ),
    "Text": (spaces.Text(4), lambda place: f"at {place}", {}, "at 3"),
}


@pytest.mark.parametrize("kind", SPACES)
def test_spaces(kind):
    space, show, options, third = SPACES[kind]
    reference = record(ring(), None, 200, 0, progress=False)
    batch = record(Ring(space, show), None, 200, 0, progress=False, **options)
    labels = batch.vocabulary.decode(batch.flat_obs)
    places = reference.vocabulary.decode(reference.flat_obs)
    assert len(set(zip(places, labels, strict=True))) == len(batch.vocabulary) == 6
    np.testing.assert_array_equal(batch.offsets, reference.offsets)
    if third is not None:
        assert dict(zip(places, labels, strict=True))[3] == third


ACTION_SPACES = {
    "Discrete with a start": (spaces.Discrete(3, start=5), lambda a: a - 5, {}, [5, 6, 7]),
    "MultiDiscrete": (
        spaces.MultiDiscrete([2, 2]),
        lambda a: a[0] + a[1],
        {},
        [(0, 0), (0, 1), (1, 0), (1, 1)],
    ),
    "MultiBinary": (
        spaces.MultiBinary(2),
        lambda a: a[0] + a[1],
        {},
        [(0, 0), (0, 1), (1, 0), (1, 1)],
    ),
    "Box, of which two": (
        BOX,
        lambda a: int(2 * a[0]),
        {"actions": [np.zeros(2, np.float32), np.full(2, 0.5, np.float32)]},
        [(0.0, 0.0), (0.5, 0.5)],
    ),
    "some of Discrete": (spaces.Discrete(3), int, {"actions": [2, 1]}, [2, 1]),
}


@pytest.mark.parametrize("kind", ACTION_SPACES)
def test_action_spaces(kind):
    space, move, options, labels = ACTION_SPACES[kind]
    env = ring(action_space=space, move=move)
    batch = record(env, None, 300, 0, progress=False, **options)
    assert list(batch.action_vocabulary) == labels and batch.num_actions == len(labels)
    for episode in batch:
        places = episode.vocabulary.decode(episode.obs)
        done = episode.action_vocabulary.decode(episode.actions)
        for here, action, there in zip(places, done, places[1:], strict=False):
            assert there == (here + move(action)) % 6


@pytest.mark.parametrize("position", ["spot", lambda env: env.spot])
def test_positions_are_kept_though_the_environment_moves_the_same_array(position):
    class Moving(Ring):
        spot = np.zeros(1)

        def step(self, action):
            result = super().step(action)
            self.spot[0] = self.place
            return result

        def reset(self, **options):
            result = super().reset(**options)
            self.spot[0] = self.place
            return result

    env = Moving(spaces.Discrete(6), np.int64)
    batch = record(env, None, 50, 0, position=position, progress=False)
    places = batch.vocabulary.decode(batch.flat_obs)
    assert batch.flat_positions[:, 0].tolist() == places


def test_episodes_end_where_the_environment_ends_them():
    env = ring()
    batch = record(env, [1] * 99, 100, 7, position=lambda env: env.steps, progress=False)
    steps = [episode.positions[:, 0].tolist() for episode in batch]
    assert all(one == list(range(len(one))) for one in steps)
    ends = [episode.vocabulary.decode(episode.obs)[-1] for episode in batch]
    assert all(end == 5 for end in ends[:-1])
    assert env.resets == [7] + [None] * (len(batch) - 1)
    truncated = record(ring(), [0] * 99, 100, 0, progress=False)
    assert truncated.offsets.diff().tolist() == [8] * 12 + [4]


def test_the_last_step_may_begin_or_end_an_episode():
    env = ring(action_space=spaces.Discrete(1), move=lambda _: 0)
    for num_steps, lengths in ((1, [1]), (8, [8]), (9, [8, 1]), (16, [8, 8])):
        batch = record(env, None, num_steps, 0, progress=False)
        assert batch.offsets.diff().tolist() == lengths


def test_policies():
    env = ring()
    chosen = []

    def policy(observation, rng):
        chosen.append((int(observation), int(rng.integers(1, 3))))
        return chosen[-1][1]

    batch = record(env, policy, 300, 0, progress=False)
    seen = [
        pair
        for one in batch
        for pair in zip(
            one.vocabulary.decode(one.obs)[:-1],
            one.action_vocabulary.decode(one.actions),
            strict=True,
        )
    ]
    assert seen == chosen and {action for _, action in chosen} == {1, 2}
    sequence = [1, 2] * 20
    batch = record(env, sequence, 30, 0, progress=False)
    done = np.concatenate([one.actions for one in batch])
    np.testing.assert_array_equal(done, sequence[: len(done)])


@pytest.mark.parametrize("position", ["place", lambda env: env.unwrapped.place])
def test_positions(position):
    batch = record(ring(), None, 100, 0, position=position, progress=False)
    places = batch.vocabulary.decode(batch.flat_obs)
    np.testing.assert_array_equal(batch.flat_positions[:, 0], places)
    assert record(ring(), None, 100, 0, progress=False).flat_positions is None


def test_a_later_recording_with_the_same_vocabulary():
    """A model is fitted to one recording and evaluated on another one, longer or with news."""
    first = record(ring(), [1, 0] * 100, 150, 0, progress=False)
    model = PointCHMM(CloneStructure([2] * first.num_symbols), first.num_actions, seed=0)
    fitted = fit_em(model, first, num_iters=30, pseudocount=1e-2, progress=False).model
    later = record(
        ring(), [0, 1, 1] * 100, 90, 5, vocabulary=first.vocabulary, unseen="error", progress=False
    )
    assert later.vocabulary == first.vocabulary
    # Where an episode begins is uncertain, all else is not: the same for both recordings.
    assert bits_per_step(fitted, later) < bits_per_step(fitted, first) + 0.1
    assert bits_per_step(model, later) > 2 * bits_per_step(fitted, later)
    known = [label for label in first.vocabulary if label != 4]
    with pytest.raises(ValueError, match="obs holds 4"):
        record(ring(), None, 90, 0, vocabulary=known, progress=False)
    gaps = record(ring(), None, 90, 0, vocabulary=known, unseen="missing", progress=False)
    whole = record(ring(), None, 90, 0, progress=False)
    np.testing.assert_array_equal(
        gaps.flat_obs == MISSING, np.array(whole.vocabulary.decode(whole.flat_obs)) == 4
    )


def test_a_recording_survives_its_file(tmp_path):
    env = gymnasium.make("MiniGrid-Empty-5x5-v0")
    batch = record(env, None, 50, 0, progress=False)
    batch.to_file(tmp_path / "recording.npz")
    read = SequenceBatch.from_file(tmp_path / "recording.npz")
    assert read.vocabulary == batch.vocabulary
    np.testing.assert_array_equal(read.flat_obs, batch.flat_obs)


@pytest.mark.parametrize("inside", ["step", "show", "locate"])
def test_ctrl_c_keeps_what_was_recorded(inside):
    env = ring()
    env.locate = lambda env: env.place
    original, calls = getattr(env, inside), iter(range(1, 100))

    def interrupted(argument):
        if next(calls) == 20:
            raise KeyboardInterrupt
        return original(argument)

    setattr(env, inside, interrupted)
    whole = record(ring(), None, 100, 0, progress=False)
    with pytest.warns(UserWarning, match=r"interrupted after \d+ of num_steps = 100"):
        batch = record(
            env, None, 100, 0, position=lambda env: env.unwrapped.locate(env), progress=False
        )
    assert 15 <= batch.num_steps <= 25
    part = batch.vocabulary.decode(batch.flat_obs)
    np.testing.assert_array_equal(batch.flat_positions[:, 0], part)
    assert part == whole.vocabulary.decode(whole.flat_obs)[: batch.num_steps]
    env.reset = lambda **_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        record(env, None, 100, 0, progress=False)


def test_the_bar_shows_the_steps(capsys):
    record(ring(), None, 30, 0)
    assert "recording: 100%" in capsys.readouterr().err


def test_labels_of_arrays_keep_their_type():
    assert label_of(np.array([[True, False]])) == (True, False)
    assert label_of([np.float64(0.5)], floats=True) == (0.5,)
    assert label_of(np.array(4)) == 4 and type(label_of(np.int8(4))) is int


FLOATS = Ring(BOX, lambda place: np.array([place / 6, 0], dtype=np.float32))
LONE_FLOAT = Ring(spaces.Box(0, 1, ()), lambda place: place / 6)
BAD = [
    (lambda: record("FrozenLake-v1"), TypeError, "env is a str, expected a Gymnasium environment"),
    (
        lambda: record(gymnasium.make_vec("FrozenLake-v1", num_envs=2)),
        TypeError,
        "env holds 2 environments, expected a single one",
    ),
    (lambda: record(ring(), num_steps=0), ValueError, "num_steps = 0, expected at least 1"),
    (lambda: record(ring(), num_steps=9.0), TypeError, "num_steps = 9.0, expected an integer"),
    (
        lambda: record(ring(), [0, 1], 10),
        ValueError,
        "policy has 2 actions, expected at least num_steps - 1 = 9",
    ),
    (lambda: record(ring(), [3] * 9, 10), ValueError, "policy gave the action 3, expected one of"),
    (
        lambda: record(ring(), lambda obs, rng: 0, 10, actions=[1, 2]),
        ValueError,
        r"policy gave the action 0, expected one of 2 \(1, 2",
    ),
    (lambda: record(ring(), actions=[4]), ValueError, "actions holds 4, expected elements of"),
    (lambda: record(ring(), actions=[]), ValueError, "actions is empty"),
    (
        lambda: record(ring(action_space=BOX)),
        TypeError,
        r"action space is Box\(.*expected Discrete.*pass actions=",
    ),
    (
        lambda: record(ring(action_space=spaces.MultiBinary(20))),
        ValueError,
        "1048576 actions, expected at most 10000; pass actions=",
    ),
    (
        lambda: record(FLOATS, num_steps=5),
        TypeError,
        r"observation has shape \(2,\) and dtype float32, expected integers; pass discretise=",
    ),
    (lambda: record(LONE_FLOAT, num_steps=5), TypeError, "observation is the float .* discretise="),
    (
        lambda: record(ring(), num_steps=5, discretise=lambda obs: {int(obs)}),
        TypeError,
        "observation is a set that cannot be hashed, expected",
    ),
    (
        lambda: record(ring(), num_steps=5, position="agent_pos"),
        ValueError,
        "position = 'agent_pos' is no attribute of Ring",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[case[2] for case in BAD])
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=f"(?s){message}"):
        call()
