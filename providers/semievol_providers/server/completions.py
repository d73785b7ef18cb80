"""Chat and text completions and embeddings: the bodies that are accepted, and their answers as the API's JSON.

Unknown fields are refused, known ones that cannot be honoured too, so that nobody is answered something else than was
asked. Routes and batches both ask `Answers`, so a batch line is answered as its own request would be. Knows nothing of
HTTP, streaming, files or jobs.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from semievol_api.records import JsonValue
from semievol_providers.local.constrained import ANY_OBJECT, SchemaError, check_schema
from semievol_providers.local.tool_calls import ToolOffer
from semievol_providers.server.api_errors import ApiError, check_metadata, unsupported
from semievol_providers.server.conversation import (
    MessageBody,
    chat_call,
    chat_function,
    chat_turns,
    check_free_format,
    invalid_body,
    tool_offer,
)
from semievol_providers.server.deployments import DeploymentTable
from semievol_providers.server.engine_client import EngineClient
from semievol_providers.server.engine_wire import (
    ChatAsk,
    Choice,
    ChoicesTell,
    EmbedAsk,
    Sampling,
    TextAsk,
    TokenScore,
    VectorsTell,
)
from semievol_providers.server.settings import Limits
from semievol_providers.server.state import Record, new_id

_Temperature: TypeAlias = Annotated[float, Meta(ge=0, le=2)]
_TopP: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
_Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
_Top: TypeAlias = Annotated[int, Meta(ge=0, le=20)]
_Tokens: TypeAlias = Annotated[int, Meta(ge=1)]
_Samples: TypeAlias = Annotated[int, Meta(ge=1, le=128)]
_Seed: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Token: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Texts: TypeAlias = str | list[str | _Token | list[_Token]]
_MAX_STOPS = 4


class _JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`json_schema` of a `response_format`."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema: dict[str, object] | None = None
    description: str | None = None
    strict: bool | None = None


class _ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None

    def held_to(self) -> str | None:
        """The schema that the answer is held to."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ApiError("'json_schema' belongs to the type 'json_schema'.", param="response_format")
        given = self.json_schema.schema if self.json_schema is not None else None
        return schema_of(self.type, given, "response_format")


def schema_of(kind: str, given: dict[str, object] | None, param: str) -> str | None:
    """The JSON schema that a format stands for; None for plain text.

    Raises:
        ApiError: no answer can be held to the schema.
    """
    if kind == "text":
        return None
    try:
        schema = ANY_OBJECT if kind == "json_object" else msgspec.json.encode(given or {}).decode()
        check_schema(schema)
    except (SchemaError, RecursionError) as error:
        raise ApiError(f"Invalid schema: {error}", param=param, code="invalid_json_schema") from error
    return schema


