"""The config file as frozen settings. An unknown key is an error that names its path and the nearest valid key.

    settings = load_config(Path("semievol.toml"))

Settings are neither artifacts nor live clients. Knows nothing of providers' own keys: what stands in
`[providers.NAME]` besides `kind` is checked by that provider.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semievol_api.cassettes.miss import CassetteMode
from semievol_api.config.method import (
    AnnotateSettings,
    AnnotatorSettings,
    EvolveSettings,
    JustifySettings,
    ModelRef,
    SelectSettings,
    Settings,
    Share,
    SplitSettings,
    TrainSettings,
)
from semievol_api.errors import ConfigError
from semievol_api.errors import nearest as nearest
from semievol_api.store.fingerprints import fingerprinted

Mode: TypeAlias = Literal["calibrated", "auto", "paper", "official-2025"]

Propagation: TypeAlias = Literal["both", "in-weight", "in-context"]

LogTarget: TypeAlias = Literal["tensorboard", "wandb", "mlflow"]

_SettingsT = TypeVar("_SettingsT", bound=BaseModel)

MODES: Mapping[object, Mapping[str, Mapping[str, object]]] = {
    # Findings of NAACL 2025, arXiv 2410.14745 v2: all settings' own defaults.
    "paper": {},
    # Diverse annotators, a calibration slice, a false-label budget, a gate.
    "calibrated": {
        "split": {"calibration": "auto", "development": "auto"},
        "annotate": {"draw": "diverse"},
        "justify": {"on": "uncertain", "show": "answer"},
        "select": {"rule": "fdr", "score": "pooled"},
    },
    # All labels teach and calibrate; annotators by what the data allow, weighed by what they are worth; controls.
    "auto": {
        "split": {"calibration": "cross", "development": "auto"},
        "annotate": {"draw": "auto"},
        "justify": {"on": "never"},
        "select": {"rule": "fdr", "score": "pooled", "weights": "fitted"},
        "evaluate": {"controls": ["equal-steps", "demonstrations", "classifier"]},
    },
    # The code released with the paper, for reproduction only.
    "official-2025": {
        "run": {"propagation": "in-weight"},
        "annotate": {"draw": "identical"},
        "justify": {"on": "disagreements"},
        "select": {"rule": "official-2025", "share": 0.3},
        "train": {"data": "selected", "start": "warm", "final_learning_rate_multiplier": 0.01},
        "evaluate": {"temperature": 0.5},
    },
}


# -------------------------------------------------------------------------------------------------- the sections


@fingerprinted(
    "mode", "propagation", "seed", "rounds", "ceiling", "max_failed_share", outside=("folder", "journal", "engine")
)
class RunSettings(Settings):
    """`[run]`: the folder for results and the variant of the method."""

    folder: Path
    journal: Path | None = None
    """The journal file. Runs that share it never repeat a request. Default: in the run folder."""
    mode: Mode = "calibrated"
    """A named set of defaults, see `MODES`; settings in the file override them."""
    propagation: Propagation = "both"
    seed: int = 0
    rounds: int = Field(default=1, ge=1, le=10)
    """Number of rounds. Kept pseudo-labels of a round are labelled data in the next, with new folds."""
    ceiling: bool = False
    """Also train on the gold answers of the selected rows, if the unlabelled file has them."""
    max_failed_share: Share = 0.05
    engine: Literal["local", "ray"] = "local"
    """Send requests from this process or from the workers of `[ray]`. The results are the same."""

    @property
    def journal_path(self) -> Path:
        """The journal's file."""
        return self.journal or self.folder / "journal.sqlite"


