"""Choosing tokens: greedy, tempered, nucleus, penalties, and independence of rows."""

from __future__ import annotations

import numpy as np
import torch

from semievol_providers.local.decoding import RowSampling, choose, random_stream


def _draw(logits: torch.Tensor, row: RowSampling, count: int) -> np.ndarray:
    draws = torch.linspace(0, 1, count + 1, dtype=torch.float64)[:-1]
    return choose(logits.expand(count, -1), [row] * count, draws, [None] * len(draws)).numpy()


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert choose(logits, [RowSampling(0.0, 1.0)], torch.tensor([0.999]).double(), [None]).tolist() == [1]


def test_samples_follow_the_tempered_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    found = np.bincount(_draw(logits, RowSampling(0.5, 1.0), 20000), minlength=4) / 20000
    assert np.allclose(found, (logits[0] / 0.5).softmax(-1).numpy(), atol=2e-4)


def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_it() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    assert set(_draw(logits, RowSampling(1.0, 0.6), 1000)) == {1, 2}
    assert set(_draw(logits, RowSampling(1.0, 0.75), 1000)) == {1, 2, 3}
    assert set(_draw(logits, RowSampling(1.0, 0.0), 1000)) == {1}


def test_penalties_count_generated_tokens() -> None:
    logits = torch.tensor([[1.0, 1.5, 0.0]])
    counts = torch.tensor([[0.0, 2.0, 0.0]])
    draws = torch.zeros(1, dtype=torch.float64)
    assert choose(logits, [RowSampling(0.0, 1.0, frequency_penalty=0.3)], draws, [counts[0]]).tolist() == [0]
    assert choose(logits, [RowSampling(0.0, 1.0, presence_penalty=0.3)], draws, [counts[0]]).tolist() == [1]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 50)
    rows = [RowSampling(t, p) for t, p in ((0, 1), (1, 1), (0.7, 0.9), (1.3, 0.5), (0, 0.5), (2, 1), (1, 0.1), (1, 1))]
    draws = torch.rand(8, dtype=torch.float64)
    together = choose(logits, rows, draws, [None] * len(draws)).tolist()
    alone = [choose(logits[i : i + 1], rows[i : i + 1], draws[i : i + 1], [None]).item() for i in range(8)]
    assert together == alone


def test_random_streams_depend_on_seed_and_sample_only() -> None:
    assert random_stream(7, 2).random(3).tolist() == random_stream(7, 2).random(3).tolist()
    assert random_stream(7, 2).random() != random_stream(7, 3).random()
    assert random_stream(-5, 0).random() != random_stream(5, 0).random()


def test_a_large_vocabulary_is_sampled_as_exactly_as_a_small_one() -> None:
    torch.manual_seed(1)
    logits = torch.randn(1, 1000) * 2
    found = np.bincount(_draw(logits, RowSampling(1.0, 1.0), 200_000), minlength=1000) / 200_000
    assert np.abs(found - logits[0].softmax(-1).numpy()).max() < 2e-5


def test_the_largest_draw_still_gives_a_possible_token() -> None:
    logits = torch.full((1, 300), -float("inf"))
    logits[0, [3, 200]] = 0.0
    for draw in (1 - 2**-53, 0.9999999999, 0.5, 0.0):
        token = choose(logits, [RowSampling(1.0, 1.0)], torch.tensor([draw]).double(), [None]).item()
        assert token == (3 if draw == 0.0 else 200)
