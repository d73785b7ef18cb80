"""The config table of provider `openai`: what is refused, where keys come from, what stays cheap and secret."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from semievol_api.capabilities import Provider, ProviderSettings
from semievol_api.errors import ConfigError, UserError
from semievol_providers.litellm.settings import read_access
from semievol_providers.openai import connect
from semievol_providers.openai.settings import Connection, load_presets, read_connection

LOCAL = {"base_url": "http://127.0.0.1:9/v1", "api_key_env": ""}


def _read(
    options: Mapping[str, object], environ: dict[str, str] | None = None, folder: Path | None = None
) -> Connection:
    return read_connection(
        ProviderSettings(name="hosted", options=options, environ=environ or {}, base_folder=str(folder or "."))
    )


def _table(options: Mapping[str, object]) -> Provider:
    return connect(ProviderSettings(name="hosted", options=options, environ={}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bas_url": "x"}, ["providers.hosted.bas_url", "'base_url'"]),
        ({"api_key": "sk-verysecret"}, ["api_key_env", "keys never stand in a config"]),
        ({"timeout_s": "60"}, ["providers.hosted.timeout_s", "number"]),
        ({"timeout_s": 0}, ["timeout_s", "greater than 0"]),
        ({"option_read": "guess"}, ["option_read", "prefill"]),
        ({"vendor": "opnai"}, ["'openai'"]),
        ({"base_url": "127.0.0.1:80"}, ["http://"]),
        ({"base_url": "https://me:secret@host/v1"}, ["api_key_env"]),
        ({"base_url": "https://host/v1?key=secret"}, ["api_key_env"]),
        ({"vendor": "compatible"}, ["base_url", "missing"]),
        ({"api_key_env": "A", "api_key_file": "b"}, ["api_key_env", "api_key_file"]),
        ({"api_key_file": "absent.key"}, ["absent.key", "No such file"]),
        ({"organization_env": "MY_ORG", "api_key_env": ""}, ["MY_ORG"]),
        ({"option_read": "prefill", "api_key_env": ""}, ["continue_final_message"]),
        ({}, ["'OPENAI_API_KEY'", 'api_key_env = ""']),
        ({"api_key_env": "MY_KEY"}, ["'MY_KEY'"]),
    ],
)
def test_a_wrong_table_gives_one_calm_paragraph(options: Mapping[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(options)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert all(word in message for word in words), message
    assert "secret" not in message.replace("keys never", "") and "\n" not in message


def test_a_local_server_needs_no_key() -> None:
    connection = _read(LOCAL)
    assert connection.api_key == ""
    assert "authorization" not in connection.headers


def test_the_key_is_read_from_a_file_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "my.key").write_text("sk-from-file\n")
    connection = _read({"api_key_file": "my.key"}, folder=tmp_path)
    assert connection.headers["authorization"] == "Bearer sk-from-file"


@pytest.mark.parametrize("content", ["", "two words", "schlüssel", "a\nb"])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "my.key").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"my\.key"):
        _read({"api_key_file": "my.key"}, folder=tmp_path)


def test_the_key_stands_in_no_repr_and_no_identity() -> None:
    connection = _read({"api_key_env": "MY_KEY", "base_url": "https://x.test/v1/"}, {"MY_KEY": "sk-planted"})
    assert "sk-planted" not in repr(connection)
    assert connection.identity == "https://x.test/v1"
    provider = connect(
        ProviderSettings(name="p", options={"base_url": "https://x.test/v1"}, environ={"OPENAI_API_KEY": "sk-planted"})
    )
    assert "sk-planted" not in repr(provider)


def test_organization_and_project_are_sent_to_openai_alone() -> None:
    environ = {"OPENAI_API_KEY": "k", "OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": "proj-1"}
    assert _read({}, environ).headers["openai-organization"] == "org-1"
    assert _read({}, environ).headers["openai-project"] == "proj-1"
    assert "openai-organization" not in _read({"base_url": "https://x.test/v1"}, environ).headers
    named = _read({"base_url": "https://x.test/v1", "project_env": "MINE"}, {**environ, "MINE": "p2"})
    assert named.headers["openai-project"] == "p2"


def test_openai_itself_is_asked_without_a_prefill_and_a_compatible_server_with_one() -> None:
    hosted = _read({}, {"OPENAI_API_KEY": "k"})
    assert hosted.base_url == "https://api.openai.com/v1"
    assert (hosted.dialect.option_read, hosted.dialect.continue_final_message) == ("position", False)
    assert hosted.dialect.max_tokens_field == "max_completion_tokens"
    local = _read(LOCAL)
    assert (local.dialect.option_read, local.dialect.max_tokens_field) == ("prefill", "max_tokens")
    assert _read({**LOCAL, "continue_final_message": False}).dialect.option_read == "position"


def test_every_preset_of_the_package_is_valid() -> None:
    assert {"openai", "compatible", "vllm", "semievol"} <= set(load_presets())


def test_what_a_vendor_lacks_is_an_empty_field_of_the_table() -> None:
    full, inference = _table(LOCAL), _table({**LOCAL, "vendor": "vllm", "option_read": "off"})
    assert full.finetuner is not None and full.batch is not None and full.option_reader is not None
    assert inference.finetuner is None and inference.batch is None and inference.option_reader is None
    assert inference.chat is not None and inference.scored is not None and inference.embedder is not None


def test_connecting_imports_no_sdk_and_importing_the_door_no_http_client(child_env: dict[str, str]) -> None:
    code = (
        "import sys; from semievol_providers.openai import connect\n"
        "assert not {'openai', 'aiohttp', 'httpx', 'httpx2'} & set(sys.modules)\n"
        "from semievol_api.capabilities import ProviderSettings\n"
        "connect(ProviderSettings(name='x', options={'base_url': 'http://x/v1', 'api_key_env': ''}, environ={}))\n"
        "assert 'openai' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=child_env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["openai", "litellm"])
@pytest.mark.parametrize("key", ["sk-planted-0123456789abcdef", "0f1e2d3c4b5a69788796a5b4c3d2e1f0", "a" * 40])
def test_a_key_in_the_place_of_a_variables_name_is_refused_and_not_shown(kind: str, key: str) -> None:
    settings = ProviderSettings(name="hosted", options={"api_key_env": key}, environ={})
    with pytest.raises(ConfigError, match="not the name of a variable") as caught:
        read_connection(settings) if kind == "openai" else read_access(settings)
    assert key not in str(caught.value)


def test_a_long_variable_name_of_words_is_one() -> None:
    with pytest.raises(ConfigError, match=r"AZURE_OPENAI_API_KEY_SWEDEN_CENTRAL.*is not set"):
        _read({"api_key_env": "AZURE_OPENAI_API_KEY_SWEDEN_CENTRAL"})
