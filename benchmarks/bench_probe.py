"""Linear probe: features once and the optimum of the convex problem, against the official epochs through the encoder.

Official: 30 epochs on all training studies and 300 on a tenth, every epoch reading films, through the frozen encoder,
and looking at the validation studies. One such epoch of each kind is measured; the numbers of epochs are multiplied.
AUROC: official/probe.py trains the same layer by the same AdamW on the features; the encoder is frozen, so these are
the features that the epochs would see. Run: OMP_NUM_THREADS=1 python benchmarks/bench_probe.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from timing import interleaved, table, write_section

from cxrclip import evaluation, metrics
from cxrclip.data.phantom import world
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.official.probe import adamw_probe
from cxrclip.prompts import PromptBank
from cxrclip.studies import open_studies
from cxrclip.transforms import EvalTransform

SIZES = {"train": 800, "test": 500}
EPOCHS, EPOCHS_OF_A_TENTH, TENTH, HELD, BATCH = 30, 300, 0.1, 0.2, 64


def epoch(model, studies, transform, targets, layer, optimizer=None):
    """Films through the frozen encoder and the layer: an epoch of training, or with no optimizer a look at them."""
    with torch.set_grad_enabled(optimizer is not None):
        for number, images in enumerate(evaluation.first_images(studies, transform, BATCH)):
            with torch.no_grad():
                features = model.encode_images(images)
            scores = layer(features)
            if optimizer:
                target = torch.from_numpy(targets[number * BATCH:number * BATCH + len(images)]).float()
                optimizer.zero_grad()
                torch.nn.functional.binary_cross_entropy_with_logits(scores, target).backward()
                optimizer.step()


def main():
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "vindr"
        world.generate("vindr-cxr", SIZES, folder, workers=1, progress=False)
        train, test = (open_studies(folder, split) for split in SIZES)
        classes = list(PromptBank.load().zero_shot("vindr-cxr"))
        wanted, right = (evaluation.targets(studies, classes) for studies in (train, test))
        torch.manual_seed(0)
        config = CXRCLIPConfig("resnet-small", "bert-small", 128, image_size=64, max_tokens=80)
        model, transform = CXRCLIPModel(config).eval(), EvalTransform(64, config.image_mean, config.image_std)
        layer = torch.nn.Linear(192, len(classes))
        optimizer = torch.optim.AdamW(layer.parameters())
        held = round(HELD * len(train))
        valid, rest = train.select(range(held)), train.select(range(held, len(train)))
        tenth = rest.select(range(round(TENTH * len(rest))))

        def ours():
            features = evaluation.embed_studies(model, train, transform).features
            test_features = evaluation.embed_studies(model, test, transform).features
            return [(evaluation.linear_probe(features, wanted, test_features, fraction=fraction), fraction)
                    for fraction in (1.0, TENTH)], features, test_features

        def official(part):
            epoch(model, part, transform, wanted, layer, optimizer)
            epoch(model, valid, transform, wanted, layer)

        of_all = interleaved(ours, lambda: official(rest), 5)
        of_tenth = interleaved(ours, lambda: official(tenth), 5)
        scores, features, test_features = ours()
        differences = []
        for probed, fraction in scores:
            other = adamw_probe(features, wanted, test_features, fraction=fraction)[0]
            shown = right.any(axis=0) & ~right.all(axis=0)
            differences.append(metrics.paired_bootstrap(metrics.auroc, probed[0][:, shown], other[:, shown],
                                                        right[:, shown], n=300))
    total = EPOCHS * of_all.other + EPOCHS_OF_A_TENTH * of_tenth.other
    low, high = (EPOCHS * a + EPOCHS_OF_A_TENTH * b for a, b in zip(of_all[1:3], of_tenth[1:3], strict=True))
    ratio = EPOCHS * of_all.ratio + EPOCHS_OF_A_TENTH * of_tenth.ratio
    rows = [["official epochs against ours, both probes (goal: at least 50)", f"{ratio:.0f} ({low:.0f} to {high:.0f})"],
            ["CPU seconds", f"{total:.0f} (one epoch of each kind measured) against {of_all.ours:.1f}"]]
    rows += [[f"AUROC, ours less the official, {name}", f"{d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})"]
             for name, d in zip(("all training studies", "a tenth"), differences, strict=True)]
    write_section(f"Linear probe, {SIZES['train']} training and {SIZES['test']} test films",
                  [*table(["", "measured"], rows), "", "Ours embeds training and test films once, then makes both "
                   "probes. Untrained small ResNet. The two tenths are different draws, and many classes have few "
                   "positives in them."])


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
