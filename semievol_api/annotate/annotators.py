"""Who annotates: the crew of collaborative learning, drawn with a seed or listed by the user.

Knows nothing of providers or prompts' wording; an annotator is a model role and a way of asking it.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass, replace

from semievol_api.annotate.estimator import Reading
from semievol_api.config.method import AnnotateSettings, AnnotatorSettings, ModelRef
from semievol_api.config.settings import Config, Propagation
from semievol_api.errors import ConfigError
from semievol_api.store.artifacts import Prepared
from semievol_api.store.fingerprints import fingerprinted
from semievol_api.tasks import Task

JUDGE = "judge"
"""The role of the model that justifies: the warm one, or the base where there is none."""
WARM = "warm"
"""The role of the model that the labels taught."""
VOTING_NEIGHBOURS = 5
NOBODY = "nobody"
"""The role of an annotator without a model."""
LEARNED = ("classifier", "label_propagation")
"""Annotators that the labels teach on the run's embeddings."""
_WITHOUT_MODEL = ("neighbour_vote", *LEARNED)


@fingerprinted(
    "id",
    "role",
    "shots",
    "permute",
    "paraphrase",
    "temperature",
    "n",
    "reading",
    "neighbours",
    "sharpness",
    "alternatives",
)
@dataclass(frozen=True, slots=True)
class Annotator:
    """One way of asking: which model, how many demonstrations, how; its id seeds its random numbers.

    `temperature` of None is `[annotate] temperature` where answers are sampled, else 0. `neighbours` vote where
    `reading` is `neighbour_vote`, with `sharpness`. `alternatives` are asked for at each token, as the probe found.
    `held` to the JSON schema of the task's answers while they are written, where the probe found that possible.
    """

    id: str
    role: str
    shots: int
    permute: bool = False
    paraphrase: str | None = None
    temperature: float | None = None
    n: int = 1
    reading: Reading = "sampled"
    neighbours: int = 0
    sharpness: float = 10.0
    alternatives: int = 0
    held: bool = False

    @property
    def depth(self) -> int:
        """How many nearest examples it needs."""
        return max(self.shots, self.neighbours)


@fingerprinted("annotators", "judge")
@dataclass(frozen=True, slots=True)
class Crew:
    """Everybody whose answers count: the annotators, and the judge who justifies."""

    annotators: tuple[Annotator, ...]
    judge: Annotator
    note: str = ""
    """Why these, where the run chose them."""

    @property
    def everybody(self) -> tuple[Annotator, ...]:
        """The judge is one more annotator."""
        return (*self.annotators, self.judge)

    @property
    def depth(self) -> int:
        """How many nearest examples the crew needs."""
        return max(annotator.depth for annotator in self.annotators)

    @property
    def asked_roles(self) -> tuple[str, ...]:
        """The roles whose abilities matter; none where answers are only sampled."""
        read = [a.role for a in self.everybody if a.reading != "sampled" and a.role != NOBODY]
        return tuple(dict.fromkeys(read))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What decides which annotators are possible: is there a warm model, are labels closed, are there vectors.

    `shared_labels`: all questions have the same labels in words, whatever letters they go by, or none to shuffle.
    """

    warm: bool
    closed: bool
    shared_labels: bool
    embeddings: bool


def conditions_of(task: Task, data: Prepared, warm: bool, embeddings: bool) -> Conditions:
    """What is possible with this task and these questions."""
    nothing_to_shuffle = bool(task.fields) or (task.chat and not task.lettered)
    shared = task.fixed_labels or nothing_to_shuffle or (task.closed and one_set_of_options(data))
    return Conditions(warm=warm, closed=task.closed, shared_labels=shared, embeddings=embeddings)


def one_set_of_options(data: Prepared) -> bool:
    """Whether all questions have the same options; looks no further than the first other ones."""
    examples = itertools.chain(data.labeled, data.unlabeled)
    first = next(examples, None)
    return first is not None and all(example.options == first.options for example in examples)


def seed_role(seed: int) -> str:
    """The role of the warm model of the `seed`-th training on the same labels, from 0."""
    return WARM if seed == 0 else f"{WARM}-seed-{seed + 1}"


def fold_role(role: str, fold: int) -> str:
    """The role of the warm model that answers a fold's examples, where several share the labels."""
    return f"{WARM if role == JUDGE else role}-fold-{fold + 1}"


