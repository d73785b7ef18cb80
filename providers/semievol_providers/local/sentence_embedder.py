"""Sentence embeddings in this process, by the packaged MiniLM or a folder in the sentence-transformers format.

    embedder = SentenceEmbedder("minilm")                      # fetched when first asked, if it has to be
    reply = await embedder.embed(EmbedRequest(model="minilm", texts=("one", "another")))

A transformer, then pooling and normalization as the folder's own `modules.json` says, by transformers; other modules
need the package sentence-transformers. Texts are sorted by length and read in batches of limited padded size, in one
thread beside the event loop. Knows nothing of chat models, adapters or roles.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from semievol_api.capabilities import Embedder, EmbedReply, EmbedRequest
from semievol_api.errors import RefusedError, UserError
from semievol_api.records import FloatMatrix, Usage
from semievol_providers.local.machine import fast_in_bfloat16
from semievol_providers.local.packaged_models import PACKAGED, fetch

_TOKENS_PER_BATCH = 512
"""Padded tokens read at once: more leave the processor's cache and are padded more."""
_MODULES_FILE = "modules.json"
_Pooling: TypeAlias = Literal["cls", "mean", "max"]
_POOLINGS: Mapping[str, _Pooling] = {"cls": "cls", "mean": "mean", "max": "max"}
_Embed: TypeAlias = Callable[[Sequence[str]], tuple[FloatMatrix, int]]

_log = logging.getLogger(__name__)


class SentenceEmbedder:
    """`Embedder` by one sentence model, loaded when first asked; `model` is a packaged model's name or a folder."""

    def __init__(self, model: str, device: str = "cpu", threads: int = 1) -> None:
        self._model = model
        self._device = device
        self._threads = threads
        self._worker: ThreadPoolExecutor | None = None
        self._embed: _Embed | None = None

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Vectors as the model's own recipe makes them; texts beyond its length are cut.

        Raises:
            UserError: the model cannot be fetched or read.
        """
        if self._worker is None:
            self._worker = ThreadPoolExecutor(
                1, "semievol-embed", initializer=_limit_threads, initargs=(self._threads,)
            )
        vectors, tokens = await asyncio.get_running_loop().run_in_executor(self._worker, self._run, request.texts)
        return EmbedReply(vectors=vectors, usage=Usage(prompt=tokens))

    async def aclose(self) -> None:
        """Free the model; the next request loads it again."""
        worker, self._worker, self._embed = self._worker, None, None
        if worker is not None:
            await asyncio.to_thread(worker.shutdown)

    def _run(self, texts: Sequence[str]) -> tuple[FloatMatrix, int]:
        if self._embed is None:
            self._embed = _load(_folder_of(self._model), self._device)
        return self._embed(texts)


class NamedEmbedder:
    """`Embedder` that sends a request to the sentence model that it names, else to `chat_model`, where there is one."""

    def __init__(self, chat_model: Embedder | None, base_folder: Path, device: str, threads: int) -> None:
        self._chat_model = chat_model
        self._base_folder = base_folder
        self._device = device
        self._threads = threads
        self._named: dict[str, SentenceEmbedder] = {}

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """As of the model that is named.

        Raises:
            RefusedError: it is no sentence model, and no chat model is here.
            UserError: the model cannot be fetched or read.
        """
        if request.model not in self._named:
            model = sentence_model(request.model, self._base_folder)
            if model is None and self._chat_model is not None:
                return await self._chat_model.embed(request)
            if model is None:
                raise RefusedError(
                    f"{request.model!r} is no sentence embedder: name {_packaged_names()}, or a folder with a "
                    f"{_MODULES_FILE}, in the role `embedder`.",
                    status=404,
                    code="model_not_found",
                )
            self._named[request.model] = SentenceEmbedder(model, self._device, self._threads)
        return await self._named[request.model].embed(request)

    async def aclose(self) -> None:
        """Free the sentence models."""
        for embedder in self._named.values():
            await embedder.aclose()


def sentence_model(name: str, base_folder: Path) -> str | None:
    """The packaged name or the folder that a role's model means; None where it is no sentence embedder."""
    if name in PACKAGED and PACKAGED[name].kind == "sentence embedder":
        return name
    folder = (base_folder / name).resolve()
    return str(folder) if (folder / _MODULES_FILE).is_file() else None


