"""Where the small encoders start, in place of the paper's ImageNet and of its BERT that has read clinical notes.

The text encoder has filled in hidden words of training reports (masked-language modelling; Devlin et al. 2019: 15 % of
the tokens are hidden); without reports it starts at random. The image encoder has told fractals apart (fractals.py).
Neither has seen a label of a film. Both are made once and shared: every run of a mix starts from the same text encoder,
and every run from the same image encoder, whatever it then trains on and whatever its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from cxrclip.data import mixes
from cxrclip.data.files import digest, making
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel, ImageEncoder, build_image_encoder
from cxrclip.errors import InputError
from cxrclip.experiments.cache import stages, tokenizer_key
from cxrclip.experiments.checkpoints import load_state, save_state
from cxrclip.experiments.experiment import Experiment
from cxrclip.experiments.fractals import fractals
from cxrclip.experiments.workbench import Workbench
from cxrclip.official.published import PUBLISHED_WEIGHTS
from cxrclip.training import learning_rate_factor
from cxrclip.transforms import normalised
from cxrclip.views import SECTIONS, generator

LEARNING_RATE, WARMUP = 2e-3, 1 / 15
REPORTS_AT_ONCE, FRACTALS_AT_ONCE = 64, 128
HIDDEN = 0.15  # share of the tokens


def start_encoders(model: CXRCLIPModel, experiment: Experiment, data: mixes.Prepared,
                   tokenizer: PreTrainedTokenizerBase, bench: Workbench) -> None:
    """Put the weights of the starts that the experiment asks for into the model: made if they are not there yet.

    Raises InputError for reports where the encoder has a published start of its own.
    """
    folder = bench.build / "starts"
    if experiment.text_start and experiment.text_encoder in PUBLISHED_WEIGHTS:
        raise InputError(f"text_start: {experiment.text_encoder} starts from its published weights: set it to 0")
    if experiment.text_start and (texts := training_reports(data)):
        network = model.text_encoder.network
        key = digest([experiment.text_encoder, experiment.text_start, experiment.max_tokens, tokenizer_key(data),
                      stages("training")])
        network.load_state_dict(kept(folder / f"reports-{key}.safetensors", lambda: read_reports(
            network.config, experiment, texts, tokenizer).bert))
    if experiment.image_start:
        key = digest([experiment.image_encoder, experiment.image_start, experiment.image_size, stages("training")])
        model.image_encoder.load_state_dict(kept(folder / f"fractals-{key}.safetensors",
                                                 lambda: see_fractals(experiment)[0]))


def kept(path: Path, make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The weights at `path`: those of `make()`, if there are none yet."""
    with making(path, path.is_file) as missing:
        if missing:
            save_state(path, make().state_dict(), {})
    return load_state(path)[0]


# ---- reports --------------------------------------------------------------------------------------------------------


def training_reports(data: mixes.Prepared) -> list[str]:
    """Every section of the training reports of the first role, by name, that has any; in the order of its studies.

    By name, for the key of a start holds the content of all roles but not their order.
    """
    for role in sorted(role for role in data.mix.pretraining if role in data.folders):
        studies = data.studies(role, "train").select_columns(list(SECTIONS))
        if texts := [study[name] for study in studies for name in SECTIONS if (study[name] or "").strip()]:
            return texts
    return []


def read_reports(config: BertConfig, experiment: Experiment, texts: list[str],
                 tokenizer: PreTrainedTokenizerBase) -> BertForMaskedLM:
    """A BERT after `text_start` steps of filling in hidden tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForMaskedLM(config).train()
        hide = DataCollatorForLanguageModeling(tokenizer, mlm_probability=HIDDEN)
        batches = batches_of_like_length(texts, experiment, tokenizer)
        for _ in updates(model, experiment.text_start):
            model(**hide([{"input_ids": ids} for ids in next(batches)])).loss.backward()
    return model


def batches_of_like_length(texts: list[str], experiment: Experiment,
                           tokenizer: PreTrainedTokenizerBase) -> Iterator[list[list[int]]]:
    """Batches of token ids for ever, each of texts of like length; each pass goes through all texts in a new order."""
    ids = sorted(tokenizer(texts, truncation=True, max_length=experiment.max_tokens)["input_ids"], key=len)
    batches = [ids[first:first + REPORTS_AT_ONCE] for first in range(0, len(ids), REPORTS_AT_ONCE)]
    rng = generator(0, 0, "order of the reports that are read first")
    while True:
        yield from (batches[i] for i in rng.permutation(len(batches)))


# ---- fractals -------------------------------------------------------------------------------------------------------


def see_fractals(experiment: Experiment) -> tuple[ImageEncoder, float]:
    """An image encoder after `image_start` steps of telling fractals apart, and its last cross-entropy in nats."""
    rng = generator(0, 0, "fractals")
    pictures, classes = map(torch.from_numpy, fractals(experiment.image_size, rng))
    config = CXRCLIPConfig(image_encoder=experiment.image_encoder, image_size=experiment.image_size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_image_encoder(config)
        model = nn.Sequential(encoder, nn.Linear(encoder.features, int(classes.max()) + 1)).train()
        for _ in updates(model, experiment.image_start):
            drawn = torch.from_numpy(rng.integers(len(pictures), size=FRACTALS_AT_ONCE))
            gray = pictures[drawn].unsqueeze(1) / 255                                             # (B, 1, S, S)
            loss = nn.functional.cross_entropy(model(normalised(gray, config.image_mean, config.image_std)),
                                               classes[drawn])
            loss.backward()
    return encoder, loss.item()


def updates(model: nn.Module, steps: int) -> Iterator[int]:
    """Steps of AdamW: the body of the loop makes the gradients, and each is taken when it asks for the next."""
    optimizer: Optimizer = AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * learning_rate_factor(step, steps, WARMUP)
        optimizer.zero_grad()
        yield step
        optimizer.step()
