"""The choices behind the small encoders: 128 images of 64 pixels, 128 texts of up to 40 tokens, one thread.

Run: OMP_NUM_THREADS=1 python benchmarks/bench_encoders.py
"""

from __future__ import annotations

import torch
from timing import interleaved, table, write_section
from torch import nn
from torchvision.models import resnet18

from cxrclip import encoders
from cxrclip.encoders import CXRCLIPConfig, build_image_encoder

PIXELS = torch.randn(128, 3, 64, 64)
LENGTHS = torch.randint(10, 41, (128, 1))
MASK = (torch.arange(40) < LENGTHS).long()
IDS = torch.randint(5, 2000, (128, 40)) * MASK


def both_passes(module, *inputs):
    def work():
        module.zero_grad()
        module(*inputs).square().mean().backward()
    return work


def text_encoder(attention):
    settings = dict(encoders.BERTS["bert-small"]) | {"attn_implementation": attention}
    config = encoders.BertConfig(**settings)
    return encoders.TextEncoder(encoders.BertModel(config, add_pooling_layer=False), "last_token").train()


class Contiguous(nn.Module):
    """The small ResNet without channels-last memory."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, pixels):
        return self.body.stages(self.body.stem(pixels)).mean(dim=(2, 3))


def main():
    resnet = build_image_encoder(CXRCLIPConfig(image_encoder="resnet-small", image_size=64)).train()
    swin = build_image_encoder(CXRCLIPConfig(image_encoder="swin-small", image_size=64)).train()
    eager, sdpa = text_encoder("eager"), text_encoder("sdpa")
    pairs = [("small ResNet", both_passes(resnet, PIXELS), "torchvision's ResNet-18", both_passes(resnet18(), PIXELS)),
             ("channels last", both_passes(resnet, PIXELS), "contiguous", both_passes(Contiguous(resnet.body), PIXELS)),
             ("small ResNet", both_passes(resnet, PIXELS), "small Swin", both_passes(swin, PIXELS)),
             ("eager attention", both_passes(eager, IDS, MASK), "SDPA", both_passes(sdpa, IDS, MASK))]
    ratios = [(name, other, interleaved(ours, work)) for name, ours, other, work in pairs]
    write_section("The small encoders", table(["ours", "CPU ms", "other", "CPU time of the other against ours"], [
        [name, f"{1000 * ratio.ours:.0f}", other, ratio.text()] for name, other, ratio in ratios]))


if __name__ == "__main__":
    main()
