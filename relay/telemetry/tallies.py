"""Counters and histograms that one thread alone writes to.

Law: what they show is what prometheus_client's own would; but counting is one addition and observing one search by
halves. Its own take a lock, check their labels and walk their bounds in Python: a thirtieth of what an event of three
deliveries costs the loop.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Count:
    """One counter; add to its number."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class Counts(Collector):
    """A counter for each of the labels that are known."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._help = help_text
        self._labels = labels
        self.of: dict[Labels, Count] = {}

    def know(self, labels: Iterable[Labels]) -> None:
        """Count these, and no others, from what they have."""
        self.of = {one: self.of.get(one) or Count() for one in labels}

    def collect(self) -> Iterator[Metric]:
        """What was counted."""
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for labels, count in self.of.items():
            family.add_metric(labels, count.number)
        yield family


class Spread:
    """One histogram: how many values lie up to each bound, and their sum."""

    __slots__ = ("_bounds", "numbers", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.numbers = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Note a value."""
        self.numbers[bisect_left(self._bounds, value)] += 1
        self.total += value


class Spreads(Collector):
    """A histogram for each of the labels that are known."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        """`bounds` are in rising order; a value that is one counts as up to it."""
        self._name = name
        self._help = help_text
        self._bounds = bounds
        self._written = [*map(floatToGoString, bounds), "+Inf"]
        self._labels = labels
        self.of: dict[Labels, Spread] = {} if labels else {(): Spread(bounds)}

    def know(self, labels: Iterable[Labels]) -> None:
        """Observe these, and no others, from what they have."""
        self.of = {one: self.of.get(one) or Spread(self._bounds) for one in labels}

    def collect(self) -> Iterator[Metric]:
        """What was observed."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for labels, spread in self.of.items():
            up_to, buckets = 0, []
            for bound, number in zip(self._written, spread.numbers, strict=True):
                up_to += number
                buckets.append((bound, up_to))
            family.add_metric(labels, buckets, spread.total)
        yield family
