"""The rooms of the literature."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from .rooms import Room

__all__ = ["published_room", "published_room_names"]


@cache
def _packaged_rooms() -> dict[str, Any]:
    text = (files("chmm_pyro") / "data" / "rooms.json").read_text(encoding="utf-8")
    return json.loads(text)["rooms"]


def published_room_names() -> tuple[str, ...]:
    """The rooms that :func:`published_room` knows.

    Example:
        >>> published_room_names()[:2]
        ('rectangular_room', 'empty_room')
    """
    return tuple(_packaged_rooms())


def published_room(name: str) -> Room:
    """A room of the literature, from the file ``data/rooms.json``, which names its source.

    Example:
        >>> published_room("rectangular_room")
        Room(6x8, 48 places, 4 symbols, walls='bump')
    """
    rooms = _packaged_rooms()
    if name not in rooms:
        raise ValueError(f"name = {name!r}, expected one of {', '.join(rooms)}.")
    return Room(rooms[name]["layout"], walls=rooms[name]["walls"])
