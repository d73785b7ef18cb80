"""A loopback vendor that answers reviews as asked, but is odd in one way that real vendors were seen to be odd in.

    with serving(OddVendor("events-404")) as server: ...

`SCENARIOS` names the ways. Knows nothing of what a user should read about them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.providers.openai_loopback import LoopbackServer, error_body

LABELS = ("complaint", "praise")
_THOUGHT = "<think>It may be either. A hasty Answer: complaint would be wrong.\n"
_UNSAFE = (
    "The job failed due to an unsafe training file. This training file was blocked by our moderation system because "
    "it contains too many examples that violate our usage policies."
)


def review(number: int, labels: tuple[str, str] = LABELS) -> tuple[str, str]:
    """A made-up review and its label."""
    if number % 2:
        return f"The lamp of week {number} came scratched and late.", labels[0]
    return f"The kettle of week {number} works very well.", labels[1]


Refusal = Callable[[dict[str, Any]], "tuple[int, bytes] | None"]


def _flat_error(message: str) -> bytes:
    """As vLLM worded it."""
    return json.dumps(
        {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}
    ).encode()


def _no_max_tokens(body: dict[str, Any]) -> tuple[int, bytes] | None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    return (400, error_body(words, "unsupported_parameter")) if "max_tokens" in body else None


def _reasoning(body: dict[str, Any]) -> tuple[int, bytes] | None:
    if body.get("logprobs"):
        return 403, error_body("You are not allowed to request logprobs from this model")
    words = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."
    return (400, error_body(words, "unsupported_value")) if body["temperature"] != 1 else None


def _no_system(body: dict[str, Any]) -> tuple[int, bytes] | None:
    has = any(turn["role"] == "system" for turn in body["messages"])
    return (400, _flat_error("System role not supported")) if has else None


def _five_alternatives(body: dict[str, Any]) -> tuple[int, bytes] | None:
    asked = body.get("top_logprobs", 0)
    words = f"Requested sample logprobs of {asked}, which is greater than max allowed: 5"
    return (400, _flat_error(words)) if asked > 5 else None


def _no_n(body: dict[str, Any]) -> tuple[int, bytes] | None:
    return (400, error_body("n > 1 is not supported by this model", "unsupported_value")) if "n" in body else None


_REFUSALS: dict[str, Refusal] = {
    "no-max-tokens": _no_max_tokens,
    "reasoning": _reasoning,
    "no-system": _no_system,
    "logprobs-5": _five_alternatives,
    "no-n": _no_n,
}
SCENARIOS = (
    *_REFUSALS,
    "think",
    "think-open",
    "reasoning-budget",
    "events-404",
    "events-500",
    "events-shuffled",
    "late-model-name",
    "tuned-404",
    "moderation-failed",
    "empty-choices",
    "null-content",
    "batch-all-errors",
    "stuck-validating",
    "cancelled-outside",
    "html-502",
    "logprobs-null",
)


class OddVendor(LoopbackServer):
    """Right answers, and one oddity while `scenario` names it."""

    def __init__(self, scenario: str, labels: tuple[str, str] = LABELS) -> None:
        super().__init__()
        assert scenario in SCENARIOS
        self._labels = labels
        self.scenario = scenario
        self.refused = 0
        self.only_tuned = False
        """Whether base models are answered as asked, whatever is refused."""
        self._looks: dict[str, int] = {}

    def _again(self, what: str, times: int) -> bool:
        """Whether something was looked at fewer than so many times."""
        self._looks[what] = self._looks.get(what, 0) + 1
        return self._looks[what] <= times

    # ------------------------------------------------------------------------------------- inference
    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        refusal = _REFUSALS[self.scenario](body) if self.scenario in _REFUSALS else None
        if self.only_tuned and not body["model"].startswith("ft:"):
            refusal = None
        if self.scenario == "tuned-404" and body["model"].startswith("ft:") and self._again(body["model"], 2):
            refusal = 404, error_body(f"The model `{body['model']}` does not exist.", "model_not_found")
        if self.scenario == "html-502" and self._again(json.dumps(body["messages"]), 1):
            return web.Response(
                status=502, text="<html><title>502 Bad Gateway</title></html>", content_type="text/html"
            )
        if refusal is not None:
            self.refused += 1
            return web.Response(status=refusal[0], body=refusal[1], content_type="application/json")
        return web.json_response(self._completion(body))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = next(turn["content"] for turn in reversed(body["messages"]) if turn["role"] == "user")
        text = asked[asked.rfind("Question:") :]
        number = int("".join(c for c in text.partition("week ")[2].split(" ")[0] if c.isdigit()))
        label = review(number, self._labels)[1]
        tokens = ["Answer", ":", f" {label}"][2 if body.get("continue_final_message") else 0 :]
        reply, finish, used = "".join(tokens), "stop", 5
        if self.scenario == "think":
            reply = f"{_THOUGHT}</think>\n{label}"
        if self.scenario == "think-open":
            reply, finish = _THOUGHT, "length"
        if self.scenario == "reasoning-budget":
            reply, finish, used = "", "length", body["max_tokens"]
        content: str | None = reply
        if self.scenario == "null-content" and number % 8 == 0:
            content, finish = None, "content_filter"
        shown = body.get("logprobs") and reply == "".join(tokens) and self.scenario != "logprobs-null"
        top = body.get("top_logprobs", 0)
        entries = [_entry(token, -0.2 if token.strip() == label else -0.01, top, self._labels) for token in tokens]
        choice = {
            "message": {"role": "assistant", "content": content, "refusal": None},
            "finish_reason": finish,
            "logprobs": {"content": entries} if shown else None,
        }
        choices = [{"index": i, **choice} for i in range(body.get("n", 1))]
        if self.scenario == "empty-choices" and number % 8 == 0:
            choices = []
        usage = {"prompt_tokens": 9, "completion_tokens": used, "total_tokens": 9 + used}
        named = {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"]}
        return {**named, "choices": choices, "usage": usage}

    # ------------------------------------------------------------------------------------------ jobs
    async def _job(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        job = self.jobs[id]
        if self.scenario == "stuck-validating" and self._again(id, 40):
            return web.json_response(job)
        ended = {"moderation-failed": "failed", "cancelled-outside": "cancelled"}.get(self.scenario)
        if ended and job["status"] == "running":
            job["status"] = ended
            job["error"] = {"code": None, "message": _UNSAFE, "param": "training_file"} if ended == "failed" else {}
        late = self.scenario == "late-model-name" and job["status"] == "succeeded" and self._again(id, 5)
        named = job["fine_tuned_model"]
        if late:
            job["fine_tuned_model"] = None
        answer = await super()._job(request)
        if late:
            answer = web.json_response({**job, "fine_tuned_model": None})
            job["fine_tuned_model"] = named
        return answer

    async def _events(self, request: web.Request) -> web.Response:
        if self.scenario == "events-404":
            return web.json_response({"detail": "Not Found"}, status=404)
        if self.scenario == "events-500":
            return web.Response(status=500, body=error_body("events are away", "server_error"))
        if self.scenario != "events-shuffled":
            return web.json_response({"object": "list", "data": [], "has_more": False})
        kept = {"object": "fine_tuning.job.event", "level": "info", "type": "message", "data": None}
        data = [{**kept, "id": f"e{i}", "created_at": at, "message": f"step {i}"} for i, at in enumerate((5, 1, 9, 3))]
        return web.json_response({"object": "list", "data": data, "has_more": False})

    def _finish(self, batch: dict[str, Any]) -> None:
        if self.scenario != "batch-all-errors":
            return super()._finish(batch)
        fault = json.loads(error_body("Unsupported value: 'temperature' does not support 0.", "unsupported_value"))
        lines = [json.loads(line) for line in self.contents[batch["input_file_id"]].splitlines()]
        response = {"status_code": 400, "request_id": "r", "body": fault}
        written = [
            json.dumps({"id": "x", "custom_id": line["custom_id"], "response": response, "error": None})
            for line in lines
        ]
        batch["status"] = "completed"
        batch["error_file_id"] = self._keep_file("\n".join(written).encode(), "err.jsonl", "batch_output")["id"]
        batch["request_counts"] = {"total": len(lines), "completed": 0, "failed": len(lines)}
        return None


def _entry(token: str, logprob: float, top: int, labels: tuple[str, str]) -> dict[str, Any]:
    """A token with its alternatives: behind a label the other one."""
    others = [(token, logprob)]
    if token.strip() in labels:
        others += [(f" {label}", -1.8) for label in labels if label != token.strip()]
    listed = [{"token": one, "logprob": value, "bytes": None} for one, value in others][:top]
    return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": listed}
