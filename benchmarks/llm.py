"""How much a real language model reads and writes per CPU second: our engine beside others, in one run.

    python -m benchmarks.llm --json --check                # SmolLM2 (`semievol models get smollm2`), some minutes
    python -m benchmarks.llm --old FOLDER                  # a checkout of an earlier commit beside it:
                                                           #   git archive a87899e | tar -x -C FOLDER
    python -m benchmarks.llm --bits                        # what float32 and equal bits would cost
    python -m benchmarks.llm --vllm PYTHON --transformers-bin FOLDER     # what else is at hand; null where it is not

Work: option reads of different prompts of 200 tokens; the same with beginnings of 150 tokens that 16 prompts share;
chats of 16 new tokens, 64 at once, four samples of one request, and one by one. Every side is a process of one
thread, loaded once; all sides take turns at small parts of the work, so that what else the machine does meets all of
them. A rate is tokens by CPU seconds of the side's process (`--parts` parts of 64 prompts); `transformers serve` is
asked over HTTP, and the CPU seconds are its process's. Knows nothing of how the engine works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.llm_sides import PART, PROMPT

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {
    "reads_of_transformers": 0.8,
    "reads_of_old": 2.8,
    "heads_of_reads": 2.5,
    "together_of_vllm": 0.9,
    "four_of_vllm": 1.0,
    "alone_of_vllm": 1.0,
}
CHAT_WORK = ("together", "four", "alone")
_BITS = ("engine-float32", "engine-exact")
_SLOW = ("old", *_BITS)


class SideProcess:
    """A side in a process of its own; `ask` it for a part of some work."""

    def __init__(self, name: str, kind: str, folder: Path, python: str, tree: Path | None) -> None:
        self._name = name
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(tree), str(tree / "providers")]) if tree else ""
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "llm_sides.py"), kind, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.about: dict[str, Any] = self._told()
        self.spent: dict[str, list[float]] = {}
        self.logprobs: list[list[float]] = []

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A side ended with status {self._process.wait()}: {self._process.args!r}")
        told: dict[str, Any] = json.loads(line)
        return told

    def ask(self, work: str, part: int) -> None:
        """Do this part, and add its cost to what was spent."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{work} {part}\n")
        self._process.stdin.flush()
        told = self._told()
        if work in ("reads", "truth") and part == 0:
            self.logprobs = told["logprobs"]
        tokens, cpu_s = self.spent.get(work, [0.0, 0.0])
        self.spent[work] = [tokens + told["tokens"], cpu_s + told["cpu_s"]]
        sys.stderr.write(f"{self._name} {work} {part}: {told['tokens'] / told['cpu_s']:.1f} tokens per CPU second\n")

    def rate(self, work: str) -> float | None:
        """Tokens per CPU second; None for work that it was not asked to do."""
        tokens, cpu_s = self.spent.get(work, (0.0, 0.0))
        return round(tokens / cpu_s, 1) if cpu_s else None

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(sides: Mapping[str, SideProcess], asked: argparse.Namespace) -> None:
    """All sides take turns at every part."""
    for part in range(asked.parts):
        for name, side in sides.items():
            if name == "float32" or (name in _SLOW and part >= asked.slow_parts):
                continue
            side.ask("reads", part)
            if name in ("engine", "engine-float32", "engine-exact", "vllm"):
                side.ask("heads", part)
    if "float32" in sides:
        sides["float32"].ask("truth", 0)
    for part in range(asked.chat_parts):
        for work in CHAT_WORK:
            for name, side in sides.items():
                if name != "float32":
                    side.ask(work, part)


def served_by_transformers(folder: Path, bin_folder: Path | None) -> dict[str, float] | None:
    """Tokens per CPU second of `transformers serve`; None where it is not at hand. It knows no `n`."""
    import asyncio

    import aiohttp

    from benchmarks.serve_cpu import cpu_s, descendants
    from benchmarks.serve_servers import Shape, prompts, transformers_server

    if bin_folder is None:
        return None
    shape = Shape(16, 8, 16)

    async def ask(session: aiohttp.ClientSession, url: str, chat: list[dict[str, str]]) -> int:
        body = {"model": str(folder), "messages": chat, "max_tokens": shape.tokens, "temperature": 0}
        async with session.post(url + "/chat/completions", json=body) as answer:
            said = await answer.json()
            return int(said["usage"]["completion_tokens"])

    async def asked(url: str) -> dict[str, float]:
        chats, rates = prompts(shape), {}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1800)) as session:
            await ask(session, url, chats[0])
            for work in ("together", "alone"):
                before = sum(map(cpu_s, descendants()))
                if work == "together":
                    made = sum(await asyncio.gather(*(ask(session, url, chat) for chat in chats)))
                else:
                    made = sum([await ask(session, url, chat) for chat in chats[: shape.alone]])
                rates[work] = round(made / (sum(map(cpu_s, descendants())) - before), 1)
        return rates

    with (
        tempfile.TemporaryDirectory() as work,
        transformers_server(folder, Path(work), 1, bin_folder, "bfloat16") as url,
    ):
        return asyncio.run(asked(url))


