"""Token counts: equal to tiktoken's on a vocabulary of our own, to the model's own tokenizer, else an honest guess."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path

import pytest
import tiktoken

from semievol_api.errors import ConfigError
from semievol_api.planning.tokens import WORDS_OF_O200K, TokenCounter, token_counter
from semievol_api.records import Message, Prompt

TEXTS = ("the answer is the answer", "Größe: 3,5 m²", "  spaces\n\nand\tlines", "", "<|endoftext|> is no command")
DEMO_MODEL = Path(__file__).resolve().parents[2] / "semievol_api" / "demo" / "model"


def _small_vocabulary() -> dict[bytes, int]:
    """All bytes, and a few merges that English words make."""
    ranks = {bytes([i]): i for i in range(256)}
    for word in (b"th", b"the", b" the", b"an", b" an", b"sw", b"er", b"swer", b" answer", b"is", b" is"):
        ranks.setdefault(word, len(ranks))
    return ranks


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in _small_vocabulary().items()]
    path = tmp_path / "small.tiktoken"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_counts_equal_tiktokens_on_a_small_vocabulary(text: str, vocabulary: Path) -> None:
    encoding = tiktoken.Encoding(
        "small", pat_str=WORDS_OF_O200K, mergeable_ranks=_small_vocabulary(), special_tokens={}
    )
    counter = token_counter("gpt-4o-mini", vocabulary)
    assert counter.name == "tiktoken small"
    assert counter.count_text(text) == len(encoding.encode(text, disallowed_special=()))


def test_a_training_line_counts_its_turns_as_the_cookbook_does(vocabulary: Path) -> None:
    counter = token_counter("gpt-4o-mini", vocabulary)
    turns = (Message("user", "the answer"), Message("assistant", "is"))
    texts = sum(counter.count_text(turn.content) for turn in turns)
    assert counter.count_training(turns) == 3 + 2 * 4 + texts
    assert counter.count(Prompt(turns[:1])) == 3 + 4 + counter.count_text("the answer")


def test_a_models_own_tokenizer_counts_the_chat_as_the_model_sees_it() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    counter = token_counter("demo-llama", DEMO_MODEL)
    for text, system in itertools.product(TEXTS, (None, "You answer.")):
        turns = [*([Message("system", system)] if system else []), Message("user", text)]
        plain = [{"role": turn.role, "content": turn.content} for turn in turns]
        seen = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        assert counter.count(Prompt(tuple(turns))) == len(tokenizer.encode(seen, add_special_tokens=False))


def test_the_end_of_a_reply_is_counted_in_training_and_its_beginning_in_prompts() -> None:
    counter = token_counter("demo-llama", DEMO_MODEL)
    question, reply = Message("user", "Which?"), Message("assistant", "Answer: A")
    assert counter.count_training((question, reply)) > counter.count(Prompt((question,)))
    assert counter.count(Prompt((question,), "Answer:")) > counter.count(Prompt((question,)))


def test_without_a_vocabulary_the_estimate_says_that_it_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "absent"))
    counter = token_counter("gpt-4o-mini")
    assert counter.name == "estimate (4 characters a token)"
    assert counter.count_text("x" * 400) == 100
    assert counter.count_text("") == 0


def test_a_cached_vocabulary_of_tiktokens_own_is_never_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.encoding_for_model", _no_network)
    assert token_counter("gpt-4o-mini").name.startswith("estimate")


def _no_network(_name: str) -> TokenCounter:
    raise OSError("no network")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no tokenizer"), ({"version": "1.0"}, "cannot be read")],
)
def test_a_tokenizer_that_is_none_is_refused(content: dict[str, str] | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words):
        token_counter("x", tmp_path)


def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.tiktoken").write_text("no vocabulary\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        token_counter("x", tmp_path / "bad.tiktoken")
