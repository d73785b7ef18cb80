"""Rebuild the demo's data and model: `python -m benchmarks.demo_model --data FOLDER`.

FOLDER holds mmlu/ and pubmedqa/ as released with the SemiEvol code, each with labeled.csv, unlabeled.csv and
test.csv. Steps and seeds are fixed; the same thread count gives the same weights. Knows nothing of
fine-tuning.
"""

import argparse
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from threadpoolctl import threadpool_limits

from benchmarks.demo_model.corpus import held_out, option_words, read_sentences
from benchmarks.demo_model.episodes import EpisodeMaker
from benchmarks.demo_model.pretrain import Makers, ModelShape, Pretraining, Schedule, new_model
from benchmarks.demo_model.splits import make_splits, write_splits
from benchmarks.demo_model.teacher import WordPieces, sentence_vectors, teacher_folder
from benchmarks.demo_model.tokenizer import PromptEncoder, save_tokenizer, train_tokenizer
from benchmarks.demo_model.topics import build_topics

N_TOKENS = 14000
SHORT_SENTENCE_TOKENS, MAX_SENTENCE_TOKENS = 22, 56


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    data: Path
    out: Path
    cache: Path
    n_steps: int
    n_threads: int


def parse_arguments() -> Arguments:
    """Read the command line; the data folder may come from SEMIEVOL_DEMO_DATA."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_model", description=__doc__)
    default = os.environ.get("SEMIEVOL_DEMO_DATA")
    here = Path(__file__).resolve().parents[2] / "semievol_api" / "demo" / "build"
    parser.add_argument("--data", type=Path, required=default is None, default=default and Path(default))
    parser.add_argument("--out", type=Path, default=here.parent, help="gets data/ and model/")
    parser.add_argument("--cache", type=Path, default=Path("build/demo_cache"), help="keeps teacher vectors")
    parser.add_argument("--steps", type=int, default=Schedule().n_steps)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    return Arguments(given.data, given.out, given.cache, given.steps, given.threads)


def make_deterministic(n_threads: int) -> None:
    """The same numbers on every run with this many threads."""
    torch.set_num_threads(n_threads)
    torch.use_deterministic_algorithms(True)


def build(arguments: Arguments) -> str:
    """Write data/ and model/; returns the SHA-256 of the weights file."""
    schedule, shape = Schedule(n_steps=arguments.n_steps), ModelShape()
    splits = make_splits(arguments.data)
    write_splits(splits, arguments.out / "data")
    sentences = read_sentences(arguments.data, held_out((*splits.dev, *splits.test)))
    words = option_words(sentences, frozenset(ENGLISH_STOP_WORDS))
    print(f"{len(sentences)} sentences, {len(words)} option words", flush=True)
    encoder = PromptEncoder(train_tokenizer(sentences, N_TOKENS))
    vectors = sentence_vectors(sentences, arguments.cache)
    word_vectors = sentence_vectors(words, arguments.cache)
    lengths = [len(ids) for ids in encoder.texts(sentences)]
    rng = np.random.default_rng(schedule.seed)

    def maker(max_tokens: int) -> EpisodeMaker:
        usable = [i for i, length in enumerate(lengths) if length <= max_tokens]
        topics = build_topics(vectors, word_vectors, usable, schedule.seed)
        print(
            f"{len(usable)} sentences of at most {max_tokens} tokens, {len(topics.members)} topics",
            flush=True,
        )
        return EpisodeMaker(sentences, words, topics, usable, rng)

    makers = Makers(maker(SHORT_SENTENCE_TOKENS), maker(MAX_SENTENCE_TOKENS))
    model = new_model(shape, encoder, WordPieces(teacher_folder()), schedule.seed)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    closing = Pretraining(model, shape, schedule, makers).run(encoder)
    folder = arguments.out / "model"
    save_tokenizer(encoder.tokenizer, folder)
    half = model.half()  # type: ignore[no-untyped-call]
    half.save_pretrained(str(folder))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    note = {"shape": asdict(shape), "schedule": asdict(schedule), "threads": arguments.n_threads}
    text = json.dumps(note | {"closing_averages": closing, "weights_sha256": digest}, indent=1)
    (arguments.out / "model" / "build.json").write_text(text + "\n", encoding="utf-8")
    return digest


def main() -> None:
    """Build with as many threads as asked for and print the weights' hash."""
    arguments = parse_arguments()
    make_deterministic(arguments.n_threads)
    with threadpool_limits(arguments.n_threads):
        print("weights sha256", build(arguments))


if __name__ == "__main__":
    main()