def largest_gap(sides: Mapping[str, SideProcess], name: str) -> float | None:
    """How far a side's log-probabilities are from those of transformers in float32, at most."""
    if "float32" not in sides or name not in sides or not sides[name].logprobs:
        return None
    true = sides["float32"].logprobs
    pairs = zip(sides[name].logprobs[: len(true)], true, strict=True)
    return round(max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True)), 4)


def ratios(sides: Mapping[str, SideProcess]) -> dict[str, float | None]:
    """Ours by the others', work by work."""

    def rate(name: str, work: str) -> float | None:
        return sides[name].rate(work) if name in sides else None

    def ratio(one: float | None, other: float | None) -> float | None:
        return round(one / other, 3) if one and other else None

    found = {"reads_of_transformers": ratio(rate("engine", "reads"), rate("transformers", "reads"))}
    found["reads_of_old"] = ratio(rate("engine", "reads"), rate("old", "reads"))
    found["heads_of_reads"] = ratio(rate("engine", "heads"), rate("engine", "reads"))
    found["heads_of_vllm"] = ratio(rate("engine", "heads"), rate("vllm", "heads"))
    for other in ("transformers", "old", "vllm"):
        for work in CHAT_WORK:
            found[f"{work}_of_{other}"] = ratio(rate("engine", work), rate(other, work))
    return found


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 if a measured ratio is below its target")
    parser.add_argument("--model", type=Path, help="folder of the model; default: smollm2")
    parser.add_argument(
        "--parts", type=int, default=8, help=f"parts of {PART} prompts that are read; 8 are 512 prompts"
    )
    parser.add_argument("--chat-parts", type=int, default=1)
    parser.add_argument("--old", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--bits", action="store_true", help="the engine in float32, and with equal bits, as well")
    parser.add_argument(
        "--slow-parts", type=int, default=2, help="how many parts these two and the earlier commit read"
    )
    parser.add_argument("--vllm", help="Python of an environment with vLLM for the CPU")
    parser.add_argument("--transformers-bin", type=Path, help="bin folder of an environment with `transformers serve`")
    return parser.parse_args()


def _folder(given: Path | None) -> Path:
    from semievol_providers.local.packaged_models import folder_for

    return given or Path(folder_for("smollm2"))


def main() -> int:
    """Measure, print, and check."""
    asked = _parsed()
    folder = _folder(asked.model)
    with ExitStack() as stack:
        sides: dict[str, SideProcess] = {}

        def start(name: str, kind: str, python: str = sys.executable, tree: Path | None = ROOT) -> None:
            sides[name] = SideProcess(name, kind, folder, python, tree)
            stack.callback(sides[name].close)

        for kind in ("engine", "transformers", "float32", *(_BITS if asked.bits else ())):
            start(kind, kind)
        if asked.old is not None:
            start("old", "engine", tree=asked.old.resolve())
        if asked.vllm is not None:
            start("vllm", "vllm", asked.vllm, None)
        measure(sides, asked)
    found = ratios(sides)
    missed = [name for name, least in TARGETS.items() if (value := found[name]) is not None and value < least]
    report = {
        "model": folder.name,
        "cpu": platform.processor() or platform.machine(),
        "prompts": asked.parts * PART,
        "prompt_tokens": PROMPT,
        "static_batch": sides["transformers"].about["batch"],
        "tokens_per_cpu_s": {
            name: {work: sides[name].rate(work) for work in ("reads", "heads", *CHAT_WORK)} if name in sides else None
            for name in ("engine", *_BITS, "transformers", "old", "vllm")
        }
        | {"transformers_serve": served_by_transformers(folder, asked.transformers_bin)},
        "ratios": found,
        "targets": TARGETS,
        "largest_gap_to_float32": {
            name: largest_gap(sides, name) for name in ("engine", *_BITS, "transformers", "old")
        },
        "load": os.getloadavg()[0],
        "met": not missed,
        "missed": missed,
    }
    sys.stdout.write(json.dumps(report, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
