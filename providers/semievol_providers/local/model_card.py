"""The README.md of what a training made: what it is, of which base, and how it was trained.

Knows nothing of how it was trained or where it goes.
"""

from __future__ import annotations

from pathlib import Path

from semievol_providers.local.training_job import TrainingJob


def adapter_card(job: TrainingJob, examples: int) -> str:
    """The card of an adapter."""
    base = Path(job.base).name
    settings = {
        "rank": job.rank,
        "alpha": job.alpha,
        "dropout": job.dropout,
        "kind of adapter": _kind(job),
        "examples": examples,
        "epochs": job.n_epochs,
        "examples per step": job.batch_size,
        "learning rate": job.learning_rate,
        "warm-up share": job.warmup_share,
        "seed": job.seed,
    }
    rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
    return (
        f"---\nbase_model: {job.base}\nlibrary_name: peft\npipeline_tag: text-generation\n"
        "tags:\n- lora\n- semievol\n---\n\n"
        f"# An adapter of {base}\n\n"
        "Trained with semievol-api on chat examples; only the assistant's turns are learnt (completion-only loss, "
        "AdamW, cosine schedule).\n\n"
        f"| setting | value |\n| --- | --- |\n{rows}\n"
        "Serve it with vLLM (`--enable-lora --lora-modules NAME=THIS_FOLDER`), or merge it into its base with "
        "`semievol export-model`.\n"
    )


def merged_card(base: str, adapter: str) -> str:
    """The card of a model that an adapter was merged into."""
    return (
        f"---\nbase_model: {base}\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        "tags:\n- semievol\n---\n\n"
        f"# {Path(base).name}, fine-tuned\n\n"
        f"The base model with the adapter `{Path(adapter).name}` merged into its weights by semievol-api. The base "
        "model's licence holds for it too.\n"
    )


def _kind(job: TrainingJob) -> str:
    words = [word for word, chosen in (("DoRA", job.use_dora), ("rsLoRA", job.use_rslora)) if chosen]
    return (" + ".join(words) or "LoRA") + (", over a base in 4 bits (QLoRA)" if job.qlora else "")