def request_seed(run_seed: int, asker: str, example_id: str) -> int:
    """A 31-bit seed that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{run_seed}\x00{asker}\x00{example_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def build_annotators(config: Config, conditions: Conditions) -> Crew:
    """The annotators that the config lists, or the crew of its mode; how they are read is settled by the probe.

    Raises:
        ConfigError: a listed annotator is impossible in this run.
    """
    annotators = _annotators(config, conditions)
    sampled = all(annotator.reading == "sampled" for annotator in annotators)
    judge = Annotator("justify", JUDGE, 0, reading="sampled" if sampled else "auto")
    return Crew(
        annotators, judge, _reason(conditions) if config.annotate.draw == "auto" and not config.annotators else ""
    )


def _annotators(config: Config, conditions: Conditions) -> tuple[Annotator, ...]:
    settings = config.annotate
    if config.annotators:
        listed = [(_listed(annotator, conditions), annotator.seeds) for annotator in config.annotators]
        return tuple(_of_seed(annotator, seed) for annotator, seeds in listed for seed in range(seeds))
    if settings.draw == "diverse":
        return diverse(settings, config.run.propagation, conditions)
    if settings.draw == "auto":
        return _auto(settings, config.run.propagation, conditions)
    if settings.draw == "identical":
        role = "warm" if conditions.warm else "base"
        return tuple(Annotator(f"{role}-0shot" + (f"-{i + 1}" if i else ""), role, 0) for i in range(settings.n))
    return draw_annotators(settings, config.run.propagation if conditions.warm else "in-context", config.run.seed)


def diverse(settings: AnnotateSettings, propagation: Propagation, conditions: Conditions) -> tuple[Annotator, ...]:
    """The default crew (method §3): `n` ways that err differently.

    Where all questions share their labels, models with and without demonstrations and the neighbours' vote; labels
    keep their order, which is what the warm model learned them by. Else the order of the options is shuffled too.
    """
    shots = 0 if propagation == "in-weight" else settings.max_shots
    best = "warm" if conditions.warm else "base"
    ways: list[Annotator] = [Annotator(f"{best}-0shot", best, 0)]
    if conditions.shared_labels:
        if conditions.embeddings and conditions.closed and shots:
            ways.append(Annotator("neighbours", NOBODY, 0, reading="neighbour_vote", neighbours=VOTING_NEIGHBOURS))
        ways += [Annotator(f"{role}-{shots}shot", role, shots) for role in (best, "base")]
        ways += [Annotator(f"{best}-{count}shot", best, count) for count in range(1, shots)]
    else:
        ways += [Annotator(f"{best}-{shots}shot-shuffled", best, shots, permute=True)]
        ways += [Annotator(f"base-{shots}shot-shuffled", "base", shots, permute=True)]
        ways += [Annotator(f"{best}-0shot-shuffled", best, 0, permute=True)]
    distinct = list({annotator.id: annotator for annotator in ways}.values())
    while len(distinct) < settings.n:
        distinct.append(Annotator(f"{best}-{shots}shot-shuffled-{len(distinct)}", best, shots, permute=True))
    return tuple(replace(a, reading="auto") if a.reading == "sampled" else a for a in distinct[: settings.n])


def _auto(settings: AnnotateSettings, propagation: Propagation, conditions: Conditions) -> tuple[Annotator, ...]:
    """The crew of the mode `auto`: where labels and vectors allow it, what the labels teach on embeddings too."""
    if not (conditions.shared_labels and conditions.embeddings):
        return diverse(settings, propagation, conditions)
    shots = 0 if propagation == "in-weight" else settings.max_shots
    best = WARM if conditions.warm else "base"
    asked = {f"{role}-{count}shot": (role, count) for role, count in ((best, 0), ("base", shots))}
    models = [Annotator(name, role, count, reading="auto") for name, (role, count) in asked.items()]
    return (*models, *(Annotator(reading.replace("_", "-"), NOBODY, 0, reading=reading) for reading in LEARNED))


def _reason(conditions: Conditions) -> str:
    """One line for the verdict."""
    warm = "the warm model" if conditions.warm else "no warm model (too few labels, or none is wanted)"
    if conditions.shared_labels and conditions.embeddings:
        return (
            f"Annotators chosen: {warm}, the base model with demonstrations, and a classifier and label propagation on "
            f"embeddings, since all questions have the same labels and there is an embedder."
        )
    lacks = "there is no embedder" if conditions.shared_labels else "the questions' labels differ"
    return f"Annotators chosen: {warm} and models with demonstrations; nobody is taught on embeddings, since {lacks}."


def draw_annotators(settings: AnnotateSettings, propagation: Propagation, seed: int) -> tuple[Annotator, ...]:
    """The paper's crew: `n` of {base, warm} x {0..max_shots shots} (paper §3.3), fixed by the seed.

    Without in-weight propagation there is no warm model, without in-context propagation there are no shots.
    Drawing without replacement starts over once every way of asking is used, under other ids and so other
    random numbers.
    """
    roles = ("base",) if propagation == "in-context" else ("base", "warm")
    shots = (0,) if propagation == "in-weight" else tuple(range(settings.max_shots + 1))
    ways = [(role, count) for role in roles for count in shots]
    rng = random.Random(seed)
    drawn: list[tuple[str, int]] = []
    while len(drawn) < settings.n:
        if settings.draw == "with-replacement":
            drawn.append(rng.choice(ways))
        else:
            drawn.extend(rng.sample(ways, min(len(ways), settings.n - len(drawn))))
    crew: list[Annotator] = []
    for role, count in drawn:
        again = sum((a.role, a.shots) == (role, count) for a in crew)
        name = f"{role}-{count}shot" + (f"-{again + 1}" if again else "")
        crew.append(Annotator(name, role, count))
    return tuple(crew)


def _of_seed(annotator: Annotator, seed: int) -> Annotator:
    return annotator if seed == 0 else replace(annotator, id=f"{annotator.id}-seed-{seed + 1}", role=seed_role(seed))


def external_role(ref: ModelRef) -> str:
    """The role of another provider's model."""
    return f"{ref.provider}/{ref.model}"


