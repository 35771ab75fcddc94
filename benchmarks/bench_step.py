"""A training step: at the quick profile's size against a plain one, at the paper's shapes against the official way.

Plain: every film decoded in every epoch and normalised in three channels, texts padded by the tokenizer and taken
through all of BERT 32 at a time, AdamW parameter by parameter. The losses of both are compared, and so are the draws.
Official: views and texts of 256 tokens in passes of their own. Run: OMP_NUM_THREADS=1 python benchmarks/bench_step.py
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from timing import interleaved, table, write_section
from torch import nn

from cxrclip import encoders, training
from cxrclip.data.batches import EpochBatches
from cxrclip.data.dataset import PretrainingDataset, load_batches
from cxrclip.data.images import decode_gray
from cxrclip.data.phantom import world
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.experiments.tokenizer import train_tokenizer
from cxrclip.experiments.workbench import keep_freed_memory, one_thread
from cxrclip.losses import CXRCLIPLoss
from cxrclip.prompts import PromptBank
from cxrclip.studies import open_studies
from cxrclip.transforms import TrainTransform

STUDIES, BATCH, STEPS = 480, 48, 10
FINDINGS, IMPRESSION, OFFICIAL = 97, 17, 256  # tokens: the median sections of MIMIC-CXR, and the official padding
RECIPE = training.Recipe(steps=10**6, learning_rate=1e-4, precision="no")


class PlainText(nn.Module):
    """BERT over 32 texts of similar length at a time, all layers for all tokens."""

    def __init__(self, text_encoder):
        super().__init__()
        self.network = text_encoder.network

    def forward(self, input_ids, attention_mask):
        order = attention_mask.sum(dim=1).argsort(stable=True)
        parts = []
        for rows in order.split(32):
            mask = attention_mask[rows, :attention_mask[rows].sum(dim=1).max()]
            tokens = self.network(input_ids[rows, :mask.shape[1]], attention_mask=mask).last_hidden_state
            parts.append(encoders.last_token(tokens, mask))
        return torch.cat(parts)[order.argsort()]


def plain_batches(dataset, tokenizer, max_tokens):
    """The same draws, made plainly."""
    dataset.films = lambda place, data, where: decode_gray(data, where)
    for epoch, indices in EpochBatches(len(dataset), BATCH, seed=0):
        items = dataset.__getitems__([(epoch, index) for index in indices])
        texts = [item["texts"][k] for k in range(2) for item in items]
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        yield {"pixel_values": torch.stack([item["images"] for item in items], dim=1),
               **{name: tokens[name].unflatten(0, (2, -1)) for name in ("input_ids", "attention_mask")}}


def steps_of(model, batches, precision, losses, steps=1, plain=False):
    """A function that makes some training steps and appends their losses."""
    accelerator = training.start_accelerator("cpu", precision)
    if plain:
        model.text_encoder = PlainText(model.text_encoder)
        optimizer = torch.optim.AdamW(training.parameter_groups(model, 1e-4), lr=1e-4, foreach=False)
    else:
        model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(training.parameter_groups(model, 1e-4), lr=1e-4, fused=True)
    numbers = itertools.count()

    def work():
        for _ in range(steps):
            line = training.train_step(accelerator, model, optimizer, CXRCLIPLoss(), next(batches), next(numbers),
                                       RECIPE)
            losses.append(float(line["total"]))
    return work


def timed(batches, seconds):
    """The same batches; the CPU seconds that each took."""
    while True:
        start = time.process_time()
        batch = next(batches)
        seconds.append(time.process_time() - start)
        yield batch


def small_step(image_encoder, precision):
    """CPU ms of both steps with the memory of films full, their ratio, the CPU ms of both batches alone, and how far
    the losses of 30 steps differ."""
    bank, losses, seconds = PromptBank.load(), ([], []), ([], [])
    with tempfile.TemporaryDirectory() as place, one_thread():
        folder = Path(place) / "m"
        world.generate("M", {"train": STUDIES}, folder, workers=1, progress=False, image_size=128)
        studies = open_studies(folder, "train")
        tokenizer = train_tokenizer(text for row in studies.remove_columns("images")
                                    for text in (row["findings"], row["impression"]) if text)
        config = CXRCLIPConfig(image_encoder, "bert-small", 128, image_size=64, max_tokens=80,
                               vocab_size=len(tokenizer))
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(CXRCLIPModel(config))
        transform = TrainTransform(64, config.image_mean, config.image_std)
        dataset = PretrainingDataset(studies, bank, transform.gray, seed=0)
        for index in range(len(dataset)):
            dataset[0, index]
        ours = load_batches(dataset, EpochBatches(len(dataset), BATCH, seed=0), tokenizer, config.max_tokens)
        plain = plain_batches(PretrainingDataset(studies, bank, transform, seed=0), tokenizer, config.max_tokens)
        ours, plain = map(timed, (ours, plain), seconds)
        ratio = interleaved(steps_of(models[0], ours, precision, losses[0], STEPS),
                            steps_of(models[1], plain, precision, losses[1], STEPS, plain=True), 7)
    apart = max(abs(a - b) / b for a, b in zip(*(each[:30] for each in losses), strict=True))
    return ratio, [1000 * statistics.median(each) for each in seconds], apart


def paper_batch(tokens):
    """Two images and two texts of 8 studies at the paper's shapes, padded to `tokens` or to the longest."""
    longest = tokens or FINDINGS
    mask = torch.zeros(2, 8, longest, dtype=torch.long)
    mask[0, :, :FINDINGS], mask[1, :, :IMPRESSION] = 1, 1
    return {"pixel_values": torch.rand(2, 8, 3, 224, 224), "input_ids": torch.randint(5, 20_000, mask.shape) * mask,
            "attention_mask": mask}


