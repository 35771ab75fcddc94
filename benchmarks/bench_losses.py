"""Loss forward and backward: the paper's terms one by one (ours) against one product of all embeddings.

Run: OMP_NUM_THREADS=1 python benchmarks/bench_losses.py
"""

from __future__ import annotations

import torch
from timing import interleaved, table, write_section
from torch.nn import functional as F

from cxrclip.losses import CXRCLIPLoss


def merged_loss(x, t, s):
    """The same loss from a single (4B, 4B) product, whose blocks are the pairs."""
    b = x.shape[1]
    blocks = (s * (embeds := torch.cat([*x, *t])) @ embeds.T).unflatten(1, (4, b)).unflatten(0, (4, b))
    targets = torch.arange(b)

    def pair(i, j):
        block = blocks[i, :, j]
        return (F.cross_entropy(block, targets) + F.cross_entropy(block.T, targets)) / 2
    mvs = (pair(0, 2) + pair(1, 2) + pair(0, 3) + pair(1, 3)) / 4
    return mvs + pair(0, 1) + 0.5 * pair(2, 3)


def backward(loss, *embeds):
    for tensor in embeds:
        tensor.grad = None
    loss.backward()


def main():
    rows = []
    for studies, width in ((64, 128), (128, 512), (1024, 512)):
        x, t = (F.normalize(torch.randn(2, studies, width), dim=-1).requires_grad_() for _ in range(2))
        criterion = CXRCLIPLoss()
        torch.testing.assert_close(criterion(x, t, 14.0).total, merged_loss(x, t, 14.0))
        ratio = interleaved(lambda x=x, t=t, c=criterion: backward(c(x, t, 14.0).total, x, t),
                            lambda x=x, t=t: backward(merged_loss(x, t, 14.0), x, t))
        rows.append([studies, width, f"{1000 * ratio.ours:.2f}", ratio.text()])
    write_section("The loss: six symmetric InfoNCE against one merged product", table(
        ["studies", "D", "CPU ms, forward and backward", "merged product against ours"], rows))


if __name__ == "__main__":
    main()