@fingerprinted(
    "task",
    "labeled",
    "unlabeled",
    "test",
    "dev",
    "reviewed",
    "columns",
    "max_labeled",
    "max_unlabeled",
    "max_test",
    "near_duplicates",
)
class DataSettings(Settings):
    """`[data]`: the data files and their task."""

    task: str
    """The name of a built-in task, or the path of a task file."""
    labeled: Path
    unlabeled: Path
    test: Path | None = None
    dev: Path | None = None
    """Labelled examples for the gate; they are never trained on."""
    reviewed: Path | None = None
    """Review decisions: the `review.jsonl` of a run, or a completed `review_queue.jsonl`. With the rule
    `human-budget` they are used as that rule says; otherwise they are labels for training only."""
    columns: Mapping[str, str] = {}
    """Overrides of the task's columns, such as `question = "text"`."""
    max_labeled: int | None = Field(default=None, ge=1)
    max_unlabeled: int | None = Field(default=None, ge=1)
    max_test: int | None = Field(default=None, ge=1)
    near_duplicates: bool = True


class ProviderTable(BaseModel):
    """`[providers.NAME]`: `kind` names the entry point, the other keys are the provider's own."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str

    @property
    def options(self) -> Mapping[str, object]:
        """The provider's own keys."""
        return dict(self.model_extra or {})


@fingerprinted("student", "trainer", "embedder", "warm", outside=("tokenizer",))
class Roles(Settings):
    """`[roles]`: the models of a run. To change the vendor, change this section and `[providers]`."""

    student: ModelRef
    """The model that answers and, through `trainer`, is tuned."""
    trainer: ModelRef | None = None
    """The provider and the model to tune; default: the student."""
    embedder: ModelRef | None = None
    """Not needed with `[retrieve] method = "bm25"`; default where the student's model runs on this machine: MiniLM in
    this process, `{ provider = "local", model = "minilm" }`, which needs no table in `[providers]`."""
    warm: str | None = None
    """An existing warm model, such as `ft:...`; the first training is skipped."""
    tokenizer: Path | None = None
    """The student's tokenizer, used for counting only: a model folder or a vocabulary (*.tiktoken)."""


@fingerprinted("method", "k", "text", "batch_size")
class RetrieveSettings(Settings):
    """`[retrieve]`: how demonstrations are chosen for a question (paper §3.2)."""

    method: Literal["embedding", "bm25"] = "embedding"
    k: int = Field(default=3, ge=0)
    text: Literal["question", "question+options"] = "question"
    """Ambiguity 6: the text that is embedded (the released code: the question only)."""
    batch_size: int = Field(default=64, ge=1)


@fingerprinted("shots", "temperature", "max_tokens", "resamples")
class EvaluateSettings(Settings):
    """`[evaluate]`: greedy answers on the test split."""

    shots: int = Field(default=0, ge=0)
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    resamples: int = Field(default=10_000, ge=100)
    controls: tuple[Literal["equal-steps", "demonstrations", "classifier"], ...] = ()
    """What the evolved model is held against beside SFT: SFT with as many steps (a training more), the untuned model
    with `[retrieve] k` demonstrations (requests for the test questions), a classifier on embeddings (free)."""


class Limits(Settings):
    """`[limits]`: quotas and the budget. None: learned from the server's headers, or no limit."""

    rpm: int | None = Field(default=None, ge=1)
    tpm: int | None = Field(default=None, ge=1)
    concurrency: int | None = Field(default=None, ge=1)
    """Cap on requests in flight and replies that are not on disk yet; None: adaptive."""
    timeout_s: float = Field(default=120.0, gt=0)
    max_attempts: int = Field(default=6, ge=1)
    max_usd: float | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, ge=1)
    mode: Literal["direct", "batch"] = "direct"
    """`batch`: send chat requests through the vendor's batches, answered within a day at half the price."""
    batch_poll_s: float = Field(default=30.0, gt=0)
    ask_above_usd: float = Field(default=10.0, ge=0)
    """`semievol run` needs --yes if the expected cost is higher."""


class DeploySettings(Settings):
    """`[deploy]`: tuned models that answer only while they are deployed, on accelerators paid by the hour."""

    at_end: Literal["sleep", "delete", "keep"] = "sleep"
    """What becomes of the run's deployments when it ends, fails or is stopped. `sleep` scales to zero, or deletes where
    the vendor cannot; `keep` leaves them running, and costing."""
    idle_s: float = Field(default=300.0, gt=0)
    """A deployment that nothing has asked for so long is put to sleep, and woken when the run needs it again."""
    wait_s: float = Field(default=3600.0, gt=0)
    """How long a deployment may take to get ready."""
    poll_s: float = Field(default=10.0, gt=0)
    usd_per_hour: float | None = Field(default=None, ge=0)
    """The price of one deployment, where the provider does not tell it. Counts towards `[limits] max_usd`."""


