"""The catalogue: dated facts per vendor and model, the user's on top, and what a day means for them."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from semievol_api.capabilities import ModelLimits, Provider
from semievol_api.catalogue import availability, load_catalogue, refuse_ended, with_limits
from semievol_api.errors import ConfigError, MissingAbilityError

DAY = datetime.date
TODAY = DAY(2026, 11, 21)
MODEL = "gpt-4o-mini-2024-07-18"


def test_every_fact_has_a_date_and_a_source_and_every_date_comes_in_order() -> None:
    catalogue = load_catalogue()
    assert len(catalogue.models) >= 10
    for facts in catalogue.models:
        assert facts.checked <= TODAY and facts.source
        assert set(facts.weak) <= set(type(facts).model_fields)
        if facts.last_training_date and facts.shutdown_date:
            assert facts.last_training_date < facts.shutdown_date
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
    assert catalogue.stale(theirs, DAY(2026, 12, 5)) is None
    assert "checked 12 days ago" in (catalogue.stale(theirs, DAY(2026, 12, 13)) or "")


@pytest.mark.parametrize(
    ("text", "words"),
    [("[[models]]\nvendr = 'x'", "vendr"), ("[[models]]\nvendor = 'x'\nmodel = 'y'\ninput_usd = -1", "input_usd")],
)
def test_a_wrong_file_of_the_users_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_catalogue(tmp_path / "own.toml")


@pytest.mark.parametrize(
    ("day", "can_ask", "can_train", "words"),
    [
        (TODAY, True, True, ""),
        (DAY(2027, 1, 2), True, True, "in 12 days; new jobs are accepted until 2027-01-06"),
        (DAY(2027, 1, 6), True, True, "in 8 days"),
        (DAY(2027, 1, 7), True, False, "no new fine-tuning job"),
        (DAY(2027, 1, 13), True, False, "until 2027-01-14"),
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
    late = refusal(DAY(2027, 4, 2))
    assert 'vendor = "azure"' not in late and 'vendor = "semievol"' in late
    answering = availability(catalogue, "openai", MODEL, DAY(2027, 1, 7))
    refuse_ended(catalogue, answering, DAY(2027, 1, 7), trains=False)
