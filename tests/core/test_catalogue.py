"""The catalogue: dated facts per vendor and model, the user's on top, and what a day means for them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import get_args
from zoneinfo import ZoneInfo

import pytest

from semievol_api.capabilities import ModelLimits, Provider
from semievol_api.errors import ConfigError, MissingAbilityError
from semievol_api.planning.catalogue import Strength, availability, load_catalogue, refuse_ended, utc_day
from semievol_api.planning.limits import with_limits

DAY = datetime.date
TODAY = DAY(2026, 11, 30)
MODEL = "gpt-4o-mini-2024-07-18"


def test_every_fact_has_a_date_and_a_source_and_every_date_comes_in_order() -> None:
    catalogue = load_catalogue()
    assert len(catalogue.models) >= 10
    for facts in catalogue.models:
        assert facts.checked <= TODAY and facts.source
        assert set(facts.weak) <= set(type(facts).model_fields)
        if facts.last_training_date and facts.shutdown_date:
            assert facts.last_training_date < facts.shutdown_date
        assert facts.strength in get_args(Strength) and facts.strength != "own", facts.model
        for origin in facts.origins:
            assert origin.source and origin.checked <= TODAY
        if facts.fine_tunable and facts.input_usd is not None:
            assert facts.tuned is not None and facts.training_usd is not None


def test_prices_are_those_of_the_vendor_and_a_tuned_model_has_its_own() -> None:
    limits = with_limits(Provider(name="p", identity="i", vendor="openai"), load_catalogue()).limits
    assert (limits[MODEL].input_usd, limits[MODEL].cached_input_usd, limits[MODEL].output_usd) == (0.15, 0.075, 0.6)
    assert limits["gpt-4o-mini"] == limits[MODEL]
    tuned = limits[f"ft:{MODEL}:mine:semievol:abc"]
    assert (tuned.input_usd, tuned.output_usd, tuned.training_usd) == (0.3, 1.2, 3.0)
    assert "some-other-model" not in limits
    assert MODEL in list(limits) and len(limits) > 5


def test_a_name_that_our_own_server_serves_is_not_openais() -> None:
    catalogue = load_catalogue()
    assert catalogue.facts("compatible", MODEL) is None
    own = catalogue.facts("semievol", MODEL)
    assert own is not None and own.free and own.shutdown_date is None
    assert availability(catalogue, "semievol", MODEL, DAY(2028, 1, 1)).can_train


def test_a_providers_own_limits_stay_where_the_catalogue_says_nothing() -> None:
    own = {"mine": ModelLimits(input_usd=1.0), MODEL: ModelLimits(max_n=8, input_usd=9.0)}
    limits = with_limits(Provider(name="p", identity="i", vendor="openai", limits=own), load_catalogue()).limits
    assert limits["mine"].input_usd == 1.0
    assert (limits[MODEL].max_n, limits[MODEL].input_usd) == (8, 0.15)


OWN = """
stale_after_days = 10

[[models]]
vendor = "openai"
model = "gpt-4o-mini-2024-07-18"
checked = 2026-12-01
input_usd = 1.5
output_usd = 6.0

