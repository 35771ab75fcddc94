"""Seconds of a training step at the quick profile's size, and the choices behind the small encoders.

B 64, two views of 64 pixels, two texts of up to 40 tokens, AdamW; one thread.
Run: OMP_NUM_THREADS=1 python benchmarks/bench_encoders.py
"""

from __future__ import annotations

import torch
from timing import compare, median_seconds
from torch import nn
from torchvision.models import resnet18

from cxrclip import encoders
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel, build_image_encoder, build_text_encoder
from cxrclip.losses import CXRCLIPLoss

PIXELS = torch.randn(128, 3, 64, 64)
LENGTHS = torch.randint(10, 41, (128, 1))
MASK = (torch.arange(40) < LENGTHS).long()
IDS = torch.randint(5, 2000, (128, 40)) * MASK


def forward_backward(module, *inputs, precision=torch.float32):
    def work():
        module.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            output = module(*inputs)
        output.float().square().mean().backward()
    return median_seconds(work, 5)


def training_step(image_encoder, precision=torch.float32):
    config = CXRCLIPConfig(image_encoder=image_encoder, text_encoder="bert-small", image_size=64, projection_dim=128)
    model = CXRCLIPModel(config).train()
    optimizer, criterion = torch.optim.AdamW(model.parameters(), lr=1e-4), CXRCLIPLoss()

    def work():
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            output = model(PIXELS, IDS, MASK)
        terms = criterion(output.image_embeds.unflatten(0, (2, -1)), output.text_embeds.unflatten(0, (2, -1)),
                          output.logit_scale)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    return median_seconds(work, 5)


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
    config = CXRCLIPConfig(image_encoder="resnet-small", text_encoder="bert-small", image_size=64)
    resnet = build_image_encoder(config).train()
    small = forward_backward(resnet, PIXELS)
    compare("128 images, resnet-small", small, "torchvision resnet18", forward_backward(resnet18(), PIXELS))
    compare("channels last", small, "contiguous", forward_backward(Contiguous(resnet.body), PIXELS))
    swin = build_image_encoder(CXRCLIPConfig(image_encoder="swin-small", image_size=64)).train()
    compare("128 images, resnet-small", small, "swin-small", forward_backward(swin, PIXELS))
    compare("128 texts, eager attention", forward_backward(text_encoder("eager"), IDS, MASK), "SDPA",
            forward_backward(text_encoder("sdpa"), IDS, MASK))
    text = build_text_encoder(config).train()
    compare("128 texts, float32", forward_backward(text, IDS, MASK), "bfloat16",
            forward_backward(text, IDS, MASK, precision=torch.bfloat16))
    for name in ("resnet-small", "swin-small"):
        compare(f"training step, {name}, float32", training_step(name), "bfloat16", training_step(name, torch.bfloat16))


if __name__ == "__main__":
    main()
