"""What `[train]` says travels whole to the trainer, and is refused where a trainer has no place for it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from semievol_api.capabilities import JobTicket, Provider, TrainSpec
from semievol_api.cassettes.clock import RealClock
from semievol_api.config.method import TrainSettings
from semievol_api.config.settings import parse_settings
from semievol_api.errors import ConfigError
from semievol_api.store.artifacts import TrainingFile
from semievol_api.store.run_store import RunStore
from semievol_api.training.fine_tuning import Trainer, expected_epochs, fine_tune
from semievol_api.training.jobs import cancel, jobs_under
from tests.pinned_keys import LINE, Vendor

ALL_KEYS = tuple(TrainSpec.model_fields)


def _bought(folder: Path, settings: TrainSettings, keys: tuple[str, ...] = ALL_KEYS, name: str = "sft") -> Vendor:
    vendor = Vendor()
    provider = Provider(name="mine", identity="p", finetuner=vendor, train_keys=keys)
    trainer = Trainer(provider=provider, base="tiny", clock=RealClock(), seed=3)
    with RunStore.open(folder, "key") as store:
        asyncio.run(fine_tune(trainer, store, name, TrainingFile(LINE * 12), settings))
    return vendor


def test_what_the_config_says_of_a_training_arrives_whole(tmp_path: Path) -> None:
    settings = TrainSettings(n_epochs=4, final_epochs=5, rank=32, use_dora=False, target_modules="q_proj", patience=2)
    (order,) = _bought(tmp_path, settings.final).orders
    assert order.spec == TrainSpec(n_epochs=5, seed=3, rank=32, use_dora=False, target_modules="q_proj", patience=2)


def test_auto_leaves_epochs_batch_and_rate_to_the_trainer(tmp_path: Path) -> None:
    auto = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    settings = parse_settings(TrainSettings, auto, where="train")
    (order,) = _bought(tmp_path, settings.final).orders
    assert order.spec == TrainSpec(seed=3)
    assert parse_settings(TrainSettings, {"n_epochs": 2, "final_epochs": "auto"}, where="train").final.n_epochs is None
    assert parse_settings(TrainSettings, {"n_epochs": "auto", "final_epochs": 4}, where="train").final.n_epochs == 4
    with pytest.raises(ConfigError, match="n_epochs"):
        parse_settings(TrainSettings, {"n_epochs": "automatic"}, where="train")


def test_the_epochs_of_auto_are_the_trainers_own_where_it_tells_and_else_the_usual_ones() -> None:
    tells = Provider(name="mine", identity="p", auto_epochs=lambda spec, examples: examples // 10)
    silent = Provider(name="hosted", identity="p")
    assert expected_epochs(TrainSpec(n_epochs=7), 100, tells) == 7
    assert expected_epochs(TrainSpec(), 100, tells) == 10
    assert [expected_epochs(TrainSpec(), n, silent) for n in (3, 10, 100, 8_000, 10_000, 100_000)] == [
        25,
        10,
        3,
        3,
        2,
        1,
    ]


def test_the_seed_of_a_training_is_the_runs_unless_train_says_another(tmp_path: Path) -> None:
    assert TrainSettings().spec(3).seed == 3
    assert TrainSettings(seed=0).spec(3).seed == 0


def test_a_setting_that_came_later_makes_another_training_only_where_it_is_set(tmp_path: Path) -> None:
    keys = {
        str(settings): _bought(tmp_path / str(i), settings).orders[0].run_key
        for i, settings in enumerate((TrainSettings(), TrainSettings(rank=16), TrainSettings(rank=32)))
    }
    assert len(set(keys.values())) == 3
    hosted = _bought(tmp_path / "hosted", TrainSettings(), ("n_epochs", "batch_size", "seed")).orders[0].run_key
    assert hosted in keys.values(), "what a provider could take is no part of the key"


def test_a_setting_that_a_vendor_has_no_place_for_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[train\] rank is set, but the trainings of 'mine' support only n_epochs,"):
        _bought(tmp_path, TrainSettings(rank=32), ("n_epochs", "seed"))
    assert not list(tmp_path.rglob("ticket.json"))


def test_the_warm_models_training_keeps_its_stored_names(tmp_path: Path) -> None:
    """As runs of earlier versions have them: another name on disk would buy the training again."""
    vendor = _bought(tmp_path, TrainSettings(), name="warm")
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["warm_up-model", "warm_up-ticket"]
    (job,) = jobs_under(tmp_path)
    assert (job.name, job.run_key, job.model) == ("warm", vendor.orders[0].run_key, "ft:tiny")
    (tmp_path / "warm_up").mkdir()
    (tmp_path / "warm_up/train.jsonl").write_bytes(b"{}\n")
    assert job.training_file == b"{}\n"


@pytest.mark.parametrize("name", ["warm", "warm_up", "job"])
def test_a_training_is_cancelled_by_its_models_name_or_the_one_it_had_before(tmp_path: Path, name: str) -> None:
    _bought(tmp_path, TrainSettings(), name="warm")
    shutil.rmtree(tmp_path / "jobs/warm_up-model")
    vendor = Cancellable()
    found = asyncio.run(cancel(jobs_under(tmp_path), name, Provider(name="p", identity="p", finetuner=vendor)))
    assert (found.name, vendor.cancelled) == ("warm", ["job"])


class Cancellable(Vendor):
    """Notes what it was asked to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: list[str] = []

    async def cancel(self, ticket: JobTicket) -> None:
        self.cancelled.append(ticket.job_id)