class _StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _SamplingBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What chat and text completions share."""

    model: str
    n: _Samples | None = None
    temperature: _Temperature | None = None
    top_p: _TopP | None = None
    max_tokens: _Tokens | None = None
    seed: _Seed | None = None
    stop: str | list[str] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None
    logit_bias: dict[str, float] | None = None

    def sampling(self, max_tokens: int | None, top_logprobs: int | None, limits: Limits) -> Sampling:
        """These settings for the engine; without a seed, a random one."""
        if self.logit_bias:
            raise unsupported("logit_bias")
        if self.stream_options is not None and not self.stream:
            raise ApiError("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MAX_STOPS or any(not stop for stop in stops):
            raise ApiError(f"'stop' takes at most {_MAX_STOPS} non-empty strings.", param="stop")
        for param, asked, most in (
            ("n", self.n, limits.samples),
            ("max_tokens", max_tokens, limits.completion_tokens),
        ):
            if (asked or 0) > most:
                raise ApiError(f"This server allows '{param}' up to {most:,}.", param=param, code="limit_exceeded")
        return Sampling(
            seed=self.seed if self.seed is not None else secrets.randbits(63),
            max_tokens=max_tokens,
            token_limit=limits.default_completion_tokens,
            n=self.n or 1,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(stops),
            top_logprobs=top_logprobs,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )


class ChatBody(_SamplingBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /chat/completions`. `continue_final_message` and `add_generation_prompt` are vLLM's."""

    messages: Annotated[list[MessageBody], Meta(min_length=1)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: _Top | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    response_format: _ResponseFormat | None = None
    modalities: list[str] | None = None
    tools: list[dict[str, object]] | None = None
    tool_choice: object = None
    parallel_tool_calls: bool | None = None
    functions: list[object] | None = None
    function_call: object = None
    audio: object = None
    prediction: object = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    web_search_options: object = None
    moderation: object = None
    prompt_cache_options: object = None

    def checked(self) -> ChatBody:
        """This body, if the server can honour all of it.

        Raises:
            ApiError: names the first field that it cannot.
        """
        check_metadata(self.metadata)
        asked = {
            "functions": self.functions, "function_call": self.function_call not in (None, "none"),
            "audio": self.audio is not None, "prediction": self.prediction is not None,
            "reasoning_effort": self.reasoning_effort, "verbosity": self.verbosity,
            "web_search_options": self.web_search_options is not None,
            "prompt_cache_options": self.prompt_cache_options is not None,
            "moderation": self.moderation is not None, "store": self.store,
            "modalities": self.modalities not in (None, ["text"]),
            "service_tier": self.service_tier not in (None, "auto", "default"),
        }  # fmt: skip
        for name, value in asked.items():
            if value:
                raise unsupported(name)
        if self.top_logprobs and not self.logprobs:
            raise ApiError("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ApiError(
                "'continue_final_message' needs a last message of the assistant.", param="continue_final_message"
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise ApiError("'continue_final_message' excludes 'add_generation_prompt'.", param="add_generation_prompt")
        return self

    def offer(self) -> ToolOffer | None:
        """The tools that the answer may call.

        Raises:
            ApiError: names what cannot be honoured of them.
        """
        if not self.tools and self.parallel_tool_calls is not None:
            raise ApiError("'parallel_tool_calls' is only allowed with 'tools'.", param="parallel_tool_calls")
        found = tool_offer(self.tools, self.tool_choice, self.parallel_tool_calls, chat_function)
        if found is not None and self.response_format is not None:
            check_free_format(found, self.response_format.type, "response_format")
        return found

    def chat_sampling(self, limits: Limits) -> Sampling:
        """Settings for the engine."""
        most = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        sampling = self.sampling(most, (self.top_logprobs or 0) if self.logprobs else None, limits)
        if self.response_format is None:
            return sampling
        return msgspec.structs.replace(sampling, schema=self.response_format.held_to())


class TextBody(_SamplingBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /completions`."""

    prompt: _Texts | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None

    def prompts(self, limits: Limits) -> list[str | tuple[int, ...]]:
        """The prompts as single texts or token lists.

        Raises:
            ApiError: a field that this server does not honour, or too many prompts.
        """
        for name, value in (
            ("echo", self.echo), ("suffix", self.suffix), ("best_of", (self.best_of or 1) != 1)
        ):  # fmt: skip
            if value:
                raise unsupported(name)
        found = _texts_or_tokens(self.prompt if self.prompt is not None else "", "prompt")
        if not 0 < len(found) <= limits.prompts:
            raise ApiError(f"'prompt' takes 1 to {limits.prompts} texts or token lists.", param="prompt")
        return found


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /embeddings`."""

    model: str
    input: _Texts
    encoding_format: str = "float"
    dimensions: int | None = None
    user: str | None = None

    def inputs(self, limits: Limits) -> tuple[str | tuple[int, ...], ...]:
        """The texts or token lists to embed.

        Raises:
            ApiError: an unsupported field, nothing to embed or too much.
        """
        if self.dimensions is not None:
            raise unsupported("dimensions")
        if self.encoding_format not in ("float", "base64"):
            raise ApiError("'encoding_format' must be 'float' or 'base64'.", param="encoding_format")
        found = _texts_or_tokens(self.input, "input")
        if not 0 < len(found) <= limits.embed_inputs or not all(found):
            raise ApiError(f"'input' takes 1 to {limits.embed_inputs} non-empty texts or token lists.", param="input")
        return tuple(found)


def _texts_or_tokens(given: _Texts, param: str) -> list[str | tuple[int, ...]]:
    """One text, several texts, one token list or several, as a list of texts or token lists.

    Raises:
        ApiError: the list mixes kinds.
    """
    if isinstance(given, str):
        return [given]
    numbers = [part for part in given if isinstance(part, int)]
    if numbers and len(numbers) == len(given):
        return [tuple(numbers)]
    if len({type(part) for part in given}) > 1:
        raise ApiError(f"'{param}' mixes texts and tokens.", param=param)
    return [part if isinstance(part, str) else tuple(part) for part in given if not isinstance(part, int)]


_Body = TypeVar("_Body", bound=msgspec.Struct)


def parse(body: bytes, kind: type[_Body]) -> _Body:
    """The request of this kind.

    Raises:
        ApiError: not JSON, an unknown field or a wrong type; `param` names the place.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise invalid_body(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"We could not parse the JSON body of your request: {error}") from error


# ------------------------------------------------------------------------------------------------ answers
def chat_choice(choice: Choice) -> dict[str, JsonValue]:
    """One entry of `choices` of a chat completion."""
    return {
        "index": choice.index,
        "message": chat_message(choice),
        "logprobs": chat_logprobs(choice.scores),
        "finish_reason": choice.finish,
    }


def chat_message(choice: Choice) -> JsonValue:
    """The answer as a turn; without text its content is null where it calls functions."""
    calls: list[JsonValue] = [chat_call(new_id("call_"), name, arguments) for name, arguments in choice.calls]
    content = choice.text or None if calls else choice.text
    return {"role": "assistant", "content": content, "refusal": None, **({"tool_calls": calls} if calls else {})}


def chat_logprobs(scores: Sequence[TokenScore] | None) -> JsonValue:
    """The `logprobs` of a chat choice."""
    if scores is None:
        return None
    content: list[JsonValue] = [
        {
            "token": score.text,
            "logprob": score.logprob,
            "bytes": list(score.raw),
            "top_logprobs": [{"token": t, "logprob": v, "bytes": list(raw)} for t, raw, v in score.top],
        }
        for score in scores
    ]
    return {"content": content, "refusal": None}


def text_choice(choice: Choice, index: int) -> dict[str, JsonValue]:
    """One entry of `choices` of a text completion."""
    return {
        "index": index,
        "text": choice.text,
        "logprobs": text_logprobs(choice.scores),
        "finish_reason": choice.finish,
    }


def text_logprobs(scores: Sequence[TokenScore] | None, at: int = 0) -> JsonValue:
    """The `logprobs` of a text choice whose scored text begins at the character `at`."""
    if scores is None:
        return None
    offsets: list[JsonValue] = []
    for score in scores:
        offsets.append(at)
        at += len(score.text)
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [{text: value for text, _, value in score.top} for score in scores],
        "text_offset": offsets,
    }


def usage(prompt_tokens: int, choices: Iterable[Choice]) -> dict[str, JsonValue]:
    """The `usage` object."""
    completion = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings", "/v1/completions")
_DEFAULT_TEXT_TOKENS = 16  # the API's own default for text completions


@dataclass(frozen=True, slots=True)
class Answers:
    """Turns bodies into questions to the engine, and its answers into JSON."""

    engine: EngineClient
    models: DeploymentTable
    limits: Limits

    async def one(self, endpoint: str, body: bytes, owner: str) -> Record:
        """The answer to one body at one of `ENDPOINTS`, never streamed.

        Raises:
            ApiError: the body cannot be answered.
        """
        kinds: dict[str, Callable[[bytes, str], Awaitable[Record]]] = {
            "/v1/chat/completions": self._whole_chat,
            "/v1/completions": self._whole_text,
            "/v1/embeddings": self._whole_embedding,
        }
        return await kinds[endpoint](body, owner)

    async def _whole_chat(self, body: bytes, owner: str) -> Record:
        asked = parse(body, ChatBody).checked()
        _refuse_stream(asked.stream)
        return await self.chat(asked, self.chat_ask(asked, owner))

    async def _whole_text(self, body: bytes, owner: str) -> Record:
        asked = parse(body, TextBody)
        _refuse_stream(asked.stream)
        return await self.text(asked, self.text_asks(asked, owner))

    async def _whole_embedding(self, body: bytes, owner: str) -> Record:
        return await self.embedding(parse(body, EmbeddingBody), owner)

    # ----------------------------------------------------------------------------------------------- chat
    def chat_ask(self, body: ChatBody, owner: str) -> ChatAsk:
        """The question of a checked chat body."""
        model = self.models.find(body.model, owner)
        return ChatAsk(
            id=self.engine.next_number(),
            messages=chat_turns(body.messages),
            sampling=body.chat_sampling(self.limits),
            adapter=model.adapter,
            owner=owner,
            continue_last=body.continue_final_message,
            reply_follows=body.add_generation_prompt is not False,
            stream=bool(body.stream),
            tools=body.offer(),
        )

    async def chat(self, body: ChatBody, ask: ChatAsk) -> Record:
        """The whole chat completion."""
        tell = await self.engine.ask(ask)
        assert isinstance(tell, ChoicesTell)
        choices: list[JsonValue] = [chat_choice(choice) for choice in tell.choices]
        fields: Record = {"choices": choices, "usage": usage(tell.prompt_tokens, tell.choices)}
        return head("chatcmpl-", "chat.completion", body.model) | fields

    # ----------------------------------------------------------------------------------------------- text
    def text_asks(self, body: TextBody, owner: str) -> list[TextAsk]:
        """One question for each prompt."""
        model = self.models.find(body.model, owner)
        sampling = body.sampling(body.max_tokens or _DEFAULT_TEXT_TOKENS, body.logprobs, self.limits)
        return [
            TextAsk(
                id=self.engine.next_number(),
                prompt=prompt,
                sampling=sampling,
                adapter=model.adapter,
                owner=owner,
                stream=bool(body.stream),
            )
            for prompt in body.prompts(self.limits)
        ]

    async def text(self, body: TextBody, asks: Sequence[TextAsk]) -> Record:
        """The whole text completion."""
        choices: list[JsonValue] = []
        counted: list[Choice] = []
        prompt_tokens = 0
        for tell in await _together([self.engine.ask(ask) for ask in asks]):
            assert isinstance(tell, ChoicesTell)
            prompt_tokens += tell.prompt_tokens
            for choice in tell.choices:
                choices.append(text_choice(choice, len(choices)))
                counted.append(choice)
        fields: Record = {"choices": choices, "usage": usage(prompt_tokens, counted)}
        return head("cmpl-", "text_completion", body.model) | fields

    # ------------------------------------------------------------------------------------------ embedding
    async def embedding(self, body: EmbeddingBody, owner: str) -> Record:
        """The vectors of all inputs."""
        model = self.models.find(body.model, owner)
        inputs = body.inputs(self.limits)
        number = self.engine.next_number()
        tell = await self.engine.ask(EmbedAsk(id=number, inputs=inputs, adapter=model.adapter, owner=owner))
        assert isinstance(tell, VectorsTell)
        return {
            "object": "list",
            "model": body.model,
            "data": [
                {"object": "embedding", "index": i, "embedding": vector}
                for i, vector in enumerate(_vectors(tell, body.encoding_format))
            ],
            "usage": {"prompt_tokens": tell.prompt_tokens, "total_tokens": tell.prompt_tokens},
        }


def head(prefix: str, kind: str, model: str) -> Record:
    """What every completion starts with."""
    return {"id": new_id(prefix), "object": kind, "created": int(time.time()), "model": model}


async def _together(
    questions: Sequence[Awaitable[ChoicesTell | VectorsTell]],
) -> list[ChoicesTell | VectorsTell]:
    """All answers; when one is refused, the others are cancelled."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _refuse_stream(stream: bool | None) -> None:
    if stream:
        raise ApiError("A batch does not stream.", param="stream", code="unsupported_parameter")


def _vectors(tell: VectorsTell, encoding: str) -> Sequence[JsonValue]:
    size = 4 * tell.dimensions
    rows = [tell.data[start : start + size] for start in range(0, len(tell.data), size)]
    if encoding == "base64":
        return [base64.b64encode(row).decode() for row in rows]
    vectors: list[JsonValue] = []
    for row in rows:
        numbers = array("f", row)
        if sys.byteorder == "big":
            numbers.byteswap()
        vectors.append(list(numbers))
    return vectors
