"""A start for the small text encoder: masked-language modelling on the training reports of the first role.

The paper starts from a BERT that has read clinical notes; a small BERT has nothing to start from. This is the honest
counterpart: it has read M's own training reports, and nothing else (Devlin et al. 2019: 15 % of the tokens are hidden).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW
from transformers import BertForMaskedLM, DataCollatorForLanguageModeling, PreTrainedTokenizerBase
from transformers.models.bert import BertModel

from cxrclip.data import mixes
from cxrclip.data.files import atomic_file, digest, locked
from cxrclip.errors import InputError
from cxrclip.experiments.cache import stages, tokenizer_key
from cxrclip.experiments.experiment import Experiment
from cxrclip.experiments.workbench import Workbench
from cxrclip.training import learning_rate_factor
from cxrclip.views import SECTIONS, generator

BATCH, LEARNING_RATE, WARMUP = 64, 2e-3, 1 / 15
HIDDEN = 0.15  # share of the tokens


def start_from_reports(bert: BertModel, experiment: Experiment, data: mixes.Prepared,
                       tokenizer: PreTrainedTokenizerBase, bench: Workbench) -> None:
    """Put the weights into `bert` that have read the reports; made once for a mix, and kept with its data.

    Raises InputError where the first role has no report.
    """
    key = digest([experiment.text_encoder, experiment.text_start, experiment.max_tokens, experiment.pretraining[0],
                  tokenizer_key(data), stages("training")])
    path = bench.build / "data" / f"start-{key}.safetensors"
    with locked(path):
        if not path.is_file():
            weights = read_reports(bert, experiment, training_reports(data, experiment.pretraining[0]), tokenizer)
            with atomic_file(path) as draft:
                save_file(weights, draft)
    bert.load_state_dict(load_file(path))


def training_reports(data: mixes.Prepared, role: str) -> list[str]:
    """Every section of the training reports of a role, in the order of its studies."""
    studies = data.studies(role, "train").select_columns(list(SECTIONS))
    texts = [study[name] for study in studies for name in SECTIONS if (study[name] or "").strip()]
    if not texts:
        raise InputError(f"text_start: role {role} has no reports to read: set it to 0")
    return texts


def read_reports(bert: BertModel, experiment: Experiment, texts: list[str],
                 tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Tensor]:
    """Weights of a network like `bert` after `text_start` steps of filling in hidden tokens; `bert` stays as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForMaskedLM(bert.config).train()
        model.bert.load_state_dict(bert.state_dict(), strict=True)
        hide = DataCollatorForLanguageModeling(tokenizer, mlm_probability=HIDDEN)
        optimizer = AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
        for step, ids in zip(range(experiment.text_start), batches_of_like_length(texts, experiment, tokenizer),
                             strict=False):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * learning_rate_factor(step, experiment.text_start, WARMUP)
            optimizer.zero_grad()
            model(**hide([{"input_ids": row} for row in ids])).loss.backward()
            optimizer.step()
    return model.bert.state_dict()


def batches_of_like_length(texts: list[str], experiment: Experiment,
                           tokenizer: PreTrainedTokenizerBase) -> Iterator[list[list[int]]]:
    """Batches of token ids for ever, each of texts of like length, in an order of their own."""
    ids = sorted(tokenizer(texts, truncation=True, max_length=experiment.max_tokens)["input_ids"], key=len)
    batches = [ids[first:first + BATCH] for first in range(0, len(ids), BATCH)]
    rng = generator(0, 0, "order of the reports that are read first")
    while True:
        yield from (batches[i] for i in rng.permutation(np.arange(len(batches))))
