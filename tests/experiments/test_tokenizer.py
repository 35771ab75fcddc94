"""The learnt vocabulary: the same in any process and any order, and used as BERT's is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from transformers import PreTrainedTokenizerFast

from cxrclip.errors import InputError
from cxrclip.experiments.tokenizer import train_tokenizer

TEXTS = ["No pleural effusion.", "Small left pleural effusion with mild atelectasis.", "The heart is normal in size.",
         "Right lower zone consolidation, severe.", "Nodule of 12 mm in the left upper zone."] * 4

TRAIN = """
import json, sys
from cxrclip.experiments.tokenizer import train_tokenizer
print(json.dumps(train_tokenizer(json.load(sys.stdin), vocab_size=120).get_vocab(), sort_keys=True))
"""


def test_vocabulary_is_the_same_in_any_process_and_order():
    other = subprocess.run([sys.executable, "-c", TRAIN], input=json.dumps(TEXTS[::-1]), capture_output=True, text=True,
                           check=True, env=os.environ | {"PYTHONHASHSEED": "5"}).stdout
    for _ in range(3):
        assert train_tokenizer(iter(TEXTS), 120).get_vocab() == json.loads(other)


def test_tokenizer_is_a_berts(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=120)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(tokenizer) <= 120
    batch = tokenizer(["PLEURAL effusion", "no pleural effusion."], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in batch["input_ids"].tolist()]
    assert words[0][0] == words[1][0] == "[CLS]"
    assert words[1][-1] == "[SEP]"
    assert words[0][-1] == "[PAD]"
    assert "pleural" in words[0], "lower case, and a frequent word is one piece"
    assert tokenizer.decode(tokenizer("Left nodule of 12 mm.")["input_ids"], skip_special_tokens=True) == (
        "left nodule of 12 mm.")
    assert tokenizer("##a [MASK]é€")["input_ids"][0] == 2
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert again.pad_token_id == 0


def test_inner_pieces_are_no_special_tokens():
    tokenizer = train_tokenizer(TEXTS, vocab_size=120)
    assert set(tokenizer.all_special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    ids = tokenizer("noles", add_special_tokens=False)["input_ids"]
    assert len(tokenizer.decode(ids, skip_special_tokens=True)) == len("noles")


def test_no_text_no_vocabulary():
    with pytest.raises(InputError, match="no text to learn a vocabulary from"):
        train_tokenizer(["", " "])
