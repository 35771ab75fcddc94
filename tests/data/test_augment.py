"""cxrclip.data.augment: sections go there and back, a new folder holds them, and a run can be interrupted."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from cxrclip.data import augment as module
from cxrclip.data.augment import Translator, augment, augment_with_models, batches, split_sentences
from cxrclip.data.images import encode_gray
from cxrclip.data.shards import Rejected, write_studies
from cxrclip.errors import InputError
from cxrclip.studies import fingerprint, open_studies, validate

WORDS = ["heart", "lungs", "normal", "clear", "is", "are", "no", "effusion", "large", "small", "il", "cuore", "."]
FILM = encode_gray(np.arange(400, dtype=np.uint8).reshape(20, 20), "png")


def study(i, findings, impression, split="train"):
    image = {"bytes": FILM, "path": f"{i}.png"}
    return {"study_id": f"s{i}", "patient_id": f"p{i}", "source": "here", "split": split, "images": [image],
            "views": ["PA"], "findings": findings, "impression": impression, "positive": ["Edema"]}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    texts = [("The heart is large. No effusion.", "Large heart."), (None, "No effusion."), ("Lungs are clear.", None)]
    rows = [study(i, *texts[i % 3]) for i in range(12)] + [study(12, "Held out.", None, "test")]
    rejected = [Rejected("list.csv", 3, "image", "gone")]
    return write_studies(rows, tmp_path / "studies", about={"seed": 1}, rejected=rejected, shard_rows=4)


def there(sentences):
    return [f"({sentence})" for sentence in sentences]


def back(sentences):
    return [sentence.strip("()").replace("effusion", "fluid") for sentence in sentences]


def rows_of(folder):
    return {row["study_id"]: row for row in open_studies(folder)}


def test_sections_come_back_in_a_new_folder_and_nothing_else_changes(folder, tmp_path):
    before = fingerprint(folder)
    counts = augment(folder, tmp_path / "out", there, back, about={"there": "a"}, progress=False)
    assert counts == {"studies": 12, "sections": 16, "sentences": 12, "unchanged": 8}
    validate(tmp_path / "out")
    assert fingerprint(folder) == before
    old, new = rows_of(folder), rows_of(tmp_path / "out")
    assert new["s0"]["findings_aug"] == ["The heart is large. No fluid."]
    assert new["s0"]["impression_aug"] == ["Large heart."]
    assert new["s1"]["findings_aug"] == []
    assert new["s12"]["findings_aug"] == []  # the test split is not read with augmentation
    for name in old:
        emptied = {"findings_aug": [], "impression_aug": []}
        assert new[name] | emptied == old[name] | emptied
    facts = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert facts["about"]["seed"] == 1
    assert facts["about"]["augmented"]["of"] == before
    assert (tmp_path / "out" / "rejected.csv").read_text() == (folder / "rejected.csv").read_text()
    augment(folder, tmp_path / "all", there, back, about={}, split=None, progress=False)
    assert rows_of(tmp_path / "all")["s12"]["findings_aug"] == ["Held out."]


def test_an_interrupted_run_goes_on_and_other_models_start_anew(folder, tmp_path):
    augment(folder, tmp_path / "whole", there, back, about={"there": "a"}, progress=False)
    calls = []

    def failing(sentences):
        calls.append(sentences)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return there(sentences)

    with pytest.raises(KeyboardInterrupt):
        augment(folder, tmp_path / "out", failing, back, about={"there": "a"}, progress=False)
    assert not (tmp_path / "out").exists()
    counts = augment(folder, tmp_path / "out", failing, back, about={"there": "a"}, progress=False)
    assert counts["studies"] == 4  # two of four shards were done; the last has no study of the split
    whole, out = ({path.name: path.read_bytes() for path in (tmp_path / n).glob("*.*")} for n in ("whole", "out"))
    assert whole == out
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        augment(folder, tmp_path / "again", failing, back, about={"there": "a"}, progress=False)
    calls.clear()
    counts = augment(folder, tmp_path / "again", there, back, about={"there": "b"}, progress=False)
    assert counts["studies"] == 12


def test_bad_calls_are_one_line(folder, tmp_path):
    with pytest.raises(InputError, match="never into the one that is read"):
        augment(folder, folder / ".", there, back, about={}, progress=False)
    with pytest.raises(InputError, match="unknown split 'tr'"):
        augment(folder, tmp_path / "out", there, back, about={}, split="tr", progress=False)
    with pytest.raises(InputError, match="no report section in split 'valid'"):
        augment(folder, tmp_path / "out", there, back, about={}, split="valid", progress=False)
    assert not (tmp_path / "out").exists()


def test_batches_hold_texts_of_like_length_and_leave_too_long_ones_out(monkeypatch):
    monkeypatch.setattr(module, "MAX_TOKENS", 20)
    lengths = [9, 3, 50, 4, 10, 3]
    assert list(batches(lengths, 40)) == [[1, 5, 3], [0, 4]]
    assert list(batches([30], 40)) == [[0]]  # alone, though larger than a batch
    assert split_sentences(" One.  Two is 1.5 cm? Three\nlines ") == ["One.", "Two is 1.5 cm?", "Three\nlines"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Marian and a T5 model of random weights, saved as the real ones are."""
    place = tmp_path_factory.mktemp("models")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   model_max_length=32)  # fmt: skip
    set_seed(0)
    small = {"vocab_size": len(vocabulary), "d_model": 16, "pad_token_id": 0, "eos_token_id": 1}
    marian = MarianConfig(**small, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                          decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
                          decoder_start_token_id=0, forced_eos_token_id=None, max_position_embeddings=64)  # fmt: skip
    t5 = T5Config(**small, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    models_by_name = {"opus-mt-en-it": MarianMTModel(marian), "opus-mt-it-en": T5ForConditionalGeneration(t5)}
    for name, model in models_by_name.items():
        model.generation_config.suppress_tokens = [0, 1, 2]  # random weights like to say nothing at all
        model.save_pretrained(place / name)
        fast.save_pretrained(place / name)
    return place


def test_real_model_classes_translate_whatever_the_batches(tiny, monkeypatch):
    for name in ("Helsinki-NLP/opus-mt-en-it", "Helsinki-NLP/opus-mt-it-en"):
        translate = Translator.load(name, tiny, "cpu")
        assert translate.limit == 32
        sentences = ["heart is large .", "no effusion .", "lungs are clear . " * 20, "heart"]
        found = translate(sentences)
        assert found[2] == sentences[2]  # longer than the model takes
        assert found[:2] != sentences[:2]
        monkeypatch.setattr(module, "MAX_TOKENS", 1)
        assert translate(sentences) == found
        assert translate([]) == []


def test_two_models_write_a_folder(tiny, folder):
    out = folder.with_name("studies-aug")
    counts = augment_with_models(folder, out, models=tiny, device="cpu", back_prefix="no ")
    assert (counts["studies"], counts["sections"], counts["sentences"]) == (12, 16, 12)
    validate(out)
    augmented = json.loads((out / "dataset.json").read_text())["about"]["augmented"]
    assert augmented["models"]["there"]["name"] == "Helsinki-NLP/opus-mt-en-it"
    assert augmented["models"]["prefixes"] == ["", "no "]
    assert all(row["findings_aug"] for row in open_studies(out, "train") if row["findings"])


def test_without_the_models_one_line_says_what_to_fetch(folder, tmp_path):
    with pytest.raises(InputError) as error:
        augment_with_models(folder, tmp_path / "out", models=tmp_path / "models")
    assert "\n" not in str(error.value)
    assert f"hf download Helsinki-NLP/opus-mt-en-it --local-dir {tmp_path}/models/opus-mt-en-it" in str(error.value)
    with pytest.raises(InputError, match="not a study folder"):
        augment_with_models(tmp_path / "none", tmp_path / "out")
