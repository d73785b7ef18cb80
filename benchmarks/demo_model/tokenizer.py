"""Train the demo's byte-level BPE tokenizer and wrap it with a Llama-3.1 style chat template.

Knows the fixed phrases of the prompts and nothing of their order.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.demo_model import wording

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)
END_OF_TEXT, END_OF_TURN, PADDING = "<|end_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
CONTEXT_TOKENS = 2048
MIN_PAIR_COUNT = 3
# Llama 3's own splitting rule: contractions, words with their leading space, numbers of up to three digits.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def train_tokenizer(sentences: Sequence[str], n_tokens: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `n_tokens` learned tokens and one more for every fixed phrase."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens,
        special_tokens=list(SPECIAL_TOKENS),
        min_frequency=MIN_PAIR_COUNT,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    frame = ["user\n\nsystem\n\nassistant\n\n", *(f"x {letter}" for letter in wording.LETTERS)] * 100
    bpe.train_from_iterator([f" {text}" for text in sentences] + frame, trainer)
    bpe.add_tokens([AddedToken(phrase, normalized=False) for phrase in wording.single_token_phrases()])
    # A bare text ends with a token of its own, where its embedding is read; chats are rendered without it.
    end = (END_OF_TEXT, SPECIAL_TOKENS.index(END_OF_TEXT))
    bpe.post_processor = processors.TemplateProcessing(single=f"$A {END_OF_TEXT}", special_tokens=[end])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        model_max_length=CONTEXT_TOKENS,
        padding_side="left",
    )
    tokenizer.chat_template = wording.CHAT_TEMPLATE
    return tokenizer


class PromptEncoder:
    """Turns items into token ids by the tokenizer's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.padding_id = self.token_id(PADDING)
        self.end_of_turn_id = self.token_id(END_OF_TURN)
        self.answer_id = self.token_id("Answer:")
        self.letter_ids = tuple(self.ids(f" {letter}")[0] for letter in wording.LETTERS)
        self.option_mark_ids = tuple(self.token_id(f"\n{letter}.") for letter in wording.LETTERS)

    def token_id(self, token: str) -> int:
        """The id of a token that is in the vocabulary as it stands."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(found, int):
            raise KeyError(token)
        return found

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, without any that frame a chat."""
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def turn(self, text: str) -> str:
        """A text as a user's turn, up to where the reply starts."""
        turn = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of many texts, without any that frame a chat."""
        encoded = self.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [list(one.ids) for one in encoded]

    def embedding_inputs(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of bare texts, each with its end token, whose hidden state is the embedding."""
        encoded = self.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=True)
        return [list(one.ids) for one in encoded]

    def prompts(self, items: Sequence[wording.Item]) -> list[list[int]]:
        """The tokens up to where the assistant's reply starts."""
        rendered = [
            str(self.tokenizer.apply_chat_template(wording.messages(item), tokenize=False, add_generation_prompt=True))
            for item in items
        ]
        return self.texts(rendered)

    def reply(self, letter_index: int) -> list[int]:
        """The three tokens of an assistant's turn: the word, the letter, the end."""
        return [self.answer_id, self.letter_ids[letter_index], self.end_of_turn_id]

    def pad_right(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, int64, shape (rows, longest row)."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.padding_id)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids, mask


def load_encoder(folder: Path) -> PromptEncoder:
    """The encoder of a model folder."""
    return PromptEncoder(PreTrainedTokenizerFast.from_pretrained(str(folder)))


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer's files."""
    tokenizer.save_pretrained(str(folder))
