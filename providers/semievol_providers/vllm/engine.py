"""The vLLM engine of one run: started once, asleep while its GPU trains, adapters under ever new ids.

The only module that imports vLLM, and only when the engine is first asked for. Knows nothing of prompts or labels.
"""

# vLLM lives in an environment of its own, so that the type checkers of this one cannot see it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from semievol_api.errors import RefusedError, TransientError, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArguments:
    """What the engine is started with; `more` goes to vLLM as it is."""

    folder: str
    dtype: str
    max_lora_rank: int
    max_adapters: int
    on_gpu: bool
    gpu_memory_share: float = 0.9
    tensor_parallel: int = 1
    context_tokens: int | None = None
    cpu_cache_gib: int = 1
    threads: int = 1
    more: Mapping[str, object] = field(default_factory=dict[str, object])

    def named(self) -> dict[str, object]:
        """By the names of vLLM's `AsyncEngineArgs`."""
        given: dict[str, object] = {
            "model": self.folder,
            "dtype": self.dtype,
            "enable_lora": True,
            "max_lora_rank": self.max_lora_rank,
            "max_loras": self.max_adapters,
            "enable_prefix_caching": True,
            "tensor_parallel_size": self.tensor_parallel,
            "disable_log_stats": True,
        }
        if self.context_tokens is not None:
            given["max_model_len"] = self.context_tokens
        if self.on_gpu:
            given |= {"gpu_memory_utilization": self.gpu_memory_share, "enable_sleep_mode": True}
        else:
            # A request's seed with chunked prefill ends the engine on the CPU; compiling takes longer than it saves.
            given |= {"enable_chunked_prefill": False, "max_num_batched_tokens": 8192, "enforce_eager": True}
        return {**given, **self.more}

    def environment(self) -> dict[str, str]:
        """Variables that vLLM reads at its start; what the user has set stays."""
        variables = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for results
        }
        if not self.on_gpu:
            variables |= {
                "VLLM_CPU_KVCACHE_SPACE": str(self.cpu_cache_gib),
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "OMP_NUM_THREADS": str(self.threads),
            }
        return variables


class VllmEngine:
    """`generate` one request; `make_room` for a training; `close`. `starts` counts the engine's starts."""

    def __init__(self, arguments: EngineArguments) -> None:
        self._arguments = arguments
        self._engine: Any = None
        self._asleep = False
        self._lock = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None
        self._numbers = count(1)
        self._adapters: dict[str, Any] = {}
        self._adapter_ids = count(1)
        self.starts = 0

    async def generate(self, prompt_ids: tuple[int, ...], sampling: Mapping[str, object], adapter: str | None) -> Any:
        """vLLM's `RequestOutput` of one finished request.

        Raises:
            RefusedError: vLLM does not take the request as it is.
            TransientError: the engine died; the next request starts it again.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        engine = await self._awake()
        try:
            asked = SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY)
            prompt = {"prompt_token_ids": list(prompt_ids)}
            number = f"semievol-{next(self._numbers)}"
            last: Any = None
            async for output in engine.generate(prompt, asked, number, lora_request=self._lora(adapter)):
                last = output
        except _client_errors() as error:
            raise RefusedError(f"vLLM refused the request: {error}", status=400) from error
        except EngineGenerateError as error:
            raise TransientError(f"vLLM failed at a request: {error.__cause__ or error}") from error
        except EngineDeadError as error:
            await self._forget(engine)
            raise TransientError(f"The vLLM engine died and is started again for the next request: {error}") from error
        return last

    async def make_room(self) -> None:
        """Put the engine to sleep, its weights in main memory, so that its GPU can train."""
        async with self._lock:
            if self._engine is not None and self._arguments.on_gpu and not self._asleep:
                await self._engine.sleep(level=1)
                self._asleep = True

    async def close(self) -> None:
        """End the engine and its processes."""
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        async with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            await _shut_down(engine)
            del engine
            gc.collect()  # now, not at the interpreter's end, when vLLM's own clean-up finds half of it gone

    async def _awake(self) -> Any:
        """The engine, started or woken by whoever asks first; it starts on where that one gives up waiting."""
        if self._engine is None or self._asleep:
            if self._starting is None or self._starting.done():
                self._starting = asyncio.create_task(self._make_ready(), name="vllm-start")
            await asyncio.shield(self._starting)
        return self._engine

    async def _make_ready(self) -> None:
        async with self._lock:
            if self._engine is None:
                self._engine = await asyncio.to_thread(self._start)
                self.starts += 1
            if self._asleep:
                await self._engine.wake_up()
                self._asleep = False

    async def _forget(self, engine: Any) -> None:
        async with self._lock:
            if self._engine is engine:
                self._engine, self._asleep = None, False
                self._adapters.clear()
                await _shut_down(engine)

    def _start(self) -> Any:
        """In a thread of its own: takes half a minute and more."""
        for name, value in self._arguments.environment().items():
            os.environ.setdefault(name, value)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**self._arguments.named()))
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise UserError(_start_advice(self._arguments, error)) from error

    def _lora(self, adapter: str | None) -> Any:
        """The adapter's request, under an id that no other adapter of this engine had."""
        if adapter is None:
            return None
        if adapter not in self._adapters:
            from vllm.lora.request import LoRARequest

            number = next(self._adapter_ids)
            self._adapters[adapter] = LoRARequest(f"adapter-{number}", number, adapter)
        return self._adapters[adapter]


def _client_errors() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that it does not take; the second came with 0.3x."""
    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:
        return (ValueError,)
    return (ValueError, VLLMClientError)


async def _shut_down(engine: Any) -> None:
    """Its listener first, which would take the end of the processes for a failure."""
    if engine.output_handler is not None:
        engine.output_handler.cancel()
        await asyncio.gather(engine.output_handler, return_exceptions=True)
    await asyncio.to_thread(engine.shutdown)
    engine.output_handler = None


def _start_advice(arguments: EngineArguments, error: Exception) -> str:
    advice = (
        "Lower gpu_memory_share or context_tokens, end other programs on this GPU, or raise tensor_parallel to spread "
        "the model over several"
        if arguments.on_gpu
        else "Lower context_tokens or cpu_cache_gib, or free main memory"
    )
    return (
        f"vLLM could not start with the model {arguments.folder!r}: {str(error).strip()[:500]} (its own log stands "
        f'above). {advice}; or set kind = "local" to run on transformers instead. The run goes on where it stopped.'
    )
