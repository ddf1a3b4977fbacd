"""What a server counts, and the text that Prometheus reads (its exposition format 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

BOUNDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)  # seconds from a piece to its answer


class Meter:
    """Counts for one model.

    Attributes:
        joined, resumed: streams that began, and that came back.
        restarts: streams that began anew since their numbers were not finite.
        late: ticks that took longer than a chunk lasts.
    """

    def __init__(self) -> None:
        self.joined = self.resumed = self.restarts = 0
        self.ticks = self.late = 0
        self.busy, self.waited = 0.0, 0.0
        self._answers = [0] * (len(BOUNDS) + 1)

    def answer(self, seconds: float) -> None:
        """A piece was answered so long after it came."""
        self._answers[bisect_left(BOUNDS, seconds)] += 1
        self.waited += seconds

    def tick(self, seconds: float, period: float) -> None:
        self.ticks += 1
        self.busy += seconds
        self.late += seconds > period

    def lines(self, model: str, live: int, away: int) -> Iterator[tuple[str, str, str, float]]:
        """Name, kind, labels and value of each number."""
        label = f'model="{model}"'
        yield "lrnnx_streams", "gauge", label, live
        yield "lrnnx_streams_away", "gauge", label, away
        for name, value in (
            ("streams_joined", self.joined),
            ("streams_resumed", self.resumed),
            ("streams_restarted", self.restarts),
            ("ticks", self.ticks),
            ("ticks_late", self.late),
            ("busy_seconds", self.busy),
        ):
            yield f"lrnnx_{name}_total", "counter", label, value
        counts = list(accumulate(self._answers))
        for bound, count in zip((*BOUNDS, "+Inf"), counts, strict=True):
            yield "lrnnx_answer_seconds_bucket", "histogram", f'{label},le="{bound}"', count
        yield "lrnnx_answer_seconds_sum", "histogram", label, self.waited
        yield "lrnnx_answer_seconds_count", "histogram", label, counts[-1]


def text(lines: Iterator[tuple[str, str, str, float]], closed: Counter[int]) -> str:
    """The whole page: a family's type stands once, before its numbers."""
    rows = [
        *lines,
        *(("lrnnx_closed_total", "counter", f'code="{code}"', n) for code, n in sorted(closed.items())),
    ]
    families: dict[tuple[str, str], list[str]] = {}
    for name, kind, labels, value in rows:
        family = name.rsplit("_", 1)[0] if kind == "histogram" else name
        families.setdefault((family, kind), []).append(f"{name}{{{labels}}} {value:.12g}")
    parts = ((f"# TYPE {family} {kind}", *found) for (family, kind), found in families.items())
    return "\n".join(line for part in parts for line in part) + "\n"
