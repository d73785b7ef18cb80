"""The inference engine on real models: exact numbers, independence of batching, stops, adapters, failures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import semievol_api.demo
from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.engine import Engine
from semievol_providers.local.model_folder import ModelFolderError, load_model, load_tokenizer, read_facts
from semievol_providers.local.requests import ContextLengthError, Delta, EmbedRequest, EngineSettings, GenerateRequest

DEMO_MODEL = Path(semievol_api.demo.__file__).parent / "model"
pytest_plugins = ("local_fixtures",)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def _engine(folder: Path, settings: EngineSettings | None = None) -> Engine:
    engine = Engine(str(folder), settings or EngineSettings())
    engine.start()
    return engine


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[Engine]:
    engine = _engine(tiny_model)
    yield engine
    engine.close()


def _ask(engine: Engine, text: str, **settings: object) -> GenerateRequest:
    prompt = engine.tokens.encode_chat([{"role": "user", "content": text}])
    return GenerateRequest(**{"prompt_ids": prompt, "max_tokens": 6, "seed": 1, "top_logprobs": 3} | settings)  # type: ignore[arg-type]


def _texts(count: int) -> list[str]:
    rng = random.Random(0)
    return [
        f"Question {i}: " + " ".join(rng.choices(["abc", "what", "is", "mass", "of", "the", "sun"], k=i % 40))
        for i in range(count)
    ]


def _assert_alone_equals_together(engine: Engine) -> None:
    requests = [
        _ask(engine, text, n=1 + i % 3, temperature=(i % 4) / 2, top_p=0.9 if i % 5 == 0 else 1.0, seed=i)
        for i, text in enumerate(_texts(30))
    ]
    alone = [engine.generate(request).result() for request in requests[:8]]
    for shuffle in range(2):
        order = random.Random(shuffle).sample(range(len(requests)), len(requests))
        futures = {i: engine.generate(requests[i]) for i in order}
        together = {i: future.result() for i, future in futures.items()}
        assert [together[i] for i in range(8)] == alone


def test_a_request_alone_and_in_any_batch_gives_the_same_bits(tiny: Engine) -> None:
    _assert_alone_equals_together(tiny)


def test_the_demo_model_gives_the_same_bits_in_any_batch(demo_model: Path) -> None:
    engine = _engine(demo_model)
    _assert_alone_equals_together(engine)
    engine.close()


def test_logprobs_equal_a_plain_forward_pass(tiny: Engine, tiny_model: Path) -> None:
    model = load_model(str(tiny_model), "cpu")
    for text in _texts(12):
        request = _ask(tiny, text, n=2, temperature=1.3, top_p=0.95, max_tokens=12)
        for sample in tiny.generate(request).result().samples:
            ids = [*request.prompt_ids, *sample.token_ids]
            with torch.inference_mode():
                scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            start = len(request.prompt_ids)
            expected = [scores[start + t - 1, token].item() for t, token in enumerate(sample.token_ids)]
            assert sample.logprobs is not None and sample.top is not None
            assert np.allclose(sample.logprobs, expected, atol=1e-4)
            for t, top in enumerate(sample.top):
                best = scores[start + t - 1].topk(3)
                assert [choice.token_id for choice in top] == best.indices.tolist()
                assert np.allclose([choice.logprob for choice in top], best.values, atol=1e-4)


def test_greedy_answers_equal_those_of_transformers_generate(tiny: Engine, tiny_model: Path) -> None:
    model = load_model(str(tiny_model), "cpu")
    for text in _texts(6):
        request = _ask(tiny, text, temperature=0.0, max_tokens=10)
        prompt = torch.tensor([request.prompt_ids])
        reference = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=10)
        tail = [t for t in reference[0, prompt.shape[1] :].tolist() if t != tiny.tokens.tokenizer.eos_token_id]
        assert list(tiny.generate(request).result().samples[0].token_ids) == tail


def test_samples_of_one_request_differ_and_repeat_with_the_seed(tiny: Engine) -> None:
    first = tiny.generate(_ask(tiny, "hello", n=8, seed=5)).result()
    assert len({sample.text for sample in first.samples}) > 4
    assert tiny.generate(_ask(tiny, "hello", n=8, seed=5)).result() == first
    assert tiny.generate(_ask(tiny, "hello", n=8, seed=6)).result() != first
    assert tiny.generate(_ask(tiny, "hello", n=2, seed=5)).result().samples == first.samples[:2]


def test_the_end_of_turn_token_is_counted_and_not_scored(demo_model: Path) -> None:
    engine = _engine(demo_model)
    content = "Question: What is mass?\n\nOptions:\nA. medicine\nB. physics\n\nReply with one line: Answer: LETTER"
    sample = engine.generate(_ask(engine, content, max_tokens=20, temperature=0.0)).result().samples[0]
    engine.close()
    assert sample.finish == "stop"
    assert sample.logprobs is not None
    assert sample.counted_tokens == len(sample.token_ids) + 1 == len(sample.logprobs) + 1
    assert "".join(engine.tokens.token_text(t) for t in sample.token_ids) == sample.text


def test_a_stop_string_ends_the_text_before_it(tiny: Engine) -> None:
    whole = tiny.generate(_ask(tiny, "stop here", max_tokens=40)).result().samples[0]
    stop = next(char for char in whole.text[5:] if char.isascii() and char.isalnum())
    cut = tiny.generate(_ask(tiny, "stop here", max_tokens=40, stop=(stop,))).result().samples[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish == "stop"
    assert cut.logprobs is not None and len(cut.logprobs) == len(cut.token_ids) <= len(whole.token_ids)


def test_streamed_pieces_add_up_to_the_answer(tiny: Engine) -> None:
    pieces: list[Delta] = []
    request = _ask(tiny, "stream this", n=3, max_tokens=30, stop=("zz",))
    samples = tiny.generate(request, pieces.append).result().samples
    for sample in samples:
        mine = [piece for piece in pieces if piece.index == sample.index]
        assert "".join(piece.text for piece in mine) == sample.text
        assert mine[-1].output == sample
    assert len(pieces) > 6


def test_a_prompt_longer_than_the_context_is_refused(tiny: Engine) -> None:
    with pytest.raises(ContextLengthError, match="512 tokens"):
        tiny.generate(_ask(tiny, "x" * 600))


def test_a_missing_adapter_fails_its_request_and_no_other(tiny: Engine, tmp_path: Path) -> None:
    bad = tiny.generate(_ask(tiny, "hello", adapter=str(tmp_path)))
    good = tiny.generate(_ask(tiny, "hello"))
    with pytest.raises(ModelFolderError, match="adapter_config"):
        bad.result(timeout=30)
    assert len(good.result(timeout=30).samples) == 1


def _make_adapter(folder: Path, base: Path, seed: int) -> str:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_model(str(base), "cpu"), config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("exact_limit_bytes", [2**30, 0])
def test_adapters_answer_side_by_side_as_their_own_models(
    tiny_model: Path,
    tmp_path: Path,
    exact_limit_bytes: int,
) -> None:
    from peft import PeftModel

    adapters = [None, *(_make_adapter(tmp_path / str(seed), tiny_model, seed) for seed in (1, 2))]
    engine = _engine(tiny_model, EngineSettings(exact_limit_bytes=exact_limit_bytes, dtype="float32"))
    futures = [engine.generate(_ask(engine, "which one", adapter=a, max_tokens=1)) for a in adapters * 3]
    found = [future.result(timeout=60).samples[0] for future in futures]
    engine.close()
    for i, sample in enumerate(found):
        model = load_model(str(tiny_model), "cpu")
        adapter = adapters[i % 3]
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).eval()
        prompt = _ask(engine, "which one").prompt_ids
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert sample.logprobs is not None
        assert sample.logprobs[0] == pytest.approx(scores[sample.token_ids[0]].item(), abs=1e-4)


def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch(tiny: Engine) -> None:
    inputs = tuple(tiny.tokens.encode_for_embedding(text) for text in _texts(11))
    together = tiny.embed(EmbedRequest(inputs)).result().vectors
    assert together.shape == (11, 32)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for i, ids in enumerate(inputs):
        assert np.array_equal(tiny.embed(EmbedRequest((ids,))).result().vectors[0], together[i])


def test_a_text_is_embedded_bare_where_the_tokenizer_closes_it_and_as_a_users_turn_elsewhere(tiny: Engine) -> None:
    closing = ChatTokens(load_tokenizer(str(DEMO_MODEL)))
    bare = closing.encode_for_embedding("which one")
    assert bare == closing.encode_text("which one")
    assert bare[-1] == closing.encode_text("another")[-1] and len(bare) < len(closing.encode_chat(_turn("which one")))
    assert tiny.tokens.encode_for_embedding("which one") == tiny.tokens.encode_chat(_turn("which one"))


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_cancelling_a_request_frees_the_engine(tiny: Engine) -> None:
    long = tiny.generate(_ask(tiny, "long", max_tokens=450, n=4))
    assert long.cancel()
    assert tiny.generate(_ask(tiny, "short")).result(timeout=30).samples


def test_weights_that_can_run_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFolderError, match="safetensors"):
        read_facts(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(ModelFolderError, match="Python code"):
        read_facts(tmp_path)
