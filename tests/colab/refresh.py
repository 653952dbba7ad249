"""Give the pins of tests/colab/pins.txt the versions of a published list of Colab's packages.

    python -m tests.colab.refresh pip-freeze.gpu.txt 2026-08-19

What it does: take from the list (`pip-freeze.gpu.txt` of googlecolab/backend-info on GitHub, and
the day of its commit) the version of every package that is pinned, and say which are gone. What it
does not do: fetch the list, or choose packages: add a name to pins.txt with any version.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PINS = Path(__file__).with_name("pins.txt")
PIN = re.compile(r"^([\w.-]+)==([^\s+]+)", re.MULTILINE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """`{name: version}` of a list in pip's format, without a build's mark such as +cu128."""
    return {normal(name): version for name, version in PIN.findall(text)}


def refreshed(old: str, published: str, day: str) -> tuple[str, list[str]]:
    """The new text of pins.txt, and the names that the published list no longer has."""
    new = pins(published)
    comments = [line for line in old.splitlines() if line.startswith("#")]
    comments[-1] = f"# Published {day}"
    names = sorted(pins(old))
    lines = [f"{name}=={new[name]}" for name in names if name in new]
    return "\n".join([*comments, *lines]) + "\n", [name for name in names if name not in new]


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__.strip())
        return 2
    published = Path(sys.argv[1]).read_text(encoding="utf-8")
    text, gone = refreshed(PINS.read_text(encoding="utf-8"), published, sys.argv[2])
    PINS.write_text(text, encoding="utf-8")
    print(f"{len(pins(text))} packages pinned; no longer on Colab: {', '.join(gone) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
