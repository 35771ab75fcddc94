"""What training reads again in every epoch, kept in bounded memory: decoded films and the tokens of texts.

What is kept is exactly what would be made anew, so no batch depends on it. Each process that reads keeps its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from cxrclip.data.images import decode_gray

KEPT_FILMS = 2**28         # bytes of decoded films that a data set keeps: some 16,000 phantom films of 128 pixels
LARGEST_KEPT = 256 * 256   # pixels of a film; larger ones, such as the paper's, are decoded each time
KEPT_TEXTS = 50_000        # the oldest give way to new ones


class FilmMemory:
    """Films by their place in a data set, decoded once while they fit."""

    def __init__(self, most: int = KEPT_FILMS) -> None:
        self.most, self.size = most, 0
        self.films: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, place: tuple[int, int], data: bytes, where: str) -> np.ndarray:
        """(H, W) uint8, read-only, of the encoded film at `place`: (row, image). InputError names `where`."""
        film = self.films.get(place)
        if film is None:
            film = decode_gray(data, where)
            film.flags.writeable = False
            if film.size <= LARGEST_KEPT and self.size + film.nbytes <= self.most:
                self.films[place] = film
                self.size += film.nbytes
        return film


class TokenMemory:
    """Token ids of texts, cut at `max_tokens`; the last `most` distinct texts are tokenized once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, most: int = KEPT_TEXTS) -> None:
        self.tokenizer, self.max_tokens, self.most = tokenizer, max_tokens, most
        self.ids: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (N, L) and attention mask (N, L), int64, of N texts padded to the longest of them."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.ids]:
            tokens = self.tokenizer(new, truncation=True, max_length=self.max_tokens, return_attention_mask=False,
                                    return_token_type_ids=False)
            self.ids.update(zip(new, map(np.asarray, tokens["input_ids"]), strict=True))
        rows = [self.ids[text] for text in texts]
        while len(self.ids) > self.most:
            del self.ids[next(iter(self.ids))]
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self.tokenizer.pad_token_id, np.int64)
        ids[mask] = np.concatenate(rows)
        return ids, mask.astype(np.int64)