[[models]]
vendor = "azure"
model = "my-deployment"
checked = 2026-12-01
input_usd = 0.2
output_usd = 0.7
fine_tunable = true
"""


def test_the_users_own_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    catalogue = load_catalogue(tmp_path / "own.toml")
    theirs = catalogue.facts("openai", MODEL)
    assert theirs is not None and theirs.input_usd == 1.5 and theirs.shutdown_date is None
    deployment = catalogue.facts("azure", "my-deployment")
    assert deployment is not None and deployment.source == "the user's own file"
    assert catalogue.facts("openai", "gpt-4.1-mini") is not None
    assert catalogue.stale([theirs], DAY(2026, 12, 11)) is None
    assert "2026-12-01, 11 days" in (catalogue.stale([theirs], DAY(2026, 12, 12)) or "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[models]]\nvendr = 'x'", "vendr"),
        ("[[models]]\nvendor = 'x'\nmodel = 'y'\nchecked = 2026-11-01\ninput_usd = -1", "input_usd"),
    ],
)
def test_a_wrong_file_of_the_users_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_catalogue(tmp_path / "own.toml")


@pytest.mark.parametrize(
    ("day", "can_ask", "can_train", "words"),
    [
        (DAY(2026, 11, 29), True, True, ""),
        (TODAY, True, True, "in 45 days; new jobs are accepted until 2027-01-06 (UTC)"),
        (DAY(2027, 1, 5), True, True, "in 9 days"),
        (DAY(2027, 1, 2), True, True, "in 12 days; new jobs are accepted until 2027-01-06"),
        (DAY(2027, 1, 6), True, True, "in 8 days"),
        (DAY(2027, 1, 7), True, False, "no new fine-tuning job"),
        (DAY(2027, 1, 13), True, False, "until 2027-01-14"),
        (DAY(2027, 1, 14), False, False, "stopped answering on 2027-01-14"),
        (DAY(2027, 1, 15), False, False, "stopped answering on 2027-01-14"),
    ],
)
def test_a_day_says_what_still_works(day: datetime.date, can_ask: bool, can_train: bool, words: str) -> None:
    verdict = availability(load_catalogue(), "openai", f"ft:{MODEL}:x", day)
    assert (verdict.can_ask, verdict.can_train) == (can_ask, can_train)
    assert words in " ".join(verdict.lines)


def test_a_refusal_names_only_what_still_trains_on_that_day() -> None:
    catalogue = load_catalogue()

    def refusal(day: datetime.date) -> str:
        with pytest.raises(MissingAbilityError) as caught:
            refuse_ended(catalogue, availability(catalogue, "openai", MODEL, day), day, trains=True)
        return str(caught.value)

    assert 'vendor = "azure"' in refusal(DAY(2027, 1, 15)) and 'vendor = "nebius"' in refusal(DAY(2027, 1, 15))
    assert "gpt-4o-mini-2024-07-18" in refusal(DAY(2027, 4, 1)), "the same model comes first where it still trains"
    with pytest.raises(MissingAbilityError, match=r'"azure-v1" with model = "gpt-4.1-mini-2025-04-14"'):
        refuse_ended(
            catalogue,
            availability(catalogue, "openai", "gpt-4.1-mini", DAY(2027, 1, 7)),
            DAY(2027, 1, 7),
            trains=True,
        )
    later = refusal(DAY(2027, 4, 2))
    assert 'with model = "gpt-4.1-2025-04-14" (existing customers only; until 2027-04-14 at least)' in later
    late = refusal(DAY(2027, 4, 15))
    assert 'vendor = "azure"' not in late and 'vendor = "semievol"' in late
    assert "tinker" not in late and "coreweave" not in late, "only what a provider of this package can buy"
    answering = availability(catalogue, "openai", MODEL, DAY(2027, 1, 7))
    refuse_ended(catalogue, answering, DAY(2027, 1, 7), trains=False)


@pytest.mark.parametrize(
    ("zone", "local", "day"),
    [
        ("UTC", (2027, 1, 6, 23, 59), DAY(2027, 1, 6)),
        ("UTC", (2027, 1, 7, 0, 0), DAY(2027, 1, 7)),
        ("America/Los_Angeles", (2027, 1, 6, 15, 59), DAY(2027, 1, 6)),
        ("America/Los_Angeles", (2027, 1, 6, 16, 0), DAY(2027, 1, 7)),
        ("Asia/Tokyo", (2027, 1, 7, 8, 59), DAY(2027, 1, 6)),
        ("Asia/Tokyo", (2027, 1, 7, 9, 0), DAY(2027, 1, 7)),
    ],
)
def test_the_day_that_counts_is_that_of_utc_wherever_the_clock_hangs(
    zone: str, local: tuple[int, int, int, int, int], day: datetime.date
) -> None:
    now = datetime.datetime(*local, tzinfo=ZoneInfo(zone))
    assert utc_day(now) == day
    assert availability(load_catalogue(), "openai", MODEL, utc_day(now)).can_train == (day <= DAY(2027, 1, 6))


def test_an_instant_without_a_zone_names_no_day() -> None:
    with pytest.raises(ValueError, match="time zone"):
        utc_day(datetime.datetime(2027, 1, 6, 12))  # noqa: DTZ001


def test_a_training_is_refused_whose_last_job_would_come_too_late_or_whose_model_stops_within_days(
    tmp_path: Path,
) -> None:
    packaged = load_catalogue()
    batched = availability(packaged, "openai", MODEL, DAY(2027, 1, 5), last_job=DAY(2027, 1, 7))
    assert batched.can_ask and not batched.can_train and 'mode = "direct"' in batched.lines[0]
    assert availability(packaged, "openai", MODEL, DAY(2027, 1, 4), last_job=DAY(2027, 1, 6)).can_train
    row = "vendor = 'v'\nmodel = 'm'\nchecked = 2026-11-30\nfine_tunable = true\nshutdown_date = 2027-03-10"
    (tmp_path / "own.toml").write_text(f"[[models]]\n{row}")
    own = load_catalogue(tmp_path / "own.toml")
    assert availability(own, "v", "m", DAY(2027, 3, 3)).can_train, "seven days are left"
    soon = availability(own, "v", "m", DAY(2027, 3, 4))
    assert soon.can_ask and not soon.can_train and "could hardly be used" in soon.lines[0]


def test_what_is_stale_is_told_in_one_line_and_what_costs_nothing_never_is() -> None:
    catalogue = load_catalogue()
    line = catalogue.stale(catalogue.models, DAY(2027, 6, 1)) or ""
    assert line.count("--refresh FILE") == 1 and "and " in line and "\n" not in line
    own = catalogue.facts("semievol", "any")
    assert own is not None and catalogue.stale([own], DAY(2036, 1, 1)) is None
    crusoe = catalogue.facts("crusoe", "meta-llama/Llama-3.1-8B-Instruct")
    assert crusoe is not None and crusoe.training_usd == 0.4
    assert catalogue.stale([crusoe], DAY(2026, 11, 19)) is None, "60 days"
    assert "2026-09-20, 61 days" in (catalogue.stale([crusoe], DAY(2026, 11, 20)) or "")


def test_prices_and_ends_go_stale_each_by_the_day_on_which_they_were_read(tmp_path: Path) -> None:
    text = """
