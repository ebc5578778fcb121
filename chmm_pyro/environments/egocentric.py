"""A room seen by the walker in it: what lies ahead, relative to the heading."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .rooms import Room
from .world import World, positive_integer

__all__ = ["EGOCENTRIC_ACTIONS", "HEADINGS", "EgocentricRoom", "bordered_room"]

EGOCENTRIC_ACTIONS = ("forward", "turn right", "turn left")
"""The names of actions 0 to 2, in the order of the published walks."""

HEADINGS = ("up", "right", "down", "left")
"""The names of headings 0 to 3, each the one before it turned to the right."""

_STEPS = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # one cell ahead, for each heading
_HIDDEN = -1

IntArray = NDArray[np.int64]


class EgocentricRoom(World):
    """A walker with a heading in a room, who sees a patch of it and turns or goes forward.

    The places of this world are poses: a cell of the room and a heading.  A pose shows the cells
    of a patch around the walker, ``width`` columns and ``depth`` rows with the heading pointing
    up; the walker stands in the middle column, ``behind`` rows from its lower edge.  Outside the
    room and in holes nothing is seen, nor anything beyond them in the same column.  Each distinct
    view is a symbol.

    The defaults are those of Raju et al. 2024: their published code shows a 4x3 patch with one row
    behind the walker and lets it never walk into walls (``walls="never"`` of the room).  In a
    :func:`bordered_room` of at least 7x7 cells this gives their 117 observations.

    Args:
        room: where to walk.  ``walls`` says whether random walkers try to go forward where there
            is no way.
        depth: rows of the patch.
        width: columns of the patch, odd.
        behind: rows of the patch behind the walker.

    Attributes:
        room: as given.
        views: ``(V, depth, width)`` what each symbol stands for: symbols of the room, -1 where
            nothing is seen.
        headings: ``(P,)`` heading of each pose, see :data:`HEADINGS`; pose ``4 * place + heading``.
        symbols: ``(P,)`` view at each pose.
        positions: ``(P, 2)`` row and column of each pose.
        next_place: ``(P, 3)`` pose after each of :data:`EGOCENTRIC_ACTIONS`.
        tried: ``(P, 3)`` whether a random walker tries the action.

    References:
        R. V. Raju, J. S. Guntupalli, G. Zhou, C. Wendelken, M. Lázaro-Gredilla, D. George 2024,
        "Space is a latent sequence: a theory of the hippocampus", Science Advances 10:eadm8470.

    Example:
        >>> world = EgocentricRoom(bordered_room(7, 7, walls="never"))
        >>> world
        EgocentricRoom(7x7, 196 poses, 117 views of 4x3, walls='never')
        >>> pose = world.pose_of((0, 3, 3))  # at the upper edge, looking left
        >>> world.views[world.symbols[pose]]
        array([[ 0,  1, -1],
               [ 0,  1, -1],
               [ 0,  1, -1],
               [ 0,  1, -1]])
    """

    def __init__(self, room: Room, *, depth: int = 4, width: int = 3, behind: int = 1) -> None:
        positive_integer("depth", depth)
        if positive_integer("width", width) % 2 == 0:
            raise ValueError(
                f"width = {width}, expected an odd number: the walker is in the middle."
            )
        if not 0 <= behind < depth:
            raise ValueError(f"behind = {behind}, expected 0 <= behind < depth = {depth}.")
        if (Room(room.layout).next_place != room.next_place).any():
            raise ValueError(
                f"room = {room} has walls between cells, which a view cannot show; expected a room "
                "without `blocked`, make the walls holes (-1)."
            )
        self.room = room
        seen = _patches(room, depth, width, behind).reshape(4 * room.num_places, -1)
        patches, symbols = np.unique(seen, axis=0, return_inverse=True)
        self.views = patches.reshape(-1, depth, width)
        self.headings = np.tile(np.arange(4), room.num_places)
        for array in (self.views, self.headings):
            array.flags.writeable = False
        next_pose = _next_poses(room)
        tried = np.ones_like(next_pose, dtype=bool)
        if room.walls == "never":
            tried[:, 0] = next_pose[:, 0] != np.arange(len(next_pose))
        super().__init__(
            symbols=symbols.reshape(-1),
            positions=np.repeat(room.positions, 4, axis=0),
            next_place=next_pose,
            tried=tried,
            action_names=EGOCENTRIC_ACTIONS,
        )

    def pose_of(self, pose: ArrayLike) -> Any:
        """The place that a row, column and heading are.

        Args:
            pose: ``(..., 3)``.

        Returns:
            An int for one pose, else ``(...)``.

        Example:
            >>> EgocentricRoom(Room([[0, 1]]), depth=2).pose_of((0, 1, 2))
            6
        """
        fields = np.asarray(pose)
        if fields.shape[-1:] != (3,) or fields.dtype.kind not in "iu":
            raise ValueError(
                f"pose has shape {fields.shape} and dtype {fields.dtype}, expected integers "
                "(..., 3): row, column and heading."
            )
        heading = fields[..., 2]
        if ((heading < 0) | (heading >= 4)).any():
            raise ValueError(
                f"pose has heading {heading.max() if heading.max() > 3 else heading.min()}, "
                f"expected 0 to 3 for {HEADINGS}."
            )
        found = 4 * np.asarray(self.room.place_of_position(fields[..., :2])) + heading
        return int(found) if found.ndim == 0 else found

    def _start_places(self, start: ArrayLike) -> IntArray:
        return np.asarray(self.pose_of(start))

    def __repr__(self) -> str:
        size = "x".join(map(str, self.room.layout.shape))
        depth, width = self.views.shape[1:]
        return (
            f"EgocentricRoom({size}, {self.num_places} poses, {self.num_symbols} views of "
            f"{depth}x{width}, walls={self.room.walls!r})"
        )


def bordered_room(height: int, width: int, **options: Any) -> Room:
    """A room with a uniform middle, four distinct edges and four distinct corners.

    Args:
        height: rows, at least 3.
        width: columns, at least 3.
        options: as in :class:`Room`.

    Example:
        >>> bordered_room(3, 4).layout
        array([[5, 1, 1, 7],
               [3, 0, 0, 4],
               [6, 2, 2, 8]])
    """
    for name, value in (("height", height), ("width", width)):
        if positive_integer(name, value) < 3:
            raise ValueError(f"{name} = {value}, expected at least 3: an edge, a middle, an edge.")
    layout = np.zeros((height, width), dtype=np.int64)
    layout[0], layout[-1], layout[:, 0], layout[:, -1] = 1, 2, 3, 4
    layout[[0, -1, 0, -1], [0, 0, -1, -1]] = 5, 6, 7, 8
    return Room(layout, **options)


def _patches(room: Room, depth: int, width: int, behind: int) -> IntArray:
    """``(num_places, 4, depth, width)`` room symbols, ``_HIDDEN`` where nothing is seen."""
    margin = max(depth, width)
    framed = np.pad(room.layout, margin, constant_values=_HIDDEN)
    ahead = np.arange(depth)[::-1, None] - behind  # rows of the patch, the farthest first
    aside = np.arange(width) - width // 2
    right = np.roll(_STEPS, -1, axis=0)
    offsets = _STEPS[:, None, None] * ahead[..., None] + right[:, None, None] * aside[:, None]
    cells = room.positions[:, None, None, None] + margin + offsets
    patches = framed[cells[..., 0], cells[..., 1]]
    # Nothing is seen beyond what hides a column, from the row of the walker on.
    own_row = depth - 1 - behind
    for row in range(own_row - 1, -1, -1):
        patches[..., row, :][patches[..., row + 1, :] == _HIDDEN] = _HIDDEN
    return patches


def _next_poses(room: Room) -> IntArray:
    """``(4 * num_places, 3)``."""
    place, heading = np.divmod(np.arange(4 * room.num_places), 4)
    of_heading = np.array([2, 1, 3, 0])  # the room's action that goes up, right, down, left
    forward = room.next_place[place, of_heading[heading]]
    turned = [4 * place + (heading + turn) % 4 for turn in (1, -1)]
    return np.stack([4 * forward + heading, *turned], axis=1)
