"""The linear probe as the released code trains it: a linear layer by AdamW on one draw (ledger rows B6, B13, B15).

The library's own probe is evaluation.linear_probe, the optimum of the same convex problem. This one stands here so
that the difference can be measured: `Behaviours.of("B15")` evaluates by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxrclip import metrics
from cxrclip.errors import InputError
from cxrclip.official.behaviours import INTENDED, Behaviours
from cxrclip.training import learning_rate_factor

# Not published. Of 0.001, 0.003, 0.01, 0.03, 0.1 and 0.3 the best, or within .01 of it, by the AUROC on held-out
# phantom VinDr training studies, for the encoders of six quick runs.
RATE = 0.1
EPOCHS = {1.0: 30}         # of the whole training set; smaller draws are trained longer
EPOCHS_OF_A_DRAW = 300
WARMUP_EPOCHS = 3
BATCH_SIZE = 64
WEIGHT_DECAY = 1e-4
RANDOM_STATE = 1           # of the official 10 % draw


def adamw_probe(train_features: np.ndarray, train_targets: np.ndarray, test_features: np.ndarray, *,
                fraction: float = 1.0, behaviours: Behaviours = INTENDED) -> np.ndarray:
    """Scores (1, N_test, K) of a linear layer on frozen features (before projection), trained by AdamW.

    A fifth of the training rows is held out to pick the best epoch. Of the others one unstratified draw of `fraction`
    is trained on, for 300 epochs, or for 30 if it is all of them; warm-up for 3 epochs, then cosine (official
    protocol). Of `behaviours`, validation_on_training lets the rows trained on pick the epoch (ledger B6), and with
    relative_warmup the warm-up takes 10 % of the steps (B13). A class with one outcome in the draw is trained too.
    Raises InputError if features and targets differ in rows.
    """
    if len(train_features) != len(train_targets):
        raise InputError(f"AdamW probe: {len(train_features)} rows of features, {len(train_targets)} of targets")
    held, rows = held_and_drawn(len(train_features), fraction)
    pickers = rows if behaviours.validation_on_training else held
    epochs = EPOCHS.get(fraction, EPOCHS_OF_A_DRAW)
    layer = nn.Linear(train_features.shape[1], train_targets.shape[1])
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    x, y = _tensor(train_features[rows]), _tensor(train_targets[rows])
    warmup = 0.1 if behaviours.relative_warmup else WARMUP_EPOCHS / epochs
    best, scores = -math.inf, np.zeros((len(test_features), train_targets.shape[1]))
    for _ in fit(layer, x, y, epochs, warmup):
        reached = metrics.auroc(_scores(layer, train_features[pickers]), train_targets[pickers])
        if reached > best:
            best, scores = reached, _scores(layer, test_features)
    return scores[None]


def held_and_drawn(n: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows held out to pick the epoch (a fifth of n), and a plain random draw of `fraction` of the others."""
    order = np.random.RandomState(RANDOM_STATE).permutation(n)
    held, others = np.split(order, [n // 5])
    return held, others[:max(1, round(fraction * len(others)))]


def fit(layer: nn.Linear, x: Tensor, y: Tensor, epochs: int, warmup: float) -> Iterator[int]:
    """Train by AdamW on binary cross-entropy, x (N, F), y (N, K); yields after each epoch.

    warmup: share of the steps.
    """
    optimizer = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    shuffle, steps, step = torch.Generator().manual_seed(RANDOM_STATE), epochs * -(-len(x) // BATCH_SIZE), 0
    for epoch in range(epochs):
        for batch in torch.randperm(len(x), generator=shuffle).split(BATCH_SIZE):
            optimizer.param_groups[0]["lr"] = RATE * learning_rate_factor(step, steps, warmup)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(layer(x[batch]), y[batch]).backward()
            optimizer.step()
            step += 1
        yield epoch


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


@torch.no_grad()
def _scores(layer: nn.Linear, features: np.ndarray) -> np.ndarray:
    return layer(_tensor(features)).double().numpy()
