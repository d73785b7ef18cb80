"""The server's numbers in Prometheus' text format, in a registry of each application's own.

    meter.count_request("chat", "POST", 200, seconds=0.1)
    text = meter.text({"engine_ready": 1.0}, {"jobs": {"running": 1.0}})

Counters stand since the server started; gauges are what the caller read just now. Names and labels are a contract
(docs/serve.md). Knows nothing of HTTP or of who asked what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MEDIA_TYPE = "text/plain; version=0.0.4"
"""The format that `Meter.text` writes."""

_BOUNDS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Meter:
    """Counters since the server started; `text` adds the numbers of the moment."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "semievol_requests", "Finished requests.", ("route", "method", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "semievol_request_seconds",
            "How long a request took.",
            ("route",),
            buckets=_BOUNDS_S,
            registry=self._registry,
        )
        tokens = Counter("semievol_tokens", "Tokens read and written.", ("kind",), registry=self._registry)
        self._prompt, self._completion = tokens.labels("prompt"), tokens.labels("completion")

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One finished request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_tokens(self, prompt: int, completion: int) -> None:
        """The tokens of one answer."""
        self._prompt.inc(prompt)
        self._completion.inc(completion)

    def text(self, now: Mapping[str, float], by_status: Mapping[str, Mapping[str, float]]) -> str:
        """All numbers: the counters, single gauges by name, and gauges by name and status."""
        return generate_latest(_Shown(self._registry, now, by_status)).decode()


@dataclass(frozen=True)
class _Shown(Collector):
    """The counters without the time when each began, which nobody was promised, and the gauges of the moment."""

    counters: CollectorRegistry
    now: Mapping[str, float]
    by_status: Mapping[str, Mapping[str, float]]

    def collect(self) -> Iterator[Metric]:
        for metric in self.counters.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
        for name, value in self.now.items():
            yield GaugeMetricFamily(f"semievol_{name}", f"{name.replace('_', ' ')} now.".capitalize(), value=value)
        for name, counts in self.by_status.items():
            gauge = GaugeMetricFamily(f"semievol_{name}", f"{name} by status now.".capitalize(), labels=("status",))
            for status, count in counts.items():
                gauge.add_metric((status,), count)
            yield gauge
