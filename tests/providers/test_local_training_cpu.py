"""Training in bfloat16 on a CPU: the layout and the layers change no product, and losses stay near those of float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from local_samples import losses_of, make_job, train_here

from semievol_providers.local.machine import fast_in_bfloat16
from semievol_providers.local.training_cpu import RowPlan, is_quick, quicken
from semievol_providers.local.training_data import TokenExample
from semievol_providers.local.training_loop import with_adapter
from semievol_providers.local.training_passes import PaddedPasses, RowPasses

pytest_plugins = ("local_fixtures",)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def _rows(lengths: tuple[int, ...]) -> list[TokenExample]:
    chance = torch.Generator().manual_seed(4)
    rows = [torch.randint(5, 250, (length,), generator=chance).tolist() for length in lengths]
    return [
        TokenExample(tuple(ids), (False,) * (len(ids) - 3) + (True,) * 3, weight=1.0 if i % 2 else 0.25)
        for i, ids in enumerate(rows)
    ]


def _gradients(model: Any, passes: Any, rows: list[TokenExample]) -> tuple[float, int, dict[str, torch.Tensor]]:
    model.zero_grad()
    total, right = 0.0, 0
    for part in passes.split(rows, 900):
        loss, hits = passes.loss(model, part, "cpu")
        loss.backward()
        total, right = total + float(loss.detach()), right + hits
    return total, right, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _stirred(job: Any) -> Any:
    """A model whose adapter already does something."""
    model = with_adapter(job, "cpu").train()
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1, generator=chance)
    return model


@pytest.mark.parametrize("lengths", [(9,), (30, 29, 28, 12, 11, 4), (400, 330, 60, 7)])
def test_rows_end_to_end_have_the_losses_and_gradients_of_padded_rows(
    tiny_model: Path, tmp_path: Path, lengths: tuple[int, ...]
) -> None:
    job = make_job(tiny_model, tmp_path / "job", dtype="float32")
    rows = _rows(lengths)
    plain = _stirred(job)
    assert not is_quick(plain), "a base in float32 trains as it always has"
    loss, hits, wanted = _gradients(plain, PaddedPasses(0), rows)
    quick = _stirred(job)
    assert quicken(quick) and is_quick(quick)
    found = _gradients(quick, RowPasses(), rows)
    assert found[:2] == (pytest.approx(loss, rel=1e-5), hits)
    assert found[2].keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[2][name], gradient, atol=2e-4 * float(gradient.abs().max())), name


def test_a_row_sees_no_other_row_and_none_of_its_own_future(tiny_model: Path, tmp_path: Path) -> None:
    model = _stirred(make_job(tiny_model, tmp_path / "job", dtype="bfloat16")).eval()
    assert is_quick(model)
    first, second = ([7, 8, 9, 10, 11], [20, 21, 22])

    def hidden(*rows: list[int]) -> torch.Tensor:
        lengths = [len(row) for row in rows]
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        ids = torch.tensor([[token for row in rows for token in row]])
        with torch.no_grad():
            return model(input_ids=ids, position_ids=positions, row_plan=RowPlan.of(lengths), use_cache=False).logits[0]

    together = hidden(first, second)
    assert torch.allclose(together[5:], hidden(first[::-1], second)[5:], atol=1e-2)
    assert torch.allclose(together[:3], hidden([*first[:3], 99, 98], second)[:3], atol=1e-2)
    assert not torch.allclose(together[3:5], hidden([*first[:3], 99, 98], second)[3:5], atol=1e-2)


def test_losses_in_bfloat16_stay_near_those_of_float32(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means of ten steps within 1 %, or 0.02 where that is more."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        job = make_job(tiny_model, tmp_path / dtype, n_epochs=17, dtype=dtype, learning_rate=1e-3)
        status, events = train_here(job, monkeypatch)
        assert status == 0
        losses[dtype] = torch.tensor(losses_of(events)[:100]).view(10, 10).mean(1)
    assert losses["float32"][0] - losses["float32"][-1] > 0.5, "something is learnt"
    allowed = (0.01 * losses["float32"]).clamp(min=0.02)
    assert bool(((losses["bfloat16"] - losses["float32"]).abs() <= allowed).all()), losses
    assert not torch.equal(losses["bfloat16"], losses["float32"])


def test_a_base_kept_in_bfloat16_trains_in_it_where_the_cpu_can(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    usual = with_adapter(make_job(folder, tmp_path / "usual"), "cpu")
    assert usual.dtype == (torch.bfloat16 if fast_in_bfloat16("cpu") else torch.float32)
    assert {p.dtype for p in usual.parameters() if p.requires_grad} == {torch.float32}
    assert with_adapter(make_job(tiny_model, tmp_path / "kept in float32"), "cpu").dtype == torch.float32
    embeddings = make_job(folder, tmp_path / "embeddings", train_embeddings=True)
    assert with_adapter(embeddings, "cpu").dtype == torch.float32, "weights that are trained stay exact"
    padded = with_adapter(make_job(folder, tmp_path / "padded", packing=False, dtype="bfloat16"), "cpu")
    assert padded.dtype == torch.bfloat16 and not is_quick(padded)
