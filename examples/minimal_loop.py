"""SemiEvol (arXiv 2410.14745) in one page: 100 labelled exam questions and 600 unlabelled ones make a better model.

It runs on this machine, `pip install "semievol-api[serve]"`. Kill it and start it again: nothing is done twice.
"""

from functools import partial
from pathlib import Path

import numpy as np

import semievol_api
from semievol_api.data import read_examples, read_table

DEMO, BASE = Path(semievol_api.__file__).parent / "demo", "demo-llama"
TASK = semievol_api.load_task(DEMO / "task.toml")


def main(folder: Path, unlabeled_rows: int = 600, test_rows: int = 480, provider=None) -> dict[str, float]:
    """Accuracy on the test questions, in [0, 1], of the base model, after the warm-up, and in the end."""
    rows = {"labeled": 100, "unlabeled": unlabeled_rows, "test": test_rows}
    data = [read_examples(read_table(DEMO / f"data/{part}.csv"), TASK, part).examples[:n] for part, n in rows.items()]
    labeled, unlabeled, test = data
    provider = provider or semievol_api.connect("local", model=f"{DEMO}/model", name=BASE, state=f"{folder}/jobs")
    ask = partial(semievol_api.ask, provider, journal=folder / "journal.sqlite", answer_tokens=8)

    def tune(examples, answers, n_epochs):
        pairs = [(TASK.prompt(e), TASK.target(e, answer)) for e, answer in zip(examples, answers, strict=True)]
        return semievol_api.tune(provider, pairs, BASE, folder=folder / "tuned", n_epochs=n_epochs).model

    def read(texts, examples):
        return [TASK.parse(text or "", e) for text, e in zip(texts, examples, strict=True)]

    # Section 3.2. In-weight propagation: a first training on the labels. In-context: each question's nearest labels.
    gold = [e.answer for e in labeled]
    warm = tune(labeled, gold, 10)
    near = semievol_api.nearest([e.question for e in unlabeled], [e.question for e in labeled], k=3).indices
    shots = [[labeled[i] for i in row if i >= 0] for row in near]

    # Section 3.3. Collaborative learning: four annotators answer; the warm model weighs their answers and decides.
    answers = []
    for model, k in [(BASE, 1), (BASE, 3), (warm, 0), (warm, 3)]:
        prompts = [TASK.prompt(e, few[:k]) for e, few in zip(unlabeled, shots, strict=True)]
        answers.append(ask(prompts, model, temperature=1.0).texts)
    prompts = [TASK.justify_prompt(e, (), given) for e, *given in zip(unlabeled, *answers, strict=True)]
    justified = ask(prompts, warm, logprobs=True)
    labels = read(justified.texts, unlabeled)

    # Section 3.4. Adaptive selection: the half that the model is least unsure of; then the final training on all.
    scores = np.where([label is None for label in labels], np.nan, -justified.mean_nll)
    kept = np.flatnonzero(semievol_api.select(scores, rule="percentile").kept)
    evolved = tune([*labeled, *(unlabeled[i] for i in kept)], [*gold, *(labels[i] for i in kept)], 4)
    asked = {"base": BASE, "warm": warm, "evolved": evolved}
    found = {name: read(ask([TASK.prompt(e) for e in test], model).texts, test) for name, model in asked.items()}
    return {name: float(np.mean(np.equal(given, [e.answer for e in test]))) for name, given in found.items()}


if __name__ == "__main__":
    print(main(Path("runs/minimal")))
