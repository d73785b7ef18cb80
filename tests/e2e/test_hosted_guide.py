"""The guide for users of gpt-4o-mini: its config lines are accepted, its arithmetic follows from the catalogue."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

from semievol_api.planning.catalogue import Prices, load_catalogue
from tests.e2e.conftest import Project, Semievol

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/hosted.md").read_text("utf-8").split("## If you use gpt-4o-mini today")[1].split("\n## ")[0]
WAYS = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
HOURS = 730


def a_request(prices: Prices | None) -> float:
    """USD of 500 prompt and 20 answer tokens."""
    assert prices is not None and prices.input_usd is not None and prices.output_usd is not None
    return (500 * prices.input_usd + 20 * prices.output_usd) / 1e6


@pytest.mark.parametrize("lines", WAYS, ids=["per token", "rented GPU", "own machine"])
def test_each_way_is_a_config_that_is_accepted_after_the_shutdown(
    lines: str, project: Project, semievol: Semievol, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("NEBIUS_API_KEY", "CRUSOE_API_KEY"):
        monkeypatch.setenv(key, "planted-0123456789")
    before = project.config.read_text("utf-8")
    kept = before[: before.index("[providers.mine]")] + before[before.index("[train]") :]
    project.config.write_text(f"{kept}\n{lines}", "utf-8")
    done = semievol("check", project.config, "--on", "2027-01-15")
    assert done.code == 0, done.err


def test_the_guide_has_three_ways_and_both_days() -> None:
    assert len(WAYS) == 3
    assert "2027-01-06" in GUIDE and "2027-01-13" in GUIDE and "2027-01-14" in GUIDE
    facts = load_catalogue().facts("openai", "gpt-4o-mini")
    assert facts is not None and str(facts.last_training_date) == "2027-01-06"
    assert facts.shutdown_date == datetime.date(2027, 1, 14)
    assert "2027-01-06" in (ROOT / "README.md").read_text("utf-8")
    assert "2027-01-14" in (ROOT / "README.md").read_text("utf-8")


def test_the_guides_sums_are_those_of_the_catalogue() -> None:
    catalogue = load_catalogue()
    today = a_request(catalogue.prices("openai", "ft:gpt-4o-mini:x"))
    for each in (
        today,
        a_request(catalogue.prices("nebius", "meta-llama/Llama-3.1-8B-Instruct")),
        a_request(catalogue.prices("tinker", "Qwen/Qwen3-8B")),
    ):
        assert f"| ${each:.7f}".rstrip("0") in GUIDE
        assert f"| ${each * 1e5:,.2f} | ${each * 1e6:,.2f} |" in GUIDE
    hours = {name: catalogue.vendors[name].gpu_hour_usd["H100"] for name in ("crusoe", "together", "fireworks")}
    assert f"| ${hours['crusoe'] * HOURS:,.0f} |" in GUIDE and f"| ${hours['crusoe'] * 30:,.0f} |" in GUIDE
    for usd in hours.values():
        assert f"(${usd:.2f})" in GUIDE or f"(${usd:.2f} an hour)" in GUIDE.replace("\n", " ")
        assert f"{HOURS * usd / today / 1e6:.0f} million" in GUIDE.replace("\n", " ")
    luna = a_request(catalogue.facts("openai", "gpt-6-luna"))
    assert f"${luna:.5f} per request" in GUIDE