def paper_step(precision):
    """CPU seconds of our step and of the official one at the paper's shapes, and their ratio."""
    ours_model = CXRCLIPModel(CXRCLIPConfig("resnet50", "bio-clinical-bert"))
    other = CXRCLIPModel(CXRCLIPConfig("resnet50", "bio-clinical-bert"))
    batch, padded = paper_batch(None), paper_batch(OFFICIAL)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-5)

    def whole_bert(ids, mask):
        tokens = other.text_encoder.network(ids, attention_mask=mask).last_hidden_state
        return nn.functional.normalize(other.text_projection(encoders.last_token(tokens, mask)), dim=-1)

    def official():
        texts = [whole_bert(*text) for text in zip(padded["input_ids"], padded["attention_mask"], strict=True)]
        images = [other.embed_images(pixels) for pixels in padded["pixel_values"]]
        optimizer.zero_grad()
        CXRCLIPLoss()(torch.stack(images), torch.stack(texts), other.logit_scale.exp()).total.backward()
        optimizer.step()

    other.train()
    return interleaved(steps_of(ours_model, itertools.repeat(batch), precision, []), official, 3, warm=False)


def main():
    keep_freed_memory()
    computes_in_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    precisions = ["no", "bf16"] if computes_in_bf16 else ["no"]
    note = [] if len(precisions) == 2 else ["", "This CPU has no arithmetic in bf16, so only float32 was measured."]
    names = {"no": "float32", "bf16": "bf16"}
    rows = []
    for encoder in ("resnet-small", "swin-small"):
        for precision in precisions:
            ratio, batch, apart = small_step(encoder, precision)
            rows.append([encoder, names[precision],
                         *(f"{1000 * step / STEPS:.0f} ({alone:.0f})"
                           for step, alone in zip((ratio.ours, ratio.other), batch, strict=True)),
                         ratio.text(), f"{apart:.1g}"])
    write_section(f"A training step at the quick size, batch {BATCH}", [
        *table(["image encoder", "precision", "CPU ms (of it the batch)", "plain", "ratio", "losses apart"], rows), "",
        "The goals were 1.6 for the ResNet and 1.4 for the Swin. Most of what we save lies in the batch. The rest of a "
        "step is the arithmetic of the two encoders, the loss and AdamW, which a plain step needs as well.", *note])
    with one_thread():
        rows = []
        for precision in precisions:
            ratio = paper_step(precision)
            rows.append([names[precision], f"{ratio.ours:.1f}", f"{ratio.other:.1f}", ratio.text()])
    write_section("A training step at the paper's shapes, batch 8", [
        *table(["our precision", "CPU s", "CPU s, the official way in float32", "ratio"], rows), "",
        f"ResNet-50 at 224 pixels and BERT-base; sections of {FINDINGS} and {IMPRESSION} tokens. The official way pads "
        f"both to {OFFICIAL}, and takes each image and each text of a study in a pass of its own.", *note])


if __name__ == "__main__":
    main()
