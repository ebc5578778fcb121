"""Worlds to walk in: rooms, tracks, published ones, and recordings of others."""

from .egocentric import EGOCENTRIC_ACTIONS, HEADINGS, EgocentricRoom, bordered_room
from .published import published_room, published_room_names
from .recorder import label_of, record
from .rooms import ACTIONS, Room, random_room
from .tracks import TrackWalk, grid_of_rooms, lap_track, t_maze
from .world import Walk, World

__all__ = [
    "ACTIONS",
    "EGOCENTRIC_ACTIONS",
    "HEADINGS",
    "EgocentricRoom",
    "Room",
    "TrackWalk",
    "Walk",
    "World",
    "bordered_room",
    "grid_of_rooms",
    "label_of",
    "lap_track",
    "published_room",
    "published_room_names",
    "random_room",
    "record",
    "t_maze",
]
