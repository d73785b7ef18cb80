"""What makes two requests the same request."""

from __future__ import annotations

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from semievol_api.cassettes.exchange import canonical_request
from semievol_api.cassettes.scrub import Scrubber

JSON = {"content-type": "application/json"}


def multipart(boundary: str, content: bytes, filename: str = "train.jsonl") -> tuple[bytes, dict[str, str]]:
    lines = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'.encode(),
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'.encode(),
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n",
        f"--{boundary}--\r\n".encode(),
    ]
    return b"".join(lines), {"Content-Type": f'multipart/form-data; boundary="{boundary}"'}


def key_of(body: bytes, headers: dict[str, str], url: str = "https://x/v1/files") -> str:
    return canonical_request("POST", url, body, headers, Scrubber())[0]


def test_an_upload_is_known_by_its_parts_and_not_by_its_boundary() -> None:
    content = b'{"a": 1}\r\n--not the boundary\r\n\xff'
    same = {key_of(*multipart(boundary, content)) for boundary in ("abc", "q+X=7")}
    assert len(same) == 1
    assert key_of(*multipart("abc", content + b" ")) not in same
    assert key_of(*multipart("abc", content, "other.jsonl")) not in same


def test_an_upload_is_kept_as_names_sizes_and_hashes() -> None:
    body, headers = multipart("abc", b"0123456789" * 100)
    _, request = canonical_request("POST", "https://x/v1/files", body, headers, Scrubber())
    file, purpose = request.body.parts
    assert (file.name, file.filename, file.bytes, file.text) == ("file", "train.jsonl", 1000, None)
    assert (purpose.name, purpose.filename, purpose.text) == ("purpose", None, "fine-tune")


def test_the_path_counts_from_behind_the_version_segment() -> None:
    def path(url: str) -> str:
        return canonical_request("GET", url, None, {}, Scrubber())[1].path

    assert path("https://api.openai.com/v1/models/v2") == "/models/v2"
    assert path("https://x.openai.azure.com/openai/v1/models/a%20b") == "/models/a%20b"
    assert path("https://x/api/models") == "/api/models"
    assert path("https://x/v1beta/") == "/"


def test_the_query_is_sorted_and_keys_in_it_are_left_out() -> None:
    _, request = canonical_request("GET", "https://x/v1/files?limit=2&key=abc&after=f&limit=1", None, {}, Scrubber())
    assert request.query == (("after", "f"), ("limit", "1"), ("limit", "2"))


def test_method_path_query_and_body_each_make_another_request() -> None:
    base = ("POST", "https://x/v1/a?b=1", b'{"c": 1}', JSON)
    others = [
        ("PUT", *base[1:]),
        ("POST", "https://x/v1/aa?b=1", *base[2:]),
        ("POST", "https://x/v1/a?b=2", *base[2:]),
        ("POST", base[1], b'{"c": "1"}', JSON),
        ("POST", base[1], None, JSON),
    ]
    keys = {canonical_request(*one, Scrubber())[0] for one in (base, *others)}
    assert len(keys) == 6


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), json_values, max_size=5), st.integers())
def test_key_order_and_white_space_do_not_matter_and_every_value_does(value: dict[str, object], seed: int) -> None:
    items = list(value.items())
    random.Random(seed).shuffle(items)
    key = key_of(json.dumps(value).encode(), JSON)
    assert key_of(json.dumps(dict(items), indent=3).encode(), JSON) == key
    assert key_of(json.dumps({**value, "one more": 1}).encode(), JSON) != key or "one more" in value
