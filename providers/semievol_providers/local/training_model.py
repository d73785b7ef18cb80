"""The model that a training starts from: the base, in 4 bits where asked, with a LoRA on its linear layers.

Knows nothing of data, optimizers or processes.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from semievol_providers.local.training_job import TrainingJob

NO_BITSANDBYTES = (
    "Training over a base in 4 bits (qlora = true) needs the package 'bitsandbytes', which is not installed. Install "
    "it with: pip install bitsandbytes; or set qlora = false and lower tokens_per_pass instead, which trains the same "
    "adapter over the unchanged base."
)


def can_quantize() -> bool:
    """Whether bitsandbytes is installed; nothing is imported."""
    return find_spec("bitsandbytes") is not None


def packs(job: TrainingJob, device: str) -> bool:
    """Whether examples go through the model end to end: as asked, or where FlashAttention makes it pay."""
    if job.packing != "auto":
        return job.packing
    return device.startswith("cuda") and find_spec("flash_attn") is not None


def with_adapter(job: TrainingJob, device: str) -> Any:
    """The base model with its adapter: fresh, from the job's seed, or an earlier one.

    Raises:
        TrainingFailedError: 4 bits are asked for without bitsandbytes.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    from semievol_providers.local.adapters import check_adapter

    base = _base(job, device)
    torch.manual_seed(job.seed)
    if job.adapter is not None:
        check_adapter(job.adapter)
        return PeftModel.from_pretrained(base, job.adapter, is_trainable=True)
    embeddings: dict[str, Any] = (
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True} if job.train_embeddings else {}
    )
    config = LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        target_modules=job.target_modules if job.target_modules == "all-linear" else job.target_modules.split(","),
        use_dora=job.use_dora,
        use_rslora=job.use_rslora,
        task_type="CAUSAL_LM",
        **embeddings,
    )
    return get_peft_model(base, config)


def _base(job: TrainingJob, device: str) -> Any:
    """In eval mode, frozen by PEFT later: float32 on the CPU, bfloat16 on an accelerator, or 4 bits."""
    from semievol_providers.local.model_folder import load_model
    from semievol_providers.local.training_loop import TrainingFailedError

    options: dict[str, Any] = {}
    if packs(job, device) and device.startswith("cuda") and find_spec("flash_attn") is not None:
        options["attn_implementation"] = "flash_attention_2"
    if job.qlora:
        if not can_quantize():
            raise TrainingFailedError("no_bitsandbytes", NO_BITSANDBYTES)
        options["quantization_config"] = _four_bits(device)
    return load_model(job.base, device, **options)


def _four_bits(device: str) -> Any:
    """NormalFloat4 with the scales quantized too, as in the QLoRA paper; products in the base's usual type."""
    import torch
    import transformers

    computing = torch.float32 if device == "cpu" else torch.bfloat16
    config: Any = transformers.BitsAndBytesConfig
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computing,
    )
