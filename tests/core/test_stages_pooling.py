"""The crew's opinions: estimators, open answers, the neighbours' vote by words, and who is called at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from semievol_api.annotate.annotators import Annotator, Conditions, Crew, build_annotators, conditions_of, diverse
from semievol_api.annotate.pooled import OTHER, annotator_probs, wrong_answers
from semievol_api.annotate.probing import resolve_estimators
from semievol_api.annotate.requests import Corpus
from semievol_api.config.method import AnnotateSettings
from semievol_api.config.settings import Config, parse_settings
from semievol_api.data.schemas import evidence_table
from semievol_api.errors import MissingAbilityError
from semievol_api.records import Evidence, Example
from semievol_api.store.artifacts import Abilities, Folds, Neighbours, Prepared
from semievol_api.tasks import Task, TaskDefinition

CHOICE = Task(TaskDefinition(name="c", kind="multiple_choice", instruction="Which?"))
NUMBER = Task(TaskDefinition(name="n", kind="number", instruction="How many?"))


def row(example: str, annotator: str, answer: str | None, **values: object) -> Evidence:
    base: dict[str, object] = {"prompt_hash": "", "text": f"Answer: {answer}", "finish": "stop"}
    return Evidence(example_id=example, annotator_id=annotator, answer=answer, **(base | values))  # type: ignore[arg-type]


def corpus(
    task: Task, unlabeled: tuple[Example, ...], warm: tuple[Example, ...] = (), **near: tuple[str, ...]
) -> Corpus:
    data = Prepared(labeled=warm, unlabeled=unlabeled, test=(), report={})
    folds = Folds(warm=warm, calibration=(), development=(), tunable=True, note="")
    return Corpus(task, data, folds, Neighbours(ids=near, similarities={k: (0.9,) * len(v) for k, v in near.items()}))


QUESTION = Example(id="q", question="Q?", options=("red", "green", "blue"))


def test_a_mixed_crew_pools_probabilities_votes_and_log_probabilities() -> None:
    crew = (
        Annotator("a", "warm", 0, reading="option_read"),
        Annotator("b", "base", 0, reading="votes"),
        Annotator("c", "base", 0, reading="answer_logprob"),
    )
    rows = [
        row("q", "a", "A", option_probs=(0.6, 0.3, 0.1)),
        row("q", "b", "A"),
        row("q", "b#2", "B"),
        row("q", "b#3", "A"),
        row("q", "c", "B", answer_logprob=float(np.log(0.5))),
        row("q", "stranger", "C", option_probs=(0.0, 0.0, 1.0)),
    ]
    found = annotator_probs(corpus(CHOICE, (QUESTION,)), crew, (QUESTION,), evidence_table(rows))
    assert found.probs.shape == (1, 3, 3)
    assert found.probs[0, 1] == pytest.approx([2.5 / 4.5, 1.5 / 4.5, 0.5 / 4.5])
    assert found.answer(0) == "A"
    assert found.answers(CHOICE, 0) == ["A", "B"]


def test_two_annotators_certain_of_different_labels_tie_without_nan() -> None:
    crew = (Annotator("a", "warm", 0, reading="option_read"), Annotator("b", "warm", 0, reading="option_read"))
    rows = [row("q", "a", "A", option_probs=(1.0, 0.0, 0.0)), row("q", "b", "B", option_probs=(0.0, 1.0, 0.0))]
    found = annotator_probs(corpus(CHOICE, (QUESTION,)), crew, (QUESTION,), evidence_table(rows))
    assert found.pooled.score[0] == pytest.approx(0.5, abs=1e-3)


def test_an_item_that_nobody_answered_abstains_and_counts_as_wrong() -> None:
    crew = (Annotator("a", "warm", 0, reading="votes"),)
    gold = Example(id="q", question="Q?", options=("red", "green"), answer="A")
    rows = [row("q", "a", None), row("q", "a", "A", finish="length")]
    found = annotator_probs(corpus(CHOICE, (gold,)), crew, (gold,), evidence_table(rows))
    assert found.answer(0) is None
    assert np.isnan(found.pooled.score[0])
    assert wrong_answers(CHOICE, found).tolist() == [True]


def test_numbers_that_are_equal_are_one_answer_and_the_other_answer_is_never_the_label() -> None:
    crew = (Annotator("a", "warm", 0, reading="votes"), Annotator("b", "warm", 0, reading="votes"))
    item = Example(id="q", question="How many?", answer="100")
    rows = [row("q", "a", "100"), row("q", "b", "100.5")]
    found = annotator_probs(corpus(NUMBER, (item,)), crew, (item,), evidence_table(rows))
    assert found.labels[0] == ("100", OTHER)
    assert found.answer(0) == "100"
    assert bool(found.pooled.agreed[0])
    silent = annotator_probs(corpus(NUMBER, (item,)), crew, (item,), evidence_table(()))
    assert silent.answer(0) is None


def test_neighbours_vote_for_words_and_not_for_letters() -> None:
    warm = (
        Example(id="l1", question="L1?", options=("blue", "red"), answer="A"),
        Example(id="l2", question="L2?", options=("violet", "grey"), answer="A"),
    )
    crew = (Annotator("n", "nobody", 0, reading="neighbour_vote", neighbours=5),)
    found = annotator_probs(corpus(CHOICE, (QUESTION,), warm, q=("l1", "l2")), crew, (QUESTION,), evidence_table(()))
    assert found.answer(0) == "C", "the neighbour said blue, which is C here"
    alone = annotator_probs(corpus(CHOICE, (QUESTION,), warm, q=("l2",)), crew, (QUESTION,), evidence_table(()))
    assert alone.answer(0) is None, "nobody near said anything that is an option here"


def test_a_blunter_vote_lets_many_far_neighbours_outweigh_one_that_is_near() -> None:
    warm = tuple(
        Example(id=name, question=f"{name}?", options=QUESTION.options, answer=answer)
        for name, answer in (("near", "A"), ("far1", "B"), ("far2", "B"))
    )
    said = {}
    for sharpness in (0.5, 10.0):
        here = corpus(CHOICE, (QUESTION,), warm, q=("near", "far1", "far2"))
        near = Neighbours(ids=here.neighbours.ids, similarities={"q": (0.9, 0.2, 0.2)})
        crew = (Annotator("n", "nobody", 0, reading="neighbour_vote", neighbours=3, sharpness=sharpness),)
        said[sharpness] = annotator_probs(replace(here, neighbours=near), crew, (QUESTION,), evidence_table(())).answer(
            0
        )
    assert said == {0.5: "B", 10.0: "A"}


@pytest.mark.parametrize("places", [1, 2, 3, 4, 6, 9])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("warm", [True, False])
def test_the_default_crew_is_as_large_as_wanted_and_no_two_ask_alike(places: int, shared: bool, warm: bool) -> None:
    here = Conditions(warm=warm, closed=True, shared_labels=shared, embeddings=True)
    crew = diverse(AnnotateSettings(n=places), "both", here)
    assert len(crew) == places
    assert len({a.id for a in crew}) == places
    assert warm or not any(a.role == "warm" for a in crew)
    assert all(a.reading in ("auto", "neighbour_vote") for a in crew)
    assert not (shared and places <= 5 and warm and any(a.permute for a in crew)), "shared labels keep their order"


def test_labels_are_shared_where_every_question_has_the_same_options() -> None:
    same = Prepared(labeled=(QUESTION,), unlabeled=(QUESTION,), test=(), report={})
    other = Example(id="r", question="R?", options=("one", "two"))
    mixed = Prepared(labeled=(QUESTION,), unlabeled=(other,), test=(), report={})
    assert conditions_of(CHOICE, same, True, True).shared_labels
    assert not conditions_of(CHOICE, mixed, True, True).shared_labels
    assert not conditions_of(NUMBER, same, True, True).closed


@pytest.mark.parametrize(
    ("ability", "task", "reading"),
    [
        ("options", CHOICE, "option_read"),
        ("alternatives", CHOICE, "option_prob"),
        ("logprobs", CHOICE, "answer_logprob"),
        ("text", CHOICE, "votes"),
        ("alternatives", NUMBER, "answer_logprob"),
        ("text", NUMBER, "votes"),
    ],
)
def test_the_probe_settles_one_estimator_for_the_whole_run(ability: str, task: Task, reading: str) -> None:
    crew = Crew((Annotator("a", "warm", 0, reading="auto"),), Annotator("justify", "judge", 0, reading="auto"))
    fixed = resolve_estimators(crew, Abilities({"warm": ability, "judge": ability}), task)  # type: ignore[dict-item]
    assert {a.reading for a in fixed.everybody} == {reading}


def test_an_estimator_that_the_server_cannot_serve_is_refused_by_name() -> None:
    crew = Crew((Annotator("a", "warm", 0, reading="option_prob"),), Annotator("justify", "judge", 0, reading="auto"))
    with pytest.raises(MissingAbilityError, match="option_prob"):
        resolve_estimators(crew, Abilities({"warm": "text", "judge": "text"}), CHOICE)


def test_the_papers_crew_is_four_of_the_eight_ways_drawn_by_the_runs_seed() -> None:
    tree = {
        "run": {"folder": "out", "mode": "paper"},
        "data": {"task": "arc", "labeled": "l.csv", "unlabeled": "u.csv"},
        "providers": {"p": {"kind": "scripted"}},
        "roles": {"student": {"provider": "p", "model": "m"}},
    }
    here = Conditions(warm=True, closed=True, shared_labels=False, embeddings=True)

    def drawn(seed: int, here: Conditions = here) -> set[tuple[str, int]]:
        run = {**tree["run"], "seed": seed}
        crew = build_annotators(parse_settings(Config, {**tree, "run": run}, where="test"), here)
        assert len(crew.annotators) == 4
        return {(annotator.role, annotator.shots) for annotator in crew.annotators}

    crews = [drawn(seed) for seed in range(60)]
    assert set().union(*crews) == {(role, shots) for role in ("base", "warm") for shots in range(4)}
    assert all(len(crew) == 4 for crew in crews), "without replacement"
    assert len({tuple(sorted(crew)) for crew in crews}) > 20
    assert crews[3] == drawn(3)
    assert drawn(0, replace(here, warm=False)) == {("base", shots) for shots in range(4)}


def test_the_papers_crew_is_left_alone_by_the_probe() -> None:
    crew = Crew((Annotator("base-0shot", "base", 0),), Annotator("justify", "judge", 0))
    assert crew.asked_roles == ()
    assert resolve_estimators(crew, Abilities({}), CHOICE) == crew