class RaySettings(Settings):
    """`[ray]`: the cluster of `[run] engine = "ray"`. The run's folder must lie where all of its nodes see it."""

    address: str | None = None
    """Address of a running cluster, such as "auto"; without it a local Ray is started and ended."""
    workers: int = Field(default=2, ge=1)
    """Number of processes that send requests; each has its own connection to every provider."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """For a provider that computes in the worker, such as `vllm`."""
    shard_rows: int = Field(default=1024, ge=1)
    """Approximate number of examples per shard."""
    object_store_mb: int | None = Field(default=None, ge=80)
    """Shared memory of a local Ray; default: Ray's own, a third of the machine's."""


class LogSettings(Settings):
    """`[log]`: loggers for training metrics and results, in addition to the run folder."""

    to: tuple[LogTarget, ...] = ()
    project: str = "semievol"
    """The project of W&B, the experiment of MLflow."""


class CatalogueSettings(Settings):
    """`[catalogue]`: prices, limits and end dates of models."""

    file: Path | None = None
    """A file in the form of the package's catalogue.toml, whose entries override the others."""


class CassetteTable(Settings):
    """`[cassette]`: record the HTTP exchanges of a run, or replay them without network and API key."""

    path: Path
    mode: CassetteMode = "replay"


@fingerprinted(
    "run",
    "data",
    "providers",
    "roles",
    "split",
    "retrieve",
    "annotate",
    "annotators",
    "justify",
    "select",
    "train",
    "evolve",
    "evaluate",
    outside=("limits", "deploy", "ray", "catalogue", "log", "cassette"),
)
class Config(Settings):
    """A run's settings, frozen: one attribute for each section of the file (`docs/method.md`, `docs/hosted.md`).

    Attributes
    ----------
    run, data, providers, roles : RunSettings, DataSettings, Mapping, Roles
        Where results go, which rows, who answers and trains; these have no default.
    split, retrieve, annotate, annotators, justify, select, train, evolve, evaluate
        The method's steps; what is left out comes from `run.mode`.
    limits : Limits
        Quotas a minute, concurrency, `timeout_s` in seconds, and caps in USD and tokens.
    deploy : DeploySettings
        What becomes of deployments that are paid by the hour.
    ray, catalogue, log, cassette
        A cluster, prices of your own, metric logs, a recording.

    Raises
    ------
    ConfigError
        By `load_config` and `run`: a key is unknown, missing or of the wrong type.

    Examples
    --------
    >>> config = semievol_api.load_config("semievol.toml")
    >>> config.run.mode, config.select.alpha
    ('calibrated', 0.1)
    """

    run: RunSettings
    data: DataSettings
    providers: Mapping[str, ProviderTable]
    roles: Roles
    split: SplitSettings = SplitSettings()
    retrieve: RetrieveSettings = RetrieveSettings()
    annotate: AnnotateSettings = AnnotateSettings()
    annotators: tuple[AnnotatorSettings, ...] = ()
    justify: JustifySettings = JustifySettings()
    select: SelectSettings = SelectSettings()
    train: TrainSettings = TrainSettings()
    evolve: EvolveSettings = EvolveSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    limits: Limits = Limits()
    deploy: DeploySettings = DeploySettings()
    ray: RaySettings = RaySettings()
    catalogue: CatalogueSettings = CatalogueSettings()
    log: LogSettings = LogSettings()
    cassette: CassetteTable | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_mode(cls, tree: object) -> object:
        """A mode is nothing but defaults: what the file does not say is taken from it."""
        if not isinstance(tree, Mapping):
            return tree
        run = tree.get("run", {})
        mode = run.get("mode", "calibrated") if isinstance(run, Mapping) else None
        return _filled(tree, _defaults_of(mode, tree)) if mode in MODES else tree

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        calibrates = self.select.rule not in ("percentile", "random", "official-2025")
        if calibrates and self.select.score != "pooled":
            raise ValueError(
                f'[select] rule {self.select.rule!r} ranks by the pooled probability; set [select] score = "pooled" '
                f'and annotators with estimators, or [run] mode = "calibrated"'
            )
        counts = {"top-n": ("n", self.select.n), "human-budget": ("budget", self.select.budget)}
        name, count = counts.get(self.select.rule, ("", 1))
        if not count:
            raise ValueError(f"[select] rule {self.select.rule!r} needs {name}, such as {name} = 100")
        self._cross_fits()
        ids = [annotator.id for annotator in self.annotators]
        if len(set(ids)) < len(ids):
            raise ValueError("two [[annotators]] have the same id")
        return self

    def _cross_fits(self) -> None:
        crossed = self.split.calibration == "cross"
        if self.select.weights == "fitted" and not crossed:
            raise ValueError(
                '[select] weights = "fitted" learns from cross-fitted labels; set [split] calibration = "cross"'
            )
        if not crossed:
            return
        if self.select.score != "pooled":
            raise ValueError(
                '[split] calibration = "cross" calibrates pooled probabilities; set [select] score = "pooled"'
            )
        if self.roles.warm is not None or self.train.start == "warm":
            given = "[roles] warm" if self.roles.warm is not None else '[train] start = "warm"'
            raise ValueError(
                f'[split] calibration = "cross" trains warm models that have not seen the labels they answer, which '
                f'{given} is not; remove it, or set calibration = "holdout"'
            )


