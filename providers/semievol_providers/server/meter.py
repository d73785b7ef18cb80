"""Counts what the server does, as Prometheus text. Labels are route names and statuses: never a prompt, key or id.

Knows nothing of HTTP handling or of what is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

_BOUNDS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Meter:
    """Counters since the server started; `text` adds the numbers of the moment."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One finished request."""
        self._requests[route, method, status] += 1
        self._buckets.update((route, bound) for bound in (*_BOUNDS_S, float("inf")) if seconds <= bound)
        self._seconds[route] += seconds  # type: ignore[assignment]

    def count_tokens(self, prompt: int, completion: int) -> None:
        """The tokens of one answer."""
        self._tokens["prompt"] += prompt
        self._tokens["completion"] += completion

    def text(self, now: Mapping[str, Mapping[str, float]]) -> str:
        """All numbers; `now` maps a gauge's name to its value for each label pair ("" for none)."""
        lines = list(self._counters())
        for name, values in now.items():
            lines.append(f"# TYPE semievol_{name} gauge")
            lines += [f"semievol_{name}{{{label}}} {value:g}" if label else f"semievol_{name} {value:g}"
                      for label, value in values.items()]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _counters(self) -> Iterable[str]:
        yield "# TYPE semievol_requests_total counter"
        for (route, method, status), count in sorted(self._requests.items()):
            yield f'semievol_requests_total{{route="{route}",method="{method}",status="{status}"}} {count}'
        yield "# TYPE semievol_request_seconds histogram"
        for route, seconds in sorted(self._seconds.items()):
            for bound in (*_BOUNDS_S, float("inf")):
                shown = "+Inf" if bound == float("inf") else f"{bound:g}"
                count = self._buckets[route, bound]
                yield f'semievol_request_seconds_bucket{{route="{route}",le="{shown}"}} {count}'
            yield f'semievol_request_seconds_sum{{route="{route}"}} {seconds:.6f}'
            yield f'semievol_request_seconds_count{{route="{route}"}} {self._buckets[route, float("inf")]}'
        yield "# TYPE semievol_tokens_total counter"
        for kind in ("prompt", "completion"):
            yield f'semievol_tokens_total{{kind="{kind}"}} {self._tokens[kind]}'
