"""The table as a picture; needs matplotlib (extra ``plots``)."""

from collections.abc import Sequence
from typing import Any

from warmfleet_proto.settings import ConfigError

from warmfleet_router.replay.report import Row

PANELS = (("ttft_mean", "TTFT mean, s"), ("ttft_p99", "TTFT p99, s"), ("hit", "hit rate"), ("skew", "skew"))


def draw(rows: Sequence[Row], path: str) -> None:
    """Writes a PNG. Raises ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--png needs matplotlib: pip install 'warmfleet[plots]'") from None
    figure: Any = Figure(figsize=(3 * len(PANELS), 3.2), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        axes.barh([row.policy for row in rows], [getattr(row, column) for row in rows])
        axes.set_title(title)
        axes.invert_yaxis()
    figure.savefig(path, dpi=120)
