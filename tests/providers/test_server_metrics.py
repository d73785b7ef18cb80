"""The server's counters: names, labels and figures as documented, apart for each application."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from semievol_providers.server.gate import Meter


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by name and labels, as Prometheus itself reads it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_the_names_and_labels_that_are_documented() -> None:
    meter = Meter()
    meter.count_request("chat", "POST", 200, seconds=0.02)
    meter.count_request("chat", "POST", 200, seconds=70.0)
    meter.count_tokens(30, 4)
    found = read(meter.text({"engine_ready": 1.0}, {"jobs": {"running": 2.0}, "batches": {}}))
    asked = frozenset({("route", "chat"), ("method", "POST"), ("status", "200")})
    route = ("route", "chat")
    bounds = ("0.005", "0.02", "0.1", "0.5", "2.0", "10.0", "60.0", "+Inf")
    counts = (0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0)
    assert found == {
        ("semievol_requests_total", asked): 2.0,
        ("semievol_request_seconds_sum", frozenset({route})): 70.02,
        ("semievol_request_seconds_count", frozenset({route})): 2.0,
        ("semievol_tokens_total", frozenset({("kind", "prompt")})): 30.0,
        ("semievol_tokens_total", frozenset({("kind", "completion")})): 4.0,
        ("semievol_engine_ready", frozenset()): 1.0,
        ("semievol_jobs", frozenset({("status", "running")})): 2.0,
    } | {
        ("semievol_request_seconds_bucket", frozenset({route, ("le", bound)})): count
        for bound, count in zip(bounds, counts, strict=True)
    }


def test_two_applications_in_one_process_count_apart() -> None:
    first, second = Meter(), Meter()
    first.count_tokens(5, 5)
    assert read(second.text({}, {}))["semievol_tokens_total", frozenset({("kind", "prompt")})] == 0.0
