"""The vocabulary of a small text encoder, learnt from the training texts."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cxrclip.errors import InputError

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                  "mask_token": "[MASK]"}


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> PreTrainedTokenizerFast:
    """Learn a lower-case WordPiece vocabulary from `texts`.

    It works as BERT's does: [CLS] text [SEP], and [PAD] is token 0. The same texts, in any order and any process, give
    the same vocabulary. vocab_size: the most tokens; the single characters of the texts are kept even beyond it.
    Raises InputError if there is no text, or all texts are blank.
    """
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise InputError("train_tokenizer: no text to learn a vocabulary from: look at the pretraining studies")
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    # The trainer numbers inner characters such as "##a" in the order of a randomly seeded hash table, and these numbers
    # decide ties between candidate pieces. Passed as special tokens they are numbered here, in sorted order. The
    # tokenizer that is returned is a second one, which treats them as ordinary pieces.
    inner = sorted({f"##{letter}" for word in words for letter in word[1:]})
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, splitter
    learner.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS.values(), *inner], show_progress=False))
    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"],
                                   **SPECIAL_TOKENS)
