"""The pictures of concepts.md as SVG, drawn from lists of boxes and arrows: ``make docs``. Pure.

Promises: dark on white, so that they can be read on light pages and on dark ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 130, 44  # of a box, in pixels
INK, FILL, LINE = "#1b1f24", "#eef3fb", "#3b6fb6"


class Box(NamedTuple):
    """``x``, ``y``: its centre. ``below``: a second line."""

    name: str
    x: int
    y: int
    below: str = ""
    width: int = WIDTH


class Arrow(NamedTuple):
    """Through ``points``; its label stands at ``at``, or above the middle of the first part."""

    points: Sequence[tuple[int, int]]
    label: str = ""
    at: tuple[int, int] | None = None


def text(x: int, y: int, words: str, size: int = 14, anchor: str = "middle") -> str:
    """A line of text whose baseline is at ``y``."""
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">{escape(words)}</text>'


def box(it: Box) -> str:
    """A rectangle with its name."""
    left, top = it.x - it.width // 2, it.y - HEIGHT // 2
    shape = f'<rect x="{left}" y="{top}" width="{it.width}" height="{HEIGHT}" rx="6" fill="{FILL}" stroke="{LINE}"/>'
    if not it.below:
        return shape + text(it.x, it.y + 5, it.name)
    return shape + text(it.x, it.y - 2, it.name) + text(it.x, it.y + 14, it.below, 11)


def arrow(it: Arrow) -> str:
    """A line with a head at its end."""
    path = " ".join(f"{x},{y}" for x, y in it.points)
    line = f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.5" marker-end="url(#head)"/>'
    if not it.label:
        return line
    (x1, y1), (x2, y2) = it.points[:2]
    x, y = it.at or ((x1 + x2) // 2, (y1 + y2) // 2 - 7)
    return line + text(x, y, it.label, 12)


def picture(width: int, height: int, parts: Sequence[str], title: str) -> str:
    """A whole file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'font-family="system-ui, sans-serif"><title>{escape(title)}</title>'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>'
    )
    return "\n".join([head, '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>', *parts, "</svg>\n"])


def loop() -> str:
    """Who gives what to whom."""
    boxes = (
        Box("prompts", 75, 60, "JSONL, Parquet", 110),
        Box("dealer", 235, 60, "how many may begin"),
        Box("rollout workers", 440, 60, "ask, score, publish"),
        Box("router", 620, 60, "one address", 110),
        Box("engines", 775, 60, "SGLang or embedded", 140),
        Box("learner", 440, 190, "Megatron or FSDP"),
        Box("broadcaster", 620, 190, "wave by wave"),
    )
    arrows = (
        Arrow(((130, 60), (168, 60))),
        Arrow(((300, 60), (373, 60)), "tickets"),
        Arrow(((505, 60), (563, 60)), "HTTP"),
        Arrow(((675, 60), (703, 60))),
        Arrow(((440, 82), (440, 166)), "groups with rewards", (510, 130)),
        Arrow(((505, 190), (553, 190))),
        Arrow(((685, 190), (775, 190), (775, 84)), "weights, in flight", (762, 214)),
        Arrow(((375, 190), (235, 190), (235, 84)), "version", (300, 214)),
    )
    return picture(860, 240, [*map(arrow, arrows), *map(box, boxes)], "The loop of a run")


def group() -> str:
    """The states of a group in the ledger."""
    names = ("waiting", "in flight", "ready", "batched", "trained")
    below = ("dealt", "a worker has it", "scored, published", "on record", "in a checkpoint")
    boxes = [Box(name, 85 + 170 * place, 80, below[place], 120) for place, name in enumerate(names)]
    moves = ("claimed", "published", "batched", "commit")
    arrows = [
        Arrow(((145 + 170 * i, 80), (193 + 170 * i, 80)), move, (170 + 170 * i, 50)) for i, move in enumerate(moves)
    ]
    arrows += [
        Arrow(((235, 58), (235, 24), (85, 24), (85, 56)), "failed, released", (160, 18)),
        Arrow(((255, 102), (255, 152), (358, 152)), "refused, given up", (294, 172)),
        Arrow(((425, 102), (425, 128)), "too old", (460, 120)),
        Arrow(((595, 102), (595, 152), (492, 152)), "cannot be trained", (574, 172)),
    ]
    dropped = Box("dropped", 425, 152, "with a reason", 132)
    return picture(860, 190, [*map(arrow, arrows), *map(box, [*boxes, dropped])], "The life of a prompt group")


def lag() -> str:
    """One response across an update of the weights, and the lags of its tokens."""
    first, each = 90, 110  # left edge of version 3, width of a version
    versions = range(3, 9)
    parts = [text(20, 45, "learner", 12, "start"), text(20, 115, "response", 12, "start")]
    for place, version in enumerate(versions):
        left = first + each * place
        fill = FILL if place % 2 else "#ffffff"
        parts.append(f'<rect x="{left}" y="24" width="{each}" height="34" fill="{fill}" stroke="{LINE}"/>')
        parts.append(text(left + each // 2, 46, f"version {version}", 13))
    for version, width, shade, count in ((4, 80, "#9cc0ee", "tokens of 4"), (5, 50, "#f3c98b", "of 5")):
        left = first + each * (version - 3) + (30 if version == 4 else 0)
        parts.append(f'<rect x="{left}" y="96" width="{width}" height="30" fill="{shade}" stroke="{LINE}"/>')
        parts.append(text(left + width // 2, 116, count, 12))
    parts.append(arrow(Arrow(((365, 111), (475, 111), (475, 62)))))
    parts.append(text(415, 103, "ready", 12))
    parts.append(text(486, 96, "trained in step 7, at version 6:", 12, "start"))
    parts.append(text(486, 114, "lags 2 and 1; the group's is 2", 12, "start"))
    return picture(800, 145, parts, "A response across an update of the weights")


PAGES = {"loop.svg": loop, "group.svg": group, "lag.svg": lag}
