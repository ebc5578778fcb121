"""One HTML page that needs nothing else: pictures are inside, nothing is fetched or run."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

__all__ = ["PageFigure", "PageTable", "page"]


@dataclass(frozen=True)
class PageFigure:
    """A picture with its heading.

    Attributes:
        title: the heading.
        png: the file.
        caption: what it shows, which is read out where pictures are not seen.
    """

    title: str
    png: bytes
    caption: str

    @property
    def data(self) -> str:
        """The file in base 64."""
        return base64.b64encode(self.png).decode()

    @property
    def width(self) -> int:
        """Of the page's box: half the pixels, so that it is sharp on fine screens."""
        return struct.unpack(">I", self.png[16:20])[0] // 2

    @property
    def height(self) -> int:
        """As :attr:`width`."""
        return struct.unpack(">I", self.png[20:24])[0] // 2


@dataclass(frozen=True)
class PageTable:
    """A table with its heading.

    Attributes:
        title: the heading.
        header: of the columns.
        rows: texts.
        numbers: whether all but the first column hold numbers.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    numbers: bool = False


def page(
    title: str,
    subtitle: str,
    *,
    facts: list[tuple[str, str]],
    figures: list[PageFigure],
    tables: list[PageTable],
    commands: list[str],
) -> str:
    """The page; every text is escaped.

    Example:
        >>> text = page("<b>", "", facts=[("bits", "1 < 2")], figures=[], tables=[], commands=[])
        >>> "<title>&lt;b&gt;</title>" in text, "<dd>1 &lt; 2</dd>" in text
        (True, True)
    """
    source = files("chmm_pyro").joinpath("data/report.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    return template.render(
        title=title,
        subtitle=subtitle,
        facts=facts,
        figures=figures,
        tables=tables,
        commands=commands,
    )
