"""Sentence embeddings in this process: the folder's own recipe, named by a role, the default beside a local student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semievol_api.capabilities import EmbedReply, EmbedRequest, ProviderSettings, require
from semievol_api.config.settings import Config, parse_config
from semievol_api.errors import ConfigError, MissingAbilityError, RefusedError, UserError
from semievol_api.records import Usage
from semievol_providers.local.packaged_models import PACKAGED, fetched
from semievol_providers.local.provider import connect
from semievol_providers.local.sentence_embedder import NamedEmbedder, SentenceEmbedder

transformers = pytest.importorskip("transformers")
TEXTS = ("a cat", "the dog and the cat and the dog saw a bird", "", "bird", "a cat") * 30
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "the", "dog", "and", "saw", "bird"]


def make_sentence_model(folder: Path, pooling: str = "mean_tokens", normalize: bool = True) -> Path:
    """A BERT of two layers with random weights, in the sentence-transformers format."""
    import torch

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, initializer_range=0.3, **shape)
    transformers.BertModel(config).save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "path": paths[i], "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}), "utf-8")
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "mean_sqrt_len_tokens")}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}), "utf-8")
    return folder


def by_hand(folder: Path, text: str) -> Any:
    """The last hidden states of one text, cut to nine tokens, float32 (tokens, width)."""
    import torch

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(**tokenizer(text, truncation=True, max_length=9, return_tensors="pt")).last_hidden_state[0]


async def embedded(model: str, texts: tuple[str, ...]) -> EmbedReply:
    embedder = SentenceEmbedder(model)
    try:
        return await embedder.embed(EmbedRequest(model="any", texts=texts))
    finally:
        await embedder.aclose()


async def test_texts_of_all_lengths_get_the_mean_of_their_tokens_in_their_order(tmp_path: Path) -> None:
    folder = make_sentence_model(tmp_path / "tiny")
    reply = await embedded(str(folder), TEXTS)
    assert reply.vectors.dtype == np.float32 and reply.vectors.shape == (len(TEXTS), 32)
    assert np.allclose(np.linalg.norm(reply.vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(TEXTS[:5], reply.vectors, strict=False):
        truth = by_hand(folder, text).mean(dim=0).numpy()
        assert float(vector @ truth / np.linalg.norm(truth)) > 0.999, text
    assert reply.usage.prompt == 30 * (4 + 9 + 2 + 3 + 4)


async def test_a_folder_that_pools_by_its_first_token_and_keeps_the_length_is_followed(tmp_path: Path) -> None:
    folder = make_sentence_model(tmp_path / "tiny", pooling="cls_token", normalize=False)
    reply = await embedded(str(folder), TEXTS[:2])
    truth = by_hand(folder, TEXTS[1])[0].numpy()
    assert np.linalg.norm(reply.vectors[1] - truth) < 0.02 * np.linalg.norm(truth)


async def test_a_recipe_of_other_modules_names_the_package_that_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_sentence_model(tmp_path / "tiny", pooling="mean_sqrt_len_tokens")
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(UserError, match="pip install sentence-transformers"):
        await embedded(str(folder), TEXTS[:1])


async def test_a_provider_without_a_model_embeds_and_says_why_it_cannot_chat(tmp_path: Path) -> None:
    make_sentence_model(tmp_path / "tiny")
    provider = connect(ProviderSettings(name="local", options={}, environ={}, base_folder=str(tmp_path)))
    embedder = require(provider.embedder, "embeddings", provider)
    assert (await embedder.embed(EmbedRequest(model="tiny", texts=("a cat",)))).vectors.shape == (1, 32)
    with pytest.raises(MissingAbilityError, match="the key 'model' is missing"):
        require(provider.chat, "chat", provider)
    with pytest.raises(RefusedError, match="'smollm2' is no sentence embedder: name 'minilm'"):
        await embedder.embed(EmbedRequest(model="smollm2", texts=("a cat",)))
    await provider.aclose()


async def test_a_role_that_names_the_chat_model_is_embedded_by_it(tmp_path: Path) -> None:
    class Chat:
        async def embed(self, request: EmbedRequest) -> EmbedReply:
            return EmbedReply(vectors=np.full((len(request.texts), 2), 7, np.float32), usage=Usage(prompt=1))

    make_sentence_model(tmp_path / "tiny")
    named = NamedEmbedder(Chat(), tmp_path, "cpu", 1)
    assert (await named.embed(EmbedRequest(model="llama", texts=("a cat",)))).vectors.tolist() == [[7, 7]]
    assert (await named.embed(EmbedRequest(model="tiny", texts=("a cat",)))).vectors.shape == (1, 32)
    await named.aclose()


SERVER = {"kind": "openai", "vendor": "semievol", "base_url": "http://127.0.0.1:8000/v1", "api_key_env": ""}


def config_of(provider: dict[str, object], **changes: object) -> Config:
    tree = {
        "run": {"folder": "run"},
        "data": {"task": "mmlu", "labeled": "a.csv", "unlabeled": "b.csv"},
        "providers": {"main": provider},
        "roles": {"student": {"provider": "main", "model": "m"}},
    }
    return parse_config(tree, Path("/tmp"), changes, where="semievol.toml")


@pytest.mark.parametrize("provider", [SERVER, {"kind": "local", "model": "m"}, {"kind": "vllm", "model": "m"}])
def test_a_student_on_this_machine_has_minilm_as_its_embedder(provider: dict[str, object]) -> None:
    config = config_of(provider)
    assert config.roles.embedder is not None
    assert (config.roles.embedder.provider, config.roles.embedder.model) == ("local", "minilm")
    assert config.providers["local"].kind == "local" and not config.providers["local"].options


@pytest.mark.parametrize(
    ("provider", "changes"),
    [
        (SERVER | {"base_url": "https://gpu.example.org/v1"}, {}),
        ({"kind": "openai"}, {}),
        (SERVER, {"retrieve.method": "bm25"}),
        (SERVER, {"run.propagation": "in-weight"}),
        (SERVER, {"providers.local": {"kind": "openai"}}),
    ],
    ids=["elsewhere", "hosted", "bm25", "no demonstrations", "another provider of that name"],
)
def test_others_get_no_embedder_that_they_did_not_name(provider: dict[str, object], changes: dict[str, object]) -> None:
    config = config_of(provider, **changes)
    assert config.roles.embedder is None
    assert set(config.providers) == {"main", *(["local"] if "providers.local" in changes else [])}


def test_the_embedder_that_a_config_names_stays() -> None:
    config = config_of(SERVER, **{"roles.embedder": {"provider": "main", "model": "m"}})
    assert config.roles.embedder is not None and config.roles.embedder.provider == "main"
    assert set(config.providers) == {"main"}


def test_kind_vllm_still_needs_a_model(tmp_path: Path) -> None:
    from semievol_providers.local.provider import LocalOptions, read_places

    settings = ProviderSettings(name="gpu", options={}, environ={}, base_folder=str(tmp_path))
    with pytest.raises(ConfigError, match=r"\[providers.gpu\]: the key 'model' is missing"):
        read_places(settings, LocalOptions(), "vllm")


@pytest.mark.skipif(fetched(PACKAGED["minilm"]) is None, reason="semievol models get minilm")
async def test_minilm_puts_like_meanings_together() -> None:
    texts = ("How do I change my PIN?", "I want a new PIN code.", "The weather is lovely today.")
    first, second, third = (await embedded("minilm", texts)).vectors
    assert float(first @ second) > 0.6 > 0.3 > float(first @ third)
