"""Semi-supervised fine-tuning of language models (SemiEvol, arXiv 2410.14745v2), over any provider."""
