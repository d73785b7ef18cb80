"""The live clients of one run: who is asked, who embeds, who trains.

Built from the config by `session.py`, handed to the pipeline. Knows nothing of the order of the stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from semievol_api.annotate.requests import Student
from semievol_api.annotate.retrieval import EmbeddingTool
from semievol_api.annotate.shapes import ShapeCheck
from semievol_api.capabilities import Provider
from semievol_api.config.method import TrainSettings
from semievol_api.config.settings import Config
from semievol_api.engine import RequestEngine
from semievol_api.planning.limits import with_bases
from semievol_api.records import Example
from semievol_api.scale.executor import Executor, LocalExecutor
from semievol_api.store.artifacts import Abilities, TunedModel
from semievol_api.tasks import Task
from semievol_api.training.fine_tuning import Trainer
from semievol_api.training.new_models import patient_with


@dataclass(frozen=True)
class ExternalAnnotator:
    """Another provider's model among the annotators."""

    provider: Provider
    model: str


@dataclass(frozen=True)
class Clients:
    """Roles filled by providers. `gold` maps unlabelled ids to answers and is for the oracle report alone."""

    engine: RequestEngine
    student_provider: Provider
    student_model: str
    trainer: Trainer
    embedder: EmbeddingTool | None
    gold: Mapping[str, str]
    max_failed_share: float
    external: Mapping[str, ExternalAnnotator] = field(default_factory=dict[str, ExternalAnnotator])
    executor: Executor = field(default_factory=LocalExecutor)

    @property
    def base(self) -> TunedModel:
        """The student before any training."""
        return TunedModel(self.student_model, self.student_model)

    def given(self, model: str) -> TunedModel:
        """A model that the user already has."""
        return TunedModel(model, self.student_model)

    def after(self, abilities: Abilities) -> Clients:
        """The same tools, where a server that was found to give no log-probabilities is not asked for any."""
        if "text" not in abilities.of.values():
            return self
        return replace(self, student_provider=replace(self.student_provider, scored=None, option_reader=None))

    def checking(self, task: Task, labeled: Sequence[Example], config: Config) -> Trainer:
        """The trainer, which first asks the server one question in every shape of the run."""
        student = self.student({"subject": self.base})
        return replace(self.trainer, before_buying=ShapeCheck(student, task, labeled, config))

    def training(
        self, name: str, settings: TrainSettings, models: Mapping[str, TunedModel]
    ) -> tuple[Trainer, TrainSettings]:
        """Who makes a model of the run's end, and how; the baseline is trained as the warm model was."""
        if name == "sft":
            return self.trainer, settings
        if settings.start == "base" or "warm" not in models:
            return self.trainer, settings.final
        warm = models["warm"]
        return replace(self.trainer, base=warm.model, base_identity=warm.identity), settings.final

    def student(self, models: Mapping[str, TunedModel]) -> Student:
        """The models to be asked, by role."""
        return Student(
            engine=self.engine,
            provider=with_bases(
                patient_with(self.student_provider, self.trainer.made_s, self.trainer.clock),
                {model.model: model.base for model in models.values()},
            ),
            models={role: model.model for role, model in models.items()} | self._external_models,
            identities={role: model.identity for role, model in models.items()},
            seed=self.trainer.seed,
            max_failed_share=self.max_failed_share,
            external={role: annotator.provider for role, annotator in self.external.items()},
            executor=self.executor,
        )

    @property
    def _external_models(self) -> dict[str, str]:
        return {role: annotator.model for role, annotator in self.external.items()}
