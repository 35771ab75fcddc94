"""Back-translation as a step of preparation: report sections are translated to another language and back.

    cxrclip augment-texts --studies data/M --out data/M-aug

In training, the paper replaces a section with probability 0.5 by its translation from English to Italian and back.
Here these texts are written once, into the columns findings_aug and impression_aug of a new study folder. Any pair of
text-to-text models of transformers will do (MarianMT, T5 with a prefix); nothing is downloaded.

Sections are translated sentence by sentence: such models were trained on sentences, most of which recur in many
reports, and no section is cut at a model's limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from cxrclip.data.files import digest
from cxrclip.data.progress import progress_bar
from cxrclip.data.shards import read_about, resumable_studies
from cxrclip.errors import InputError
from cxrclip.studies import SPLITS, fingerprint, read_shards
from cxrclip.views import SECTIONS

THERE, BACK = "Helsinki-NLP/opus-mt-en-it", "Helsinki-NLP/opus-mt-it-en"
MAX_TOKENS = 4096  # tokens a batch, with its padding
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+")

Translate = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Translator:
    """One direction: a model and its tokenizer. Called with sentences, it returns their translations in order.

    `prefix` is put before each sentence (T5 needs "translate English to Italian: "). Sentences too long for the model,
    and those it answers with nothing, come back unchanged.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prefix: str = ""
    about: Mapping[str, str] = field(default_factory=dict)  # what tells one model from another

    @classmethod
    def load(cls, name: str, models: Path, device: str, prefix: str = "") -> Translator:
        """From the folder `models`/<last part of name>, from the path `name`, or from the cache of transformers.

        Raises:
            InputError: it is in none of them, or a package it needs is missing.
        """
        folder = models / name.split("/")[-1]
        place = next((place for place in (folder, Path(name)) if (place / "config.json").is_file()), None)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(place or name, **local)
            model = AutoModelForSeq2SeqLM.from_pretrained(place or name, **local)
        except (ImportError, OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            if isinstance(error, ImportError):
                raise InputError(f"{name}: {reason}; pip install sentencepiece sacremoses") from error
            raise InputError(f"{name}: this translation model is not here and nothing is downloaded; on a machine with "
                             f"a network run 'hf download {name} --local-dir {folder}' and copy the folder here "
                             f"({reason})") from error
        files = [(path.name, path.stat().st_size, path.read_text("utf-8") if path.suffix == ".json" else "")
                 for path in sorted(place.iterdir())] if place else None
        about = {"name": name, "files": digest(files) if files else "cache"}
        return cls(model.to(device).eval(), tokenizer, prefix, about)

    @property
    def limit(self) -> int:
        """Tokens that the model takes, and may answer with."""
        places = getattr(self.model.config, "max_position_embeddings", None) or 512
        return min(places, self.tokenizer.model_max_length, 512)

    def __call__(self, sentences: Sequence[str]) -> list[str]:
        tokens = [self.tokenizer(self.prefix + sentence)["input_ids"] for sentence in sentences]
        translated = list(sentences)
        for batch in batches([len(ids) for ids in tokens], self.limit):
            for place, text in zip(batch, self._generate([tokens[i] for i in batch]), strict=True):
                translated[place] = text or sentences[place]
        return translated

    @torch.inference_mode()
    def _generate(self, tokens: list[list[int]]) -> list[str]:
        padded = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.model.device)
        ids = self.model.generate(  # as many new tokens for short batches: a text must not depend on its neighbours
            input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], max_new_tokens=self.limit,
            max_length=None, do_sample=False)
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices of texts up to `limit` tokens, in batches of similar length and at most `MAX_TOKENS` with padding."""
    batch: list[int] = []
    for i in sorted((i for i, length in enumerate(lengths) if length <= limit), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > MAX_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def split_sentences(text: str) -> list[str]:
    """A section's sentences, without the white space between them."""
    return [sentence for sentence in _SENTENCE_ENDS.split(text.strip()) if sentence]


def augment(folder: str | Path, out: str | Path, there: Translate, back: Translate, *, about: Mapping[str, Any],
            split: str | None = "train", progress: bool = True) -> dict[str, int]:
    """Write `out`, a copy of the study folder with back-translated sections.

    Interrupted, the same call goes on from the finished shards (see `cxrclip.data.shards.resumable_studies`).

    Args:
        there, back: sentences -> sentences in the other language, and back.
        about: names the translators; kept in `dataset.json`. With another value, finished shards are made anew.
        split: whose studies to translate; None takes all. Only training reads the texts.

    Returns:
        Counts: studies, sections translated, sentences translated (distinct ones of each shard), and sections that
        came back word for word. Shards that were finished earlier are not counted again.

    Raises:
        InputError: `out` is `folder`, no report text, an unknown split, or a folder cannot be read or written.
    """
    folder, out = Path(folder), Path(out)
    if out.resolve() == folder.resolve():
        raise InputError(f"{out}: the texts go into a new folder, never into the one that is read; choose another")
    if split is not None and split not in SPLITS:
        raise InputError(f"augment: unknown split {split!r}; the splits are {', '.join(SPLITS)}, or None for all")
    kept, rejected = read_about(folder)
    settings = {"models": dict(about), "split": split, "of": fingerprint(folder)}
    counts = dict.fromkeys(("studies", "sections", "sentences", "unchanged"), 0)
    sections = 0
    with resumable_studies(out) as table, progress_bar(desc="back-translation", unit="shard", shown=progress) as bar:
        for number, rows in enumerate(read_shards(folder)):
            chosen = [row for row in rows if split in (None, row["split"])]
            sections += sum(bool(row[name]) for row in chosen for name in SECTIONS)
            key = digest([settings, [row["study_id"] for row in rows]])
            if table.has(number, key):
                table.reuse(number)
            else:
                _translate(chosen, there, back, counts)
                table.add(number, key, rows, [])
            bar.update()
        if not sections:
            raise InputError(f"{folder}: no report section in split {split!r}; there is nothing to translate")
        table.finish(kept | {"augmented": settings}, rejected)
    return counts


def _translate(rows: Sequence[dict[str, Any]], there: Translate, back: Translate, counts: dict[str, int]) -> None:
    """Fill the *_aug columns of some rows."""
    sections = [(row, name) for row in rows for name in SECTIONS if row[name]]
    sentences = sorted({sentence for row, name in sections for sentence in split_sentences(row[name])})
    returned = dict(zip(sentences, back(there(sentences)) if sentences else [], strict=True))
    for row, name in sections:
        text = " ".join(returned[sentence] for sentence in split_sentences(row[name]))
        row[f"{name}_aug"] = [text]
        counts["unchanged"] += text == row[name]
    counts["studies"] += len(rows)
    counts["sections"] += len(sections)
    counts["sentences"] += len(sentences)


def augment_with_models(folder: str | Path, out: str | Path, there: str = THERE, back: str = BACK, *,
                        there_prefix: str = "", back_prefix: str = "", models: Path = Path("models"),
                        split: str | None = "train", device: str = "auto") -> dict[str, int]:
    """`augment` with two translation models by name or folder (`Translator.load`), and a prefix for each.

    Raises:
        InputError: as `augment`, and where a model is not on this machine.
    """
    fingerprint(folder)  # before models load
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    outward = Translator.load(there, models, device, there_prefix)
    homeward = Translator.load(back, models, device, back_prefix)
    about = {"there": outward.about, "back": homeward.about, "prefixes": [there_prefix, back_prefix]}
    return augment(folder, out, outward, homeward, about=about, split=split)
