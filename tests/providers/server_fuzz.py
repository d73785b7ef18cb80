"""Requests made up from the API's specification, sent to a running server; and broken training files.

    python tests/providers/server_fuzz.py URL --requests 5000     # by hand; the tests send fewer

Knows nothing of what the server does with them.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SPECIFICATION = Path(__file__).resolve().parent.parent / "data" / "openapi.subset.json"
TIMEOUT_S = 60
ALLOWED = frozenset({200, 400, 401, 403, 404, 405, 408, 409, 413, 429})


def operations() -> list[Any]:
    """Every operation of the specification, as schemathesis sees it."""
    import schemathesis

    document = copy.deepcopy(json.loads(SPECIFICATION.read_text("utf-8")))
    document.pop("security", None)
    everything: Any = schemathesis.openapi.from_dict(document).get_all_operations()
    return [found.ok() for found in everything]


def real_ids(url: str) -> dict[str, str]:
    """Make one file of each kind, a job and a batch; returns ids by the names of fields and path parameters."""
    import openai

    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id
        turns = [{"role": "user", "content": "Item"}, {"role": "assistant", "content": "B"}]
        train = (json.dumps({"messages": turns}) + "\n").encode() * 12
        body = {"model": model, "input": "a"}
        line = {"custom_id": "x", "method": "POST", "url": "/v1/embeddings", "body": body}
        file = client.files.create(file=("t.jsonl", train), purpose="fine-tune").id
        asked = client.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch").id
        job = client.fine_tuning.jobs.create(model=model, training_file=file, hyperparameters={"n_epochs": 1}).id
        batch = client.batches.create(input_file_id=asked, endpoint="/v1/embeddings", completion_window="24h").id
    return {
        "model": model, "training_file": file, "validation_file": file, "input_file_id": asked, "file_id": file,
        "fine_tuning_job_id": job, "batch_id": batch,
    }  # fmt: skip


def _make_real(case: Any, ids: Mapping[str, str], chance: random.Random) -> None:
    """Let half of the requests name what exists, so that they get past the first check."""
    for part in (case.body, case.path_parameters):
        if isinstance(part, dict) and chance.random() < 0.5:
            part.update({name: ids[name] for name in part if name in ids})


def send_some(url: str, operation: Any, count: int, seed: int, ids: Mapping[str, str]) -> Counter[int]:
    """Send this many made-up requests of one operation; returns how often which status was answered.

    Fails where an answer is no answer of the API: a status of 5xx, a body of another shape, or none at all.
    """
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    statuses: Counter[int] = Counter()
    chance = random.Random(seed)
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    invalid = count // 2 if list(operation.query) or list(operation.body) else 0  # any text is a valid id
    for mode, share in zip(modes, (count - invalid, invalid), strict=True):
        if not share:
            continue
        strategy = operation.as_strategy(generation_mode=mode)

        @seeded(seed)
        @settings(
            max_examples=share,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        )
        @given(case=strategy)
        def ask(case: Any) -> None:
            _make_real(case, ids, chance)
            answer = case.call(base_url=url, timeout=TIMEOUT_S)
            statuses[answer.status_code] += 1
            check_answer(operation, case, answer)

        try:
            ask()
        except Exception as error:
            if "Unsatisfiable" not in type(error).__name__:
                raise
    return statuses


def check_answer(operation: Any, case: Any, answer: Any) -> None:
    """An answer that conforms: 200 by the specification, or an error in the API's shape."""
    assert answer.status_code in ALLOWED, (operation.label, answer.status_code, answer.text[:500])
    if answer.status_code == 200:
        if isinstance(case.body, dict) and case.body.get("encoding_format") == "base64":
            return  # the specification forgets that an embedding may be a text
        kind = answer.headers["content-type"][0]
        if "json" in kind:
            operation.validate_response(answer)
        return
    error = json.loads(answer.text)["error"]
    assert isinstance(error["message"], str) and error["type"].endswith("_error"), error
    assert set(error) == {"message", "type", "param", "code"}, error


# ------------------------------------------------------------------------------------------ training files
def broken_files(count: int, seed: int) -> Iterator[tuple[bytes, int]]:
    """Training files with one broken line, and its number."""
    chance = random.Random(seed)
    for _ in range(count):
        lines = [_good_line(chance) for _ in range(chance.randint(10, 14))]
        at = chance.randrange(len(lines))
        lines[at] = _break(chance, lines[at])
        yield b"\n".join(lines) + b"\n", at + 1


def _good_line(chance: random.Random) -> bytes:
    turns = [{"role": "user", "content": f"Item {chance.random()}"}, {"role": "assistant", "content": "B é"}]
    if chance.random() < 0.3:
        turns.insert(0, {"role": "system", "content": "Be brief."})
    return json.dumps({"messages": turns}, ensure_ascii=chance.random() < 0.5).encode()


def _break(chance: random.Random, line: bytes) -> bytes:
    record = json.loads(line)
    odd = chance.choice([None, 1, 1.5, True, [], {}, ["x"], {"a": 1}, "x", "", -1, 10**30])
    kind = chance.randrange(9)
    if kind == 0:  # cut off
        return line[: chance.randrange(1, len(line) - 1)]
    if kind == 1:  # a byte that is no UTF-8
        return line.replace(b"Item", b"It\xff\xfem")
    if kind == 2:  # not an object
        return json.dumps(chance.choice([1, "x", [record], None, True, 1.5, []])).encode()
    if kind == 3:  # messages of another type
        return json.dumps({"messages": chance.choice([odd if odd != [] else 0, []])}).encode()
    if kind == 4:  # a key too many or too few
        return json.dumps(chance.choice([record | {"tools": odd}, {"prompt": "a", "completion": "b"}, {}])).encode()
    message: dict[str, Any] = chance.choice(record["messages"])
    if kind == 5:
        message["role"] = odd
    elif kind == 6:
        message["content"] = odd if not isinstance(odd, str) else None
    elif kind == 7:
        message["weight"] = chance.choice([2, -1, "1", 0.5, None, [], True])
    else:
        record["messages"] = [turn for turn in record["messages"] if turn["role"] != "assistant"]
    return json.dumps(record).encode()


def main() -> None:
    """Fuzz a running server by hand; prints counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found = operations()
    each = -(-asked.requests // (len(found) - 1))  # a request without settings, to list models, is made once only
    ids = real_ids(asked.url)
    told: dict[str, Mapping[int, int]] = {}
    for operation in found:
        told[operation.label] = send_some(asked.url, operation, each, asked.seed, ids)
        sys.stderr.write(f"{operation.label} {dict(told[operation.label])}\n")
    sys.stdout.write(json.dumps({"requests": sum(sum(c.values()) for c in told.values()), "statuses": told}) + "\n")


if __name__ == "__main__":
    main()
