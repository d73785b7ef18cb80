"""The error tree. Every error that a user may meet is one of these.

    SemievolError
    ├── UserError               the user can mend it: one paragraph, exit code 2
    │   ├── ConfigError         a setting is wrong; carries the key path
    │   ├── DataError           a file or a row is wrong
    │   ├── MissingExtraError   an optional package is not installed
    │   ├── MissingAbilityError a provider cannot do what the config asks
    │   ├── RunFolderError      a run folder is in use, or made by another config
    │   └── JournalError        the journal of paid answers cannot be opened, read or written
    ├── ProviderError           the other side answered with an error
    │   ├── RateLimitError      wait, then ask again; costs no attempt
    │   ├── TransientError      worth another attempt: timeout, cut, 408, 409, 5xx, invalid body
    │   ├── RefusedError        asking again would not help: 400, 401, 403, 404, 422
    │   │   ├── ContextLengthError  the prompt and its answer do not fit the model's context
    │   │   ├── ModelNotFoundError  there is no such model, or it is not deployed yet
    │   │   └── SettingRefusedError the server does not take a setting, whatever the text
    │   └── JobFailedError      a fine-tuning job ended without a model
    ├── BudgetError             the next request could pass the cap; everything paid for is kept
    └── StageError              too many rows of a stage failed

A message says what happened, to what, and what to try next. Knows nothing of who raises or catches.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class SemievolError(Exception):
    """The root of all errors of this project.

    Examples
    --------
    >>> issubclass(semievol_api.BudgetError, semievol_api.SemievolError)
    True
    """


class UserError(SemievolError):
    """Something that the user can mend; the command line prints it as one paragraph and exits with 2.

    Examples
    --------
    >>> try:
    ...     semievol_api.run("nowhere.toml")
    ... except semievol_api.UserError as error:
    ...     print(error)
    There is no config file 'nowhere.toml'. Make one with: semievol init data.csv
    """


class ConfigError(UserError):
    """A setting is missing, unknown or of the wrong type.

    Examples
    --------
    >>> try:
    ...     semievol_api.select([0.5], rule="best")
    ... except semievol_api.ConfigError as error:
    ...     print(error)
    There is no rule 'best'; there are fdr, high-probability, percentile, random, top-n.
    """


class DataError(UserError):
    """A data file, a row in it or an array cannot be used.

    Examples
    --------
    >>> try:
    ...     semievol_api.nearest([[1.0, 0.0]], ["a text"])
    ... except semievol_api.DataError as error:
    ...     print(error)
    Queries and candidates are texts or vectors, not both. Embed the texts, or pass texts alone.
    """


class MissingExtraError(UserError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "semievol-api[{extra}]"'
        )
        self.extra = extra


class MissingAbilityError(UserError):
    """The config asks a provider for something that its capability table leaves empty."""


class RunFolderError(UserError):
    """A run folder cannot be used: another process holds it, or another config made it."""


class JournalError(UserError):
    """The journal of paid answers cannot be opened, read or written: not one of ours, disk full, read-only."""


class ProviderError(SemievolError):
    """The other side of the wire answered with an error.

    Attributes
    ----------
    status : int or None
        The HTTP status.
    code, param : str or None
        The vendor's own words, opaque.

    Examples
    --------
    >>> issubclass(semievol_api.ProviderError, semievol_api.UserError)
    False
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class RateLimitError(ProviderError):
    """Too many requests or tokens. `retry_after_s` is what the vendor asked for, or None."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, code: str | None = None) -> None:
        super().__init__(message, status=429, code=code)
        self.retry_after_s = retry_after_s


class TransientError(ProviderError):
    """A failure that another attempt may mend: connection, timeout, 408, 409, 5xx, cut or invalid body."""


class RefusedError(ProviderError):
    """A refusal that another attempt would not change."""


class ContextLengthError(RefusedError):
    """The prompt and the answer asked for do not fit the model's context; a shorter prompt may."""


class ModelNotFoundError(RefusedError):
    """The vendor has no such model for this key: misspelt, ended, or trained and not deployed yet."""


class SettingRefusedError(RefusedError):
    """The server does not take a setting of the request, whatever its text; every request with it will be refused."""


class JobFailedError(ProviderError):
    """A fine-tuning job ended without a usable model; the message holds the vendor's reason."""


class BudgetError(SemievolError):
    """The next request could pass the budget; nothing more is sent, everything paid for is kept.

    Examples
    --------
    >>> provider = semievol_api.connect("scripted")
    >>> try:
    ...     semievol_api.ask(provider, ["cue: red"], "tiny", max_tokens=5, journal=None)
    ... except semievol_api.BudgetError as error:
    ...     print(str(error)[:20])
    The budget is spent:
    """


class StageError(SemievolError):
    """More rows of a stage failed than the config allows."""


def nearest(name: str, choices: Sequence[str]) -> str:
    """A sentence for a message about an unknown name: the nearest choice, or all of them."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else f"Valid names: {', '.join(sorted(choices))}."
