"""Files and fine-tuning jobs through the unmodified openai SDK on a running server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from local_samples import training_lines
from server_running import RunningServer, wait_for_job

pytest_plugins = ("server_fixtures",)
Conforms = Callable[[object, str], None]
MESSAGES: Any = [{"role": "user", "content": "Item 1 x"}]


def _upload(client: openai.OpenAI, text: str | None = None, name: str = "train.jsonl") -> str:
    data = (training_lines(20) if text is None else text).encode()
    return client.files.create(file=(name, data), purpose="fine-tune").id


def test_a_file_is_kept_listed_read_back_and_deleted(client: openai.OpenAI, conforms: Conforms) -> None:
    data = training_lines(12).encode()
    raw = client.files.with_raw_response.create(file=("../../evil.jsonl", data), purpose="fine-tune")
    made = json.loads(raw.content)
    conforms(made, "OpenAIFile")
    assert made["filename"] == "../../evil.jsonl" and made["bytes"] == len(data)
    assert client.files.content(made["id"]).content == data
    assert client.files.retrieve(made["id"]).id == made["id"]
    conforms(json.loads(client.files.with_raw_response.list().content), "ListFilesResponse")
    conforms(json.loads(client.files.with_raw_response.delete(made["id"]).content), "DeleteFileResponse")
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=made["id"]):
            call(made["id"])


def test_files_are_paged_in_both_orders(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{i}.txt", b"x"), purpose="user_data").id for i in range(7)]
    newest = [file.id for file in client.files.list(purpose="user_data", limit=3)]
    assert newest[:7] == made[::-1]  # other tests may have sent files to this server before
    oldest = [file.id for file in client.files.list(purpose="user_data", limit=2, order="asc")]
    assert oldest == newest[::-1]
    page = client.files.list(purpose="user_data", limit=3)
    assert page.has_more and len(page.data) == 3


def test_a_wrong_purpose_or_no_file_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="world_domination"):
        client.files.create(file=("a", b"x"), purpose="world_domination")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="file"):
        client.post(
            "/files",
            body={"purpose": "fine-tune"},
            cast_to=object,
            files=[],
            options={"headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        )


def test_a_job_from_creation_to_the_tuned_model(client: openai.OpenAI, conforms: Conforms) -> None:
    train, valid = _upload(client), _upload(client, training_lines(5))
    raw = client.fine_tuning.jobs.with_raw_response.create(
        model="tiny", training_file=train, validation_file=valid, suffix="warm", seed=7, metadata={"who": "me"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 5}}},
    )  # fmt: skip
    made = json.loads(raw.content)
    conforms(made, "FineTuningJob")
    assert made["status"] == "validating_files" and made["seed"] == 7
    with pytest.raises(openai.ConflictError, match=made["id"]):
        client.files.delete(train)
    job = wait_for_job(client, made["id"])
    body = json.loads(client.fine_tuning.jobs.with_raw_response.retrieve(job.id).content)
    conforms(body, "FineTuningJob")
    assert job.fine_tuned_model is not None and job.fine_tuned_model.startswith("ft:tiny:local:warm:")
    assert job.hyperparameters.n_epochs == 3 and job.hyperparameters.learning_rate_multiplier == 1.0
    assert job.trained_tokens and job.finished_at and job.estimated_finish is None

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=4))
    conforms(
        json.loads(client.fine_tuning.jobs.with_raw_response.list_events(job.id).content),
        "ListFineTuningJobEventsResponse",
    )
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    losses = [e.data["train_loss"] for e in events if e.type == "metrics" and "full_valid_loss" not in e.data]  # type: ignore[index,operator]
    assert len(losses) == 12 and losses[-1] > losses[0]  # newest first: the loss fell
    assert client.files.content(job.result_files[0]).text.count("\n") == 13

    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id)
    conforms(
        json.loads(client.fine_tuning.jobs.checkpoints.with_raw_response.list(job.id).content),
        "ListFineTuningJobCheckpointsResponse",
    )
    assert [c.step_number for c in checkpoints.data] == [8, 4]
    answers = {}
    for name in ("tiny", job.fine_tuned_model, checkpoints.data[0].fine_tuned_model_checkpoint):
        reply = client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=1, seed=1, logprobs=True)
        answers[name] = reply.choices[0].logprobs.content[0].logprob  # type: ignore[union-attr,index]
    assert len(set(answers.values())) == 3

    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    assert client.models.delete(job.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=job.fine_tuned_model, messages=MESSAGES)


def test_the_same_run_key_is_the_same_job_and_can_be_found(client: openai.OpenAI, conforms: Conforms) -> None:
    train = _upload(client)
    settings: Any = {
        "model": "tiny", "training_file": train, "hyperparameters": {"n_epochs": 1},
        "metadata": {"semievol_run_key": "key \"1'", "stage": "warm"},
    }  # fmt: skip
    first = client.fine_tuning.jobs.create(**settings)
    assert client.fine_tuning.jobs.create(**settings).id == first.id
    found = client.fine_tuning.jobs.list(metadata={"semievol_run_key": "key \"1'"})
    assert [job.id for job in found] == [first.id]
    assert list(client.fine_tuning.jobs.list(metadata={"semievol_run_key": "other"})) == []
    client.fine_tuning.jobs.cancel(first.id)
    second = client.fine_tuning.jobs.create(**settings)
    assert second.id != first.id
    wait_for_job(client, second.id)
    body = json.loads(client.fine_tuning.jobs.with_raw_response.list(limit=1).content)
    conforms(body, "ListPaginatedFineTuningJobsResponse")
    assert body["has_more"] and len(list(client.fine_tuning.jobs.list(limit=1))) >= 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (training_lines(9), "9 example(s), but must have at least 10"),
        (training_lines(12) + "{\n", "Line 13 is not valid JSON"),
        (
            training_lines(12) + '{"messages": [{"role": "user", "content": "x"}]}\n',
            "Line 13 has no assistant message",
        ),
        (training_lines(12).replace("Item 3 ", "y" * 600), "Line 4 has 6"),
        ("", "0 example(s)"),
    ],
)
def test_a_bad_training_file_fails_the_job_with_its_line(
    client: openai.OpenAI, conforms: Conforms, text: str, complaint: str
) -> None:
    job = client.fine_tuning.jobs.create(model="tiny", training_file=_upload(client, text or "\n"))
    failed = wait_for_job(client, job.id, "failed")
    assert complaint in failed.error.message and failed.error.code == "invalid_training_file"
    conforms(json.loads(client.fine_tuning.jobs.with_raw_response.retrieve(job.id).content), "FineTuningJob")
    assert complaint in client.fine_tuning.jobs.list_events(job.id).data[0].message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "gpt-nothing"}, "model"),
        ({"training_file": "file-nothing"}, "training_file"),
        ({"validation_file": "../../etc/passwd"}, "validation_file"),
        ({"method": {"type": "dpo", "dpo": {}}}, "method.type"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 51}}}},
            "method.supervised.hyperparameters.n_epochs",
        ),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"lora_rank": 5}, "lora_rank"),
        ({"method": {"type": "supervised", "dpo": {"hyperparameters": {"beta": 0.1}}}}, "method.dpo"),
        (
            {
                "hyperparameters": {"n_epochs": 3},
                "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}},
            },
            "hyperparameters.n_epochs",
        ),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_be_run_as_asked_is_refused(
    client: openai.OpenAI, change: dict[str, Any], param: str
) -> None:
    body = {"model": "tiny", "training_file": _upload(client)} | change
    with pytest.raises(openai.BadRequestError) as raised:
        client.post("/fine_tuning/jobs", body=body, cast_to=object)
    assert raised.value.param == param


def test_hyperparameters_in_both_places_are_taken_together(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=_upload(client),
        hyperparameters={"batch_size": 2, "n_epochs": 3},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}},
    )
    assert (job.hyperparameters.batch_size, job.hyperparameters.n_epochs) == (2, 3)
    client.fine_tuning.jobs.cancel(job.id)


def test_jobs_queue_pause_resume_and_cancel(server: RunningServer, client: openai.OpenAI) -> None:
    train = _upload(client)
    settings: Any = {"model": "tiny", "training_file": train, "hyperparameters": {"n_epochs": 50, "batch_size": 1}}
    running, queued = (client.fine_tuning.jobs.create(**settings) for _ in range(2))
    wait_for_job(client, running.id, "running")
    wait_for_job(client, queued.id, "queued")
    assert client.fine_tuning.jobs.pause(running.id).status == "paused"
    wait_for_job(client, queued.id, "running")
    assert client.fine_tuning.jobs.cancel(queued.id).status == "cancelled"
    assert client.fine_tuning.jobs.resume(running.id).status == "queued"
    wait_for_job(client, running.id, "running")
    assert client.fine_tuning.jobs.cancel(running.id).status == "cancelled"
    for call in (client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError, match="has the status 'cancelled'"):
            call(running.id)
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.cancel("ftjob-nothing")