[[models]]
vendor = "v"
model = "m"
checked = 2026-11-30
input_usd = 1.0
output_usd = 1.0
shutdown_date = 2028-01-01
dates_from = { source = "a page", checked = 2026-08-01, strength = "third party" }
"""
    (tmp_path / "own.toml").write_text(text)
    catalogue = load_catalogue(tmp_path / "own.toml")
    facts = catalogue.facts("v", "m")
    assert facts is not None and "2026-08-01" in (catalogue.stale([facts], TODAY) or "")
    assert catalogue.stale_after_days == 60, "a file of one's own that says nothing of it changes nothing"


def test_a_vendors_own_limit_of_alternatives_holds_for_every_model_of_it() -> None:
    provider = Provider(name="p", identity="i", vendor="fireworks", limits={"mine": ModelLimits(max_top_logprobs=3)})
    limits = with_limits(provider, load_catalogue()).limits
    assert limits["accounts/fireworks/models/anything"].max_top_logprobs == 5
    assert limits["mine"].max_top_logprobs == 3


def test_the_corrections_of_november_stand() -> None:
    catalogue = load_catalogue()
    for vendor in ("azure", "azure-v1"):
        rows = {m.aliases[0]: m for m in catalogue.models if m.vendor == vendor}
        assert set(rows) == {"gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"}
        assert all(m.existing_customers_only and m.earliest for m in rows.values())
        assert (rows["gpt-4.1-nano"].last_training_date, rows["gpt-4.1-nano"].shutdown_date) == (
            DAY(2027, 4, 14),
            DAY(2027, 10, 14),
        )
    ends = {m.model: m.shutdown_date for m in catalogue.models if m.vendor == "openai"}
    assert ends["o3"] == DAY(2026, 12, 11) and ends["gpt-5.1"] == DAY(2027, 4, 1)
    nebius = catalogue.facts("nebius", "meta-llama/Llama-3.1-8B-Instruct")
    assert nebius is not None and nebius.unsupported == ("training_usd",)
