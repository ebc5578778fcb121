"""Worlds to walk in: rooms seen from above or by a walker, and the rooms of the literature."""

from .egocentric import EGOCENTRIC_ACTIONS, HEADINGS, EgocentricRoom, bordered_room
from .published import published_room, published_room_names
from .rooms import ACTIONS, Room, random_room
from .world import Walk, World

__all__ = [
    "ACTIONS",
    "EGOCENTRIC_ACTIONS",
    "HEADINGS",
    "EgocentricRoom",
    "Room",
    "Walk",
    "World",
    "bordered_room",
    "published_room",
    "published_room_names",
    "random_room",
]