def _packaged_names() -> str:
    return ", ".join(repr(model.name) for model in PACKAGED.values() if model.kind == "sentence embedder")


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _folder_of(model: str) -> Path:
    """The model's folder; a packaged model is fetched where it is not in the cache.

    Raises:
        UserError: there is none, or it cannot be fetched.
    """
    if model in PACKAGED:
        return fetch(PACKAGED[model], tell=_log.warning)
    if not Path(model).is_dir():
        raise UserError(
            f"The sentence embedder {model!r} is no folder. Give a folder in the sentence-transformers format, or a "
            f"packaged model: {_packaged_names()}."
        )
    return Path(model)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What the folder says of itself."""

    pooling: _Pooling
    normalize: bool
    max_tokens: int | None
    lower_case: bool


def _recipe_of(folder: Path) -> _Recipe | None:
    """The folder's recipe; None where its modules are others than transformer, one pooling and normalization."""
    transformer = _json(folder / "sentence_bert_config.json")
    modules = _json(folder / _MODULES_FILE) or [{"type": "Transformer"}, {"type": "Pooling", "path": "1_Pooling"}]
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        return None
    if _json(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        return None
    pooling = _json(folder / modules[1]["path"] / "config.json")
    chosen = [mode for mode in _POOLINGS if pooling.get("pooling_mode") == mode]
    chosen += [key[13:] for key, value in pooling.items() if key.startswith("pooling_mode_") and value]
    chosen = [mode.removesuffix("_token").removesuffix("_tokens") for mode in chosen] or ["mean"]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        return None
    return _Recipe(
        pooling=_POOLINGS[chosen[0]],
        normalize=kinds[2:] == ["Normalize"],
        max_tokens=transformer.get("max_seq_length"),
        lower_case=bool(transformer.get("do_lower_case")),
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _load(folder: Path, device: str) -> _Embed:
    """The folder's model, ready to embed.

    Raises:
        UserError: it cannot be read, or needs sentence-transformers, which is not installed.
    """
    recipe = _recipe_of(folder)
    if recipe is None:
        return _by_sentence_transformers(folder, device)
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from semievol_providers.local.model_folder import read_facts

    facts = read_facts(folder)  # refuses pickled weights and foreign code
    quiet: Any = transformers_logging
    quiet.disable_progress_bar()
    dtype = torch.bfloat16 if device == "cpu" and fast_in_bfloat16(device) else torch.float32
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model: Any = AutoModel.from_pretrained(str(folder), dtype=dtype, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"The sentence embedder in {str(folder)!r} cannot be read: {error}") from error
    model.eval().to(device)
    most = min(recipe.max_tokens or facts.context_tokens, facts.context_tokens)

    def embed(texts: Sequence[str]) -> tuple[FloatMatrix, int]:
        given = [text.lower() for text in texts] if recipe.lower_case else list(texts)
        ids: list[list[int]] = tokenizer(given, truncation=True, max_length=most)["input_ids"]
        vectors = np.empty((len(ids), facts.hidden_size), np.float32)
        with torch.inference_mode():
            for places in _batches([len(row) for row in ids]):
                vectors[places] = _vectors(model, [ids[i] for i in places], recipe).numpy()
        return vectors, sum(map(len, ids))

    return embed


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The places of texts by length, in groups of `_TOKENS_PER_BATCH` padded tokens or of one text."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[place] > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _vectors(model: Any, rows: Sequence[Sequence[int]], recipe: _Recipe) -> Any:
    """The pooled float32 vectors of rows of token ids, on the CPU."""
    import torch

    width = max(map(len, rows))
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    if recipe.pooling == "cls":
        pooled = states[:, 0]
    elif recipe.pooling == "max":
        pooled = states.masked_fill(mask[..., None] == 0, float("-inf")).amax(dim=1)
    else:
        pooled = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return (torch.nn.functional.normalize(pooled, dim=1) if recipe.normalize else pooled).cpu()


def _by_sentence_transformers(folder: Path, device: str) -> _Embed:
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise UserError(
            f"The sentence embedder in {str(folder)!r} has modules of its own and needs the package "
            "'sentence-transformers', which is not installed. Install it with: pip install sentence-transformers; or "
            f"name {_packaged_names()}, which needs nothing more."
        ) from error
    model = SentenceTransformer(str(folder), device=device, local_files_only=True)

    def embed(texts: Sequence[str]) -> tuple[FloatMatrix, int]:
        vectors = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        count = sum(len(model.tokenizer.encode(text)) for text in texts)
        return np.asarray(vectors, dtype=np.float32), count

    return embed