def _listed(settings: AnnotatorSettings, conditions: Conditions) -> Annotator:
    if not isinstance(settings.model, ModelRef) and settings.model in _WITHOUT_MODEL:
        if not conditions.closed or not conditions.embeddings:
            lacks = 'an embedder ([retrieve] method = "embedding")' if conditions.closed else "a closed set of labels"
            raise ConfigError(f"[[annotators]] {settings.id!r}: {settings.model} needs {lacks}, which is not here.")
        if settings.model in LEARNED:
            return Annotator(settings.id, NOBODY, 0, reading=settings.model)
        return Annotator(
            settings.id,
            NOBODY,
            0,
            reading="neighbour_vote",
            neighbours=settings.neighbours,
            sharpness=settings.sharpness,
        )
    if settings.model == "warm" and not conditions.warm:
        raise ConfigError(
            f"[[annotators]] {settings.id!r} asks the warm model, and this run has none: there are too few labels for "
            f'a training, or [run] propagation is "in-context". Use model = "base".'
        )
    return Annotator(
        id=settings.id,
        role=external_role(settings.model) if isinstance(settings.model, ModelRef) else settings.model,
        shots=settings.shots,
        permute=settings.permute,
        paraphrase=settings.paraphrase,
        temperature=settings.temperature,
        n=settings.n,
        reading=settings.estimator,
    )
