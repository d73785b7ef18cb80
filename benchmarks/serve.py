"""How much work `semievol serve` gets out of a CPU, against plain `generate` on the same model and shapes.

    python -m benchmarks.serve --json            # demo model and a 100 M-parameter random Llama, some minutes
    python -m benchmarks.serve --quick --check   # the small model; exit 1 below the target

`share_of_static` is the server's rate divided by that of one static batch of the same prompts: what it keeps of
the gain over asking one by one. Prompts are the same texts, answers as long, sampling greedy, threads equal; the
server's numbers include HTTP, JSON and the chat template. `transformers serve` is asked beside it where it is
installed. Knows nothing of quality.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET_SHARE = 0.85
STOP_TIMEOUT_S = 20
START_TIMEOUT_S = 120
TEMPLATE = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked: `requests` at a time, and one by one `alone` of them, which is enough for a rate."""

    requests: int
    alone: int
    tokens: int
    words: int = 24


def make_model(folder: Path, layers: int, width: int) -> None:
    """Write a random Llama with a byte tokenizer; 14 layers of width 768 are 100 M parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    kind: Any = PreTrainedTokenizerFast
    fast = kind(tokenizer_object=tokenizer, eos_token="<|eot|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=max(4, width // 64), max_position_embeddings=1024, tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def prompts(shape: Shape) -> list[list[dict[str, str]]]:
    """Different chats of about one length."""
    return [
        [
            {
                "role": "user",
                "content": f"Question {i:03d}: " + " ".join(f"w{i * j % 97:02d}" for j in range(shape.words)),
            }
        ]
        for i in range(shape.requests)
    ]


# --------------------------------------------------------------------------------------------- plain generate
def plain_rates(folder: Path, shape: Shape, threads: int) -> dict[str, float]:
    """Tokens per second of `generate`: one prompt at a time, all in one static batch, four samples of one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    chats = prompts(shape)
    eos: int | list[int] = model.generation_config.eos_token_id
    ends = {eos} if isinstance(eos, int) else set(eos)

    def rate(groups: Sequence[list[list[dict[str, str]]]], n: int = 1) -> float:
        made, since = 0, time.perf_counter()
        for group in groups:
            inputs = tokenizer.apply_chat_template(
                group, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
            )
            sampling: Any = {"do_sample": True, "num_return_sequences": n} if n > 1 else {"do_sample": False}
            out = model.generate(**inputs, **sampling, max_new_tokens=shape.tokens, pad_token_id=tokenizer.pad_token_id)
            made += sum(_length(row, ends) for row in out[:, inputs["input_ids"].shape[1] :].tolist())
        return made / (time.perf_counter() - since)

    with torch.inference_mode():
        rate([chats[:1]])
        one_by_one = [[chat] for chat in chats[: shape.alone]]
        return {"one_by_one": rate(one_by_one), "static_batch": rate([chats]), "static_n4": rate(one_by_one, n=4)}


def _length(tokens: list[int], ends: set[int]) -> int:
    """Tokens of one answer, its end included: what a server counts too."""
    return next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))


