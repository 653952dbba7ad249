"""A small canvas for the concept figures: text that must fit, boxes and arrows as SVG, in light and
in dark.

What it does: write SVG that looks the same on every machine, and refuse a text that would not fit.
What it does not do: know what is drawn (draw.py does). Every picture has a card of its own behind
it and follows the reader's light or dark mode, so no text depends on the page.
"""

from __future__ import annotations

import html
import math
import unicodedata

WIDTH = 920
MONO = (
    "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', NanumGothicCoding, "
    "monospace"
)
SANS = (
    "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, 'Apple SD Gothic Neo', 'Malgun "
    "Gothic', 'Noto Sans KR', NanumGothic"
)
LIGHT = {  # name: (fill, outline) of boxes; one colour for text and lines
    "card": ("#ffffff", "#d0d7de"),
    "plain": ("#eff2f5", "#8c959f"),
    "blue": ("#d8ebff", "#2b7bd6"),
    "green": ("#d9f2e3", "#2e8b57"),
    "red": ("#fbdedd", "#c0504d"),
    "yellow": ("#fdeec5", "#b98512"),
    "hollow": ("none", "#8c959f"),
    "none": ("none", "none"),
    "ink": "#1f2328",
    "soft": "#57606a",
    "deep": "#0b57b0",
}
DARK = {
    "card": ("#161b22", "#3d444d"),
    "plain": ("#2a313c", "#7d8590"),
    "blue": ("#133a66", "#58a6ff"),
    "green": ("#14432a", "#43b077"),
    "red": ("#5a2423", "#d96b68"),
    "yellow": ("#574310", "#dcae45"),
    "hollow": ("none", "#7d8590"),
    "none": ("none", "none"),
    "ink": "#e6edf3",
    "soft": "#a5b0bc",
    "deep": "#8ab8ff",
}

Words = str | tuple[str, str]  # the same in both languages, or (English, Korean)


class Picture:
    """SVG as a list of strings. Coordinates are pixels from the upper left corner; a text that
    would not fit is an error, not a blot."""

    def __init__(self, title: Words, height: int, korean: bool) -> None:
        self.korean, self.height, self.title = korean, height, title
        self.parts: list[str] = []

    def say(self, words: Words) -> str:
        return words if isinstance(words, str) else words[self.korean]

    def text(
        self,
        x,
        y,
        words: Words,
        size=15,
        anchor="start",
        tone="ink",
        mono=False,
        bold=False,
        room: float | None = None,
    ) -> None:
        """One line; `y` is its baseline. `room` is the width that it may take; without it: up to
        the edge of the card."""
        said = self.say(words)
        left, right = x - 16, WIDTH - 16 - x
        spare = {"start": right, "end": left, "middle": 2 * min(left, right)}[anchor]
        limit = spare if room is None else min(room, spare)
        wide = width(said, size, mono)
        if wide > limit:
            raise ValueError(f"{said!r} is about {wide:.0f} pixels wide, and {limit:.0f} are free")
        style = (
            f' class="{tone}{" mono" if mono else ""}{" bold" if bold else ""}" '
            f'font-size="{size}" text-anchor="{anchor}"'
        )
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}"{style} '
            f'xml:space="preserve">{html.escape(said, quote=False)}</text>'
        )

    def box(
        self, x, y, w, h, *lines: Words, tone="plain", size=15, mono=False, dashed=False
    ) -> None:
        """A rounded box with centred lines: the first in bold, the others smaller and softer."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect class="{tone}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="7"{dash}/>'
        )
        sizes = [size if i == 0 else size - 2 for i in range(len(lines))]
        top = y + (h - sum(1.35 * s for s in sizes)) / 2
        for i, line in enumerate(lines):
            baseline = top + sum(1.35 * s for s in sizes[:i]) + 1.02 * sizes[i]
            self.text(
                x + w / 2,
                baseline,
                line,
                sizes[i],
                "middle",
                tone="ink" if i == 0 or tone != "plain" else "soft",
                mono=mono and i == 0,
                bold=i == 0 and len(lines) > 1,
                room=w - 6,
            )

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points with a head at the last one."""
        (x0, y0), (x1, y1) = points[-2:]
        angle = math.atan2(y1 - y0, x1 - x0)
        back = x1 - 9 * math.cos(angle), y1 - 9 * math.sin(angle)
        sides = [
            (back[0] + s * 5 * math.sin(angle), back[1] - s * 5 * math.cos(angle)) for s in (1, -1)
        ]
        head = " ".join(f"{x:.1f},{y:.1f}" for x, y in ((x1, y1), *sides))
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*points[:-1], back))
        self.parts.append(
            f'<polyline class="line-soft" points="{way}"/><polygon class="soft" points="{head}"/>'
        )

    def svg(self) -> str:
        said = html.escape(self.say(self.title))
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" '
            f'width="{WIDTH}" height="{self.height}" role="img"'
        )
        style = (
            f"{css(LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{css(DARK)}\n}}\ntext {{ "
            f"font-family: {SANS}, sans-serif; }}"
        )
        style += (
            f"\n.mono {{ font-family: {MONO}; }}\n.bold {{ font-weight: 600; }}\npolyline {{ "
            "fill: none; stroke-width: 1.6; }}"
        )
        card = (
            f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" '
            f'height="{self.height - 1}" rx="10"/>'
        )
        lines = [
            f'{head} aria-label="{said}" lang="{"ko" if self.korean else "en"}">',
            f"<title>{said}</title>",
        ]
        return (
            "\n".join([*lines, f"<style>\n{style}\n</style>", card, *self.parts, "</svg>"]) + "\n"
        )


def css(colours: dict) -> str:
    rules = []
    for name, value in colours.items():
        if isinstance(value, tuple):
            rules.append(f".{name} {{ fill: {value[0]}; stroke: {value[1]}; }}")
        else:
            rules.append(f".{name} {{ fill: {value}; }} .line-{name} {{ stroke: {value}; }}")
    return "\n".join(rules)


def width(text: str, size: float, mono: bool = False) -> float:
    """About how many pixels a text takes, on the wide side: fonts differ between machines."""
    return size * sum(_share(character, mono) for character in text)


def _share(character: str, mono: bool) -> float:
    """The width of a character in sizes of its font."""
    if unicodedata.east_asian_width(character) in "WF":
        return 1.2 if mono else 0.98
    if mono:
        return 0.61
    if character in " ijltfrI.,:;'|!()[]-":
        return 0.36
    return 0.8 if character in "mwMW%@×→" or character.isupper() else 0.6


def wrapped(text: str, room: float, size: float) -> list[str]:
    """The text in lines of at most `room` pixels, broken at spaces."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and width(f"{lines[-1]} {word}", size) > room:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
