"""Take secrets out of what a cassette is about to keep.

A value is a secret by its shape (API keys, bearer tokens, organisation ids) or because the caller names it
(the value of an environment variable). Of response headers only an allow-list is kept; request headers never
reach this module. Knows nothing of exchanges, files or keys of cassettes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import msgspec

_KEPT_HEADERS = ("content-type", "retry-after", "retry-after-ms", "x-should-retry")
_KEPT_PREFIX = "x-ratelimit-"
_SHORTEST_SECRET = 8
"""Shorter values given by name are left alone: replacing `test` everywhere would wreck the recording."""

_PEM = re.compile(
    rb"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"
    rb"(?:(?:\\[nr]|[A-Za-z0-9+/=\s:,.-])*?-----END [A-Z ]{0,30}PRIVATE KEY-----|(?:\\[nr]|[A-Za-z0-9+/=\s])*)"
)
_AWS_SECRET = re.compile(
    rb"(\baws[\w .-]{0,20}secret[\w .-]{0,20}[\"'\\]{0,2}\s{0,3}[:=]\s{0,3}[\"'\\]{0,2})"
    rb"[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    re.IGNORECASE,
)
_PASSWORD = re.compile(
    rb"(\b(?:password|passwd|passwort|pwd)=)(?!scrubbed-|\[removed-)[^\s&\"'\\,;<>]{6,}", re.IGNORECASE
)
_NAMED_KEY = re.compile(
    rb"((?<![A-Za-z0-9])(?:api|subscription|access|secret)[-_]?key[\"'\\]{0,2}\s{0,3}[:=]\s{0,3}[\"'\\]{0,2})"
    rb"(?!scrubbed-|removed-key)(?=[A-Za-z_/+.-]*[0-9])[A-Za-z0-9_/+.-]{16,}",
    re.IGNORECASE,
)
# (a literal that every match contains, the shape, what is kept instead). The literal is looked for first,
# since that costs nanoseconds. No replacement has the shape that it replaces. A group is the secret's name: it stays.
_SHAPES: tuple[tuple[bytes, re.Pattern[bytes], bytes], ...] = (
    (b"sk-", re.compile(rb"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}"), b"scrubbed-key"),
    (b"earer", re.compile(rb"\b[Bb]earer\s+[A-Za-z0-9._~+/=-]{12,}"), b"scrubbed-bearer"),
    (b"org-", re.compile(rb"(?<![A-Za-z0-9:-])org-[A-Za-z0-9]{16,}"), b"org-scrubbed"),
    (b"proj_", re.compile(rb"(?<![A-Za-z0-9_])proj_[A-Za-z0-9]{16,}"), b"proj_scrubbed"),
    (b"sess-", re.compile(rb"(?<![A-Za-z0-9])sess-[A-Za-z0-9]{16,}"), b"scrubbed-key"),
    (b"hf_", re.compile(rb"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{20,}"), b"scrubbed-key"),
    (b"AIza", re.compile(rb"AIza[A-Za-z0-9_-]{35}"), b"scrubbed-key"),
    (b"AKIA", re.compile(rb"\bAKIA[A-Z0-9]{16}\b"), b"scrubbed-key"),
    (b"gh", re.compile(rb"gh[opsur]_[A-Za-z0-9]{20,}"), b"scrubbed-key"),
    (b"github_pat_", re.compile(rb"github_pat_[A-Za-z0-9_]{20,}"), b"scrubbed-key"),
    (b"glpat-", re.compile(rb"glpat-[A-Za-z0-9_-]{20,}"), b"scrubbed-key"),
    (b"xox", re.compile(rb"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"), b"scrubbed-key"),
    (b"gsk_", re.compile(rb"(?<![A-Za-z0-9_])gsk_[A-Za-z0-9]{20,}"), b"scrubbed-key"),
    (b"xai-", re.compile(rb"(?<![A-Za-z0-9-])xai-[A-Za-z0-9]{20,}"), b"scrubbed-key"),
    (b"pplx-", re.compile(rb"(?<![A-Za-z0-9-])pplx-[A-Za-z0-9]{20,}"), b"scrubbed-key"),
    (b"r8_", re.compile(rb"(?<![A-Za-z0-9_])r8_[A-Za-z0-9]{20,}"), b"scrubbed-key"),
    (b"eyJ", re.compile(rb"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"), b"scrubbed-token"),
    (b"PRIVATE KEY-----", _PEM, b"scrubbed-private-key"),
    *((marker, _AWS_SECRET, rb"\g<1>scrubbed-key") for marker in (b"ecret", b"SECRET")),
    *((marker, _PASSWORD, rb"\g<1>scrubbed-secret") for marker in (b"assw", b"ASSW", b"pwd=", b"PWD=")),
    *((marker, _NAMED_KEY, rb"\g<1>scrubbed-key") for marker in (b"key", b"Key", b"KEY")),
)
_SECRET_PARAMETERS = frozenset(
    (
        "access_token", "api-key", "api_key", "apikey", "client_secret", "code", "key", "password", "sig", "signature",
        "subscription-key", "token", "x-amz-credential", "x-amz-security-token", "x-amz-signature",
    )
)  # fmt: skip
_SECRET_ENDINGS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_ORG_ID", "_PROJECT_ID", "_ORGANIZATION")


def secret_values(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The values of those environment variables whose names say that they are secret."""
    return tuple(value for name, value in environ.items() if name.upper().endswith(_SECRET_ENDINGS) and value)


class Scrubber:
    """Replaces secrets in bytes; `secrets` are values to replace besides those known by shape.

    The same input always gives the same output, so a request that holds a key still finds its exchange.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        named: set[bytes] = set()
        for value in secrets:
            if len(value) >= _SHORTEST_SECRET:
                named |= {value.encode(), msgspec.json.encode(value)[1:-1]}  # as it is, and as JSON spells it
        self._named = sorted(named, key=len, reverse=True)

    def clean(self, content: bytes) -> bytes:
        """`content` without secrets; JSON stays JSON."""
        for secret in self._named:
            if secret in content:
                content = content.replace(secret, b"scrubbed-secret")
        for marker, shape, instead in _SHAPES:
            if marker in content:
                content = shape.sub(instead, content)
        return content

    def clean_text(self, text: str) -> str:
        """`clean` for text."""
        return self.clean(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

    def clean_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The response headers that a cassette keeps, sorted, lower-case."""
        lowered = {name.lower(): value for name, value in headers.items()}
        return {
            name: self.clean_text(value)
            for name, value in sorted(lowered.items())
            if name in _KEPT_HEADERS or name.startswith(_KEPT_PREFIX)
        }

    def clean_query(self, pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Sorted query parameters; those that carry keys by their name are left out."""
        return tuple(
            sorted((name, self.clean_text(value)) for name, value in pairs if name.lower() not in _SECRET_PARAMETERS)
        )


def replace_key_shapes(content: bytes, instead: Callable[[bytes], bytes]) -> bytes:
    """`content` with `instead` of every substring that looks like a secret."""
    for marker, shape, _ in _SHAPES:
        if marker in content:
            content = shape.sub(lambda found: _named_apart(found, instead), content)
    return content


def _named_apart(found: re.Match[bytes], instead: Callable[[bytes], bytes]) -> bytes:
    name: bytes = found[1] if found.re.groups else b""
    return name + instead(found[0][len(name) :])


def find_key_shapes(content: bytes) -> list[str]:
    """Every substring that looks like a secret; empty for anything that went through `Scrubber.clean`."""
    return [found.group().decode("utf-8", "replace") for _, shape, _ in _SHAPES for found in shape.finditer(content)]