# ---------------------------------------------------------------------------------------------------- servers
@contextlib.contextmanager
def running(command: list[str], log: Path, env: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    """A server process that is ended with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env={**os.environ, **env}
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def semievol_server(folder: Path, work: Path, threads: int) -> Generator[str]:
    """Our server on a model folder; gives its URL."""
    ready = work / "ready.json"
    command = [sys.executable, "-m", "semievol_providers.server.command", str(folder), "--name", "m", "--port", "0"]
    command += ["--state", str(work / "state"), "--ready-file", str(ready), "--threads", str(threads)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "providers")])
    with running(command, work / "server.log", {"PYTHONPATH": path}) as process:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((work / "server.log").read_text())
            time.sleep(0.05)
        url: str = json.loads(ready.read_text())["url"]
        yield url


@contextlib.contextmanager
def transformers_server(folder: Path, work: Path, threads: int) -> Generator[str]:
    """`transformers serve`, which knows models by their folder."""
    port = 18700 + os.getpid() % 1000
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1"]
    env = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with running([*command, "--port", str(port), "--device", "cpu"], work / "transformers.log", env):
        yield f"http://127.0.0.1:{port}/v1"


async def served_rates(url: str, model: str, shape: Shape, with_n: bool) -> dict[str, float]:
    """Tokens per second of a server: one request at a time, all at once, four samples of one."""
    import aiohttp

    chats = prompts(shape)
    limits = {"max_tokens": shape.tokens, "temperature": 0}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1800)) as session:

        async def ask(chat: list[dict[str, str]], **settings: Any) -> int:
            body = {"model": model, "messages": chat, **limits, **settings}
            async with session.post(url + "/chat/completions", json=body) as answer:
                said = await answer.json()
                if answer.status != 200:
                    raise RuntimeError(str(said))
                return int(said["usage"]["completion_tokens"])

        async def rate(work: Callable[[], Awaitable[int]]) -> float:
            since = time.perf_counter()
            return await work() / (time.perf_counter() - since)

        async def alone(**settings: Any) -> int:
            return sum([await ask(chat, **settings) for chat in chats[: shape.alone]])

        async def together() -> int:
            return sum(await asyncio.gather(*(ask(chat) for chat in chats)))

        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                await ask(chats[0], max_tokens=2)
                break
            except aiohttp.ClientError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)
        found = {"one_by_one": await rate(alone), "concurrent": await rate(together)}
        if with_n:
            found["n4"] = await rate(lambda: alone(n=4, temperature=1.0, seed=1))
        return found


# --------------------------------------------------------------------------------------------------- measuring
def measure(name: str, folder: Path, shape: Shape, threads: int, beside: bool) -> dict[str, Any]:
    """All rates on one model, in tokens per second, and what they mean."""
    plain = plain_rates(folder, shape, threads)
    with tempfile.TemporaryDirectory() as work, semievol_server(folder, Path(work), threads) as url:
        ours = asyncio.run(served_rates(url, "m", shape, with_n=True))
    found: dict[str, Any] = {
        "model": name,
        "requests": shape.requests,
        "tokens": shape.tokens,
        "generate": plain,
        "semievol_serve": ours,
        "gain_static": plain["static_batch"] / plain["one_by_one"],
        "gain_concurrent": ours["concurrent"] / plain["one_by_one"],
        "share_of_static": ours["concurrent"] / plain["static_batch"],
        "share_of_static_n4": ours["n4"] / plain["static_n4"],
        "transformers_serve": None,
        "vllm_cpu": None,
    }
    if beside and find_spec("fastapi") is not None:
        with tempfile.TemporaryDirectory() as work, transformers_server(folder, Path(work), threads) as url:
            try:
                found["transformers_serve"] = asyncio.run(served_rates(url, str(folder), shape, with_n=False))
            except (OSError, RuntimeError) as error:
                found["transformers_serve"] = {"error": str(error)[:300]}
    return {key: _rounded(value) for key, value in found.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 below the target")
    parser.add_argument("--quick", action="store_true", help="a small random model only")
    parser.add_argument("--model", type=Path, help="folder of a model to measure too, such as the demo's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", action="store_true", help="ask transformers serve too, if it is installed")
    return parser.parse_args()


def main() -> int:
    """Measure, print, and compare with the target."""
    asked = parse_arguments()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        todo: list[tuple[str, Path, Shape]] = []
        if asked.model is not None:
            todo.append((asked.model.name, asked.model, Shape(64, 16, 32)))
        if asked.quick:
            make_model(Path(folder) / "small", layers=4, width=256)
            todo.append(("random Llama, 3 M", Path(folder) / "small", Shape(64, 16, 32)))
        else:
            make_model(Path(folder) / "large", layers=14, width=768)
            todo.append(("random Llama, 100 M", Path(folder) / "large", Shape(64, 8, 24)))
        for name, path, shape in todo:
            results.append(measure(name, path, shape, asked.threads, asked.beside))
    report = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "threads": asked.threads},
        "load_average": os.getloadavg()[0],
        "target_share": TARGET_SHARE,
        "results": results,
        "met": all(result["share_of_static"] >= TARGET_SHARE for result in results),
    }
    sys.stdout.write(json.dumps(report, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and not report["met"] else 0


if __name__ == "__main__":
    sys.exit(main())
