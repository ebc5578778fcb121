"""Worlds to walk in: rooms seen from above or by a walker, and the rooms of the literature."""

from .published import published_room, published_room_names
from .rooms import ACTIONS, Room, random_room
from .world import Walk, World

__all__ = [
    "ACTIONS",
    "Room",
    "Walk",
    "World",
    "published_room",
    "published_room_names",
    "random_room",
]