def _defaults_of(mode: object, tree: Mapping[str, Any]) -> Mapping[str, Mapping[str, object]]:
    """A mode's defaults; a warm model that the user has may have seen any label, so `auto` holds some back then."""
    roles, train = tree.get("roles", {}), tree.get("train", {})
    given = isinstance(roles, Mapping) and "warm" in roles
    if mode != "auto" or not (given or (isinstance(train, Mapping) and train.get("start") == "warm")):
        return MODES[mode]
    weights = {**MODES[mode]["select"], "weights": "equal"}
    return {**MODES[mode], "split": {"calibration": "auto", "development": "auto"}, "select": weights}


def _filled(tree: Mapping[str, Any], defaults: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    """The tree with a mode's defaults under what it says itself."""
    sections = {name: {**values, **tree.get(name, {})} for name, values in defaults.items()}
    spoiled = {name for name in sections if not isinstance(tree.get(name, {}), Mapping)}
    return {**tree, **{name: values for name, values in sections.items() if name not in spoiled}}


# ------------------------------------------------------------------------------------------------------- reading


def load_config(path: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """Read a config; relative paths in it are resolved against its own folder.

    Parameters
    ----------
    path : path
        The TOML file.
    overrides : Mapping, optional
        Dotted key paths such as `"run.seed"` and their values, in place of the file's.

    Returns
    -------
    Config
        The settings, every path absolute.

    Raises
    ------
    ConfigError
        The file is missing, is no TOML, or a key or value is wrong.

    Examples
    --------
    >>> semievol_api.load_config("semievol.toml", {"select.alpha": 0.2}).select.alpha
    0.2
    """
    path = Path(path)
    return parse_config(read_toml(path), path.resolve().parent, overrides, where=path.name)


def parse_config(
    tree: Mapping[str, Any], folder: Path, overrides: Mapping[str, object] | None = None, *, where: str
) -> Config:
    """A config from its tables; relative paths in it start at `folder`. See `load_config`."""
    changed = deepcopy(dict(tree))
    for dotted, value in (overrides or {}).items():
        _set(changed, dotted, value)
    return _with_local_embedder(_resolve(parse_settings(Config, changed, where=where), folder))


def _set(tree: dict[str, Any], dotted: str, value: object) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value


def _resolve(config: Config, folder: Path) -> Config:
    """The same config with every path absolute."""
    run = config.run.model_copy(
        update={
            "folder": folder / config.run.folder,
            "journal": folder / config.run.journal if config.run.journal else None,
        }
    )
    task = config.data.task
    data = config.data.model_copy(
        update={
            "labeled": folder / config.data.labeled,
            "unlabeled": folder / config.data.unlabeled,
            "test": folder / config.data.test if config.data.test else None,
            "dev": folder / config.data.dev if config.data.dev else None,
            "reviewed": folder / config.data.reviewed if config.data.reviewed else None,
            "task": str(folder / task) if task.endswith(".toml") else task,
        }
    )
    roles, own = config.roles, config.catalogue.file
    if roles.tokenizer is not None:
        roles = roles.model_copy(update={"tokenizer": folder / roles.tokenizer})
    catalogue = CatalogueSettings(file=folder / own if own else None)
    cassette = config.cassette
    if cassette is not None:
        cassette = cassette.model_copy(update={"path": folder / cassette.path})
    return config.model_copy(
        update={"run": run, "data": data, "roles": roles, "catalogue": catalogue, "cassette": cassette}
    )


_LOCAL = "local"
"""The kind of the provider that runs models in this process, and its name where a config has no table for it."""
_OWN_EMBEDDER = ModelRef(provider=_LOCAL, model="minilm")


def _with_local_embedder(config: Config) -> Config:
    """The same config with what it leaves open about embeddings in this process.

    An embedder of the provider "local" needs no table; where the student's model runs on this machine and embeddings
    are wanted that no role gives, the packaged sentence embedder is their default.
    """
    roles, own = config.roles, config.providers.get(_LOCAL)
    wanted = config.retrieve.method == "embedding" and config.run.propagation != "in-weight"
    if roles.embedder is None and wanted and (own is None or own.kind == _LOCAL):
        student = config.providers.get(roles.student.provider)
        if student is not None and _is_on_this_machine(student):
            roles = roles.model_copy(update={"embedder": _OWN_EMBEDDER})
    if own is not None or roles.embedder is None or roles.embedder.provider != _LOCAL:
        return config if roles is config.roles else config.model_copy(update={"roles": roles})
    providers = {**config.providers, _LOCAL: ProviderTable(kind=_LOCAL)}
    return config.model_copy(update={"roles": roles, "providers": providers})


def _is_on_this_machine(provider: ProviderTable) -> bool:
    """Whether it runs models in this process, or is our own server at this machine's address."""
    if provider.kind in (_LOCAL, "vllm"):
        return True
    host = urlsplit(str(provider.options.get("base_url", ""))).hostname
    return provider.options.get("vendor") == "semievol" and host in ("127.0.0.1", "localhost", "::1")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a tree; a `ConfigError` names the file and the line where it is no TOML."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {str(path)!r}. Make one with: semievol init data.csv") from None
    except OSError as error:
        raise ConfigError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The file {str(path)!r} is not UTF-8. Save it as UTF-8 and try again.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}.") from None


