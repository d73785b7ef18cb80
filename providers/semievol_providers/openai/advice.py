"""What to try next after a vendor's error, by its code first and its status second.

Codes are the vendors' own, opaque words: an unknown one falls back to its status. Knows nothing of raising.
"""

from __future__ import annotations

from collections.abc import Mapping

QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "account_deactivated",
        "access_terminated",
        "credits_exhausted",
        "insufficient_balance",
    }
)
"""Codes that vendors send with status 429 although waiting would not help."""

ABSENT_MODEL_CODES = frozenset({"model_not_found", "DeploymentNotFound"})

_MONEY = "The account has no money or quota left: add credit or raise the limit at the vendor, then start again."
_KEY = "Check that {key_source} holds a current key of this vendor, then start again; nothing is lost."
_MODEL = "Check the model's name for this vendor, and whether the key's project may use it or the vendor ended it."
_CONTENT = "The vendor's content rules stopped this text; the row is recorded as refused and asking again won't help."
_LENGTH = "Use fewer or shorter references (few-shot examples), a smaller max_tokens, or a model with a longer context."
_FILE = "Check the training file: one chat per line, at least 10 of them, each ending with the assistant's turn."
_ROOM = "The quota of files, jobs or deployments is used up: look at `semievol clean --remote`, or ask for more."
_TRAINING = "Choose a base model that this vendor still trains, or give the trainer role to another provider."

_BY_CODE: Mapping[str, str] = {
    **dict.fromkeys(QUOTA_CODES, _MONEY),
    "invalid_api_key": _KEY,
    "invalid_organization": "Check the organization and project variables; a key works only within its own.",
    "mismatched_organization": "Check the organization and project variables; a key works only within its own.",
    "mismatched_project": "Check the organization and project variables; a key works only within its own.",
    "unsupported_country_region_territory": "Not served in this region: use another provider for the role.",
    "unknown_url": "This server does not offer that: give the role to another provider, or choose another mode.",
    "model_not_found": _MODEL,
    "DeploymentNotFound": (
        "Deploy the model under this name at the vendor (a tuned one under its own name), wait some minutes until "
        "it answers, and run again: nothing is lost."
    ),
    "OperationNotSupported": _MODEL,
    "model_not_available": _TRAINING,
    "model_not_supported": _TRAINING,
    "fine_tuning_not_supported": _TRAINING,
    "context_length_exceeded": _LENGTH,
    "string_above_max_length": _LENGTH,
    "content_filter": _CONTENT,
    "content_policy_violation": _CONTENT,
    "ResponsibleAIPolicyViolation": _CONTENT,
    "invalid_prompt": _CONTENT,
    "invalid_training_file": _FILE,
    "invalid_file_format": _FILE,
    "invalid_n_examples": _FILE,
    "too_few_examples": _FILE,
    "deleted_training_file": "Someone deleted the uploaded file. Start again: it is uploaded anew.",
    "exceeded_quota": _MONEY,
    "jsonlValidationFailed": _FILE,
    "fileImportFailed": _FILE,
    "contentFilter": _CONTENT,
    "unauthorized": _KEY,
    "quotaExceeded": _ROOM,
    "daily_rate_limit_exceeded": "The day's number of fine-tuning jobs is used up. Start again tomorrow.",
    "safety_eval_failed": "The vendor's safety evaluation failed: look for harmful rows in the data.",
    "unsupported_value": "Change or leave out the setting that the message names.",
    "unsupported_parameter": "Change or leave out the setting that the message names.",
    "unknown_parameter": "This server does not know the setting that the message names: leave it out.",
}

_BY_STATUS: Mapping[int, str] = {
    400: "Change the setting that the message names.",
    401: _KEY,
    402: _MONEY,
    403: "Check that the key in {key_source} may use this model and endpoint, and that the region is served.",
    404: "Check the model's name, and base_url ({base_url}): it usually ends with /v1.",
    405: "Check base_url ({base_url}): it usually ends with /v1.",
    410: _MODEL,
    413: "The request is too large: use fewer references, or a smaller file.",
    415: "Check base_url ({base_url}); this server does not speak the OpenAI protocol there.",
    422: "Change the setting that the message names.",
    451: _CONTENT,
}

_BY_WORDS: tuple[tuple[str, str], ...] = (
    ("maximum context length", _LENGTH),
    ("context window", _LENGTH),
    ("expired", _KEY),
    ("content management policy", _CONTENT),
    ("resource not found", "Check api_version and base_url ({base_url}): Azure's end with /openai, or /openai/v1."),
    ("does not support fine-tuning", _TRAINING + " Newer Azure wants job_extra_body = { trainingType = 1 } here."),
    ("safety", "Look at the vendor's reason; harmful rows in the training data are the usual cause."),
    ("country", "Not served in this region: use another provider for the role."),
)


def is_context_length(code: str | None, message: str) -> bool:
    """Whether a refusal is about the prompt's length, in this vendor's words."""
    return next_step(None, code, message) is _LENGTH


def next_step(status: int | None, code: str | None, message: str) -> str:
    """One sentence; `{key_source}` and `{base_url}` in it are the caller's to fill."""
    if code is not None and code in _BY_CODE:
        return _BY_CODE[code]
    lowered = message.lower()
    for words, advice in _BY_WORDS:
        if words in lowered:
            return advice
    if status is not None and status in _BY_STATUS:
        return _BY_STATUS[status]
    return "The vendor's message is all that is known; its documentation may say more about the code."
