"""What a bar says of itself: figures, what was wanted, and whether they meet."""

from typing import NamedTuple


class Row(NamedTuple):
    bar: str
    what: str
    figure: str
    wanted: str = ""  # empty: shown for its own sake
    ok: bool = True

    def __str__(self) -> str:
        verdict = "" if not self.wanted else f"  (bar: {self.wanted}) {'ok' if self.ok else 'MISSED'}"
        return f"bar {self.bar}: {self.what}: {self.figure}{verdict}"


def table(rows: list[Row]) -> str:
    """All rows under each other, for the end of a run."""
    cells = [("bar", "what", "figure", "wanted", "")]
    cells += [(r.bar, r.what, r.figure, r.wanted, verdict(r)) for r in rows]
    widths = [max(len(row[n]) for row in cells) for n in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def verdict(row: Row) -> str:
    return "" if not row.wanted else "ok" if row.ok else "MISSED"
