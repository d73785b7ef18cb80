"""Is it what the openai package's own types say? Unknown fields are errors, at any depth.

    check_request("/chat/completions", body)        # what we send
    check_answer("FineTuningJob", body)             # what our server answers, by the specification's schema name

The published specification says the same elsewhere (`tests/conformance.py`); the package's types are what users'
programs are written against, and they change with every release.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

import pydantic
from openai import types
from openai.pagination import AsyncCursorPage, AsyncPage
from openai.types import batch_create_params, completion_create_params, embedding_create_params, fine_tuning, responses
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.fine_tuning import job_create_params
from openai.types.responses import response_create_params

REQUESTS: Mapping[str, Any] = {
    "/chat/completions": chat_create_params.CompletionCreateParamsNonStreaming,
    "/completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "/embeddings": embedding_create_params.EmbeddingCreateParams,
    "/batches": batch_create_params.BatchCreateParams,
    "/fine_tuning/jobs": job_create_params.JobCreateParams,
    "/responses": response_create_params.ResponseCreateParamsNonStreaming,
}
ANSWERS: Mapping[str, type[pydantic.BaseModel]] = {
    "Batch": types.Batch,
    "CreateChatCompletionResponse": ChatCompletion,
    "CreateChatCompletionStreamResponse": ChatCompletionChunk,
    "CreateCompletionResponse": types.Completion,
    "CreateEmbeddingResponse": types.CreateEmbeddingResponse,
    "DeleteFileResponse": types.FileDeleted,
    "FineTuningJob": fine_tuning.FineTuningJob,
    "ListBatchesResponse": AsyncCursorPage[types.Batch],
    "ListFilesResponse": AsyncCursorPage[types.FileObject],
    "ListModelsResponse": AsyncPage[types.Model],
    "ListPaginatedFineTuningJobsResponse": AsyncCursorPage[fine_tuning.FineTuningJob],
    "OpenAIFile": types.FileObject,
    "Response": responses.Response,
}
LIST_FIELDS = frozenset({"object", "has_more", "first_id", "last_id"})
"""Of a list, which the package's pages leave untyped."""
UNTYPED = frozenset({"user_provided_suffix", "cache_write_tokens"})
"""What OpenAI's own answers have (recorded in tests/data) and the package, or its second major, does not type."""


class UnlikeTypesError(AssertionError):
    """A body is not what the openai package's types describe."""


def fields_of(path: str) -> frozenset[str]:
    """The names of all fields that a request may have."""
    return frozenset(get_type_hints(REQUESTS[path]))


def check_request(path: str, body: Mapping[str, Any], extensions: Iterable[str] = ()) -> None:
    """Refuse a wrong type or an unknown field; `extensions` are fields that a vendor adds knowingly."""
    own = {name: value for name, value in body.items() if name not in frozenset(extensions)}
    try:
        known = _plain(pydantic.TypeAdapter(REQUESTS[path]).validate_python(own, strict=True))
    except pydantic.ValidationError as error:
        raise UnlikeTypesError(f"{path}: {error}") from error
    if known != own:  # a typed dictionary drops what it does not know
        raise UnlikeTypesError(f"{path}: the package's types know only {known!r:.400} of {own!r:.400}")


def check_answer(schema: str, body: Any) -> None:
    """Refuse a missing or unknown field, or a value that the package's strict models do not take."""
    model = ANSWERS.get(schema)
    if model is not None:  # None: such as an error, which the package has no model for
        check_model(model, schema, body)


def check_model(model: type[pydantic.BaseModel], schema: str, body: Any) -> None:
    """`check_answer` by one of the package's models."""
    try:
        answer = model.model_validate(body, strict=True)
    except pydantic.ValidationError as error:
        raise UnlikeTypesError(f"{schema}: {error}") from error
    of_list = LIST_FIELDS if schema.startswith("List") else frozenset[str]()
    unknown = sorted(place for place in set(_unknown(answer, "")) - of_list if place.split(".")[-1] not in UNTYPED)
    if unknown:
        raise UnlikeTypesError(f"{schema}: the package's types know nothing of {', '.join(unknown)}")


def _plain(value: Any) -> Any:
    """The value with pydantic's lazy iterators read to their end."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_plain(part) for part in value]
    return value


def _unknown(value: Any, place: str) -> Iterable[str]:
    """The places of all fields that a model did not name."""
    if isinstance(value, pydantic.BaseModel):
        yield from (f"{place}{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{place}{name}.")
    elif isinstance(value, list):
        for part in value:
            yield from _unknown(part, place)