def parse_settings(model: type[_SettingsT], tree: Mapping[str, Any], *, where: str) -> _SettingsT:
    """A tree as settings; the first fault becomes one paragraph with its key path and the nearest valid name.

    Raises:
        ConfigError: a key is unknown or missing, or a value is of the wrong type.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise ConfigError(_explain(model, first["loc"], first["type"], first["msg"], where)) from None


def _explain(model: type[BaseModel], loc: tuple[int | str, ...], kind: str, message: str, where: str) -> str:
    path = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        return f"{where}: unknown key {path!r}. {nearest(str(loc[-1]), _names_at(model, loc[:-1]))}"
    if kind == "missing":
        return f"{where}: the key {path!r} is missing; it has no default."
    reason = re.sub(r"^Value error, ", "", message)
    if kind == "model_type":
        reason = f"a table belongs there, such as {{ {', '.join(f'{name} = ...' for name in _names_at(model, loc))} }}"
    return f"{where}: {path!r} is wrong: {reason}." if path else f"{where}: {reason}."


def _names_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are valid at a place in the tree."""
    here: type[BaseModel] = model
    for part in loc:
        fields = {field.alias or name: field for name, field in here.model_fields.items()}
        annotation = fields[str(part)].annotation if str(part) in fields else None
        found = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if found:
            here = found[0]
    return [field.alias or name for name, field in here.model_fields.items()]
