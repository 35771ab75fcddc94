"""One experiment, its three sizes, and its departures from the paper.

An `Experiment` says what is trained on what; its defaults are the published settings and a profile only shrinks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from cxrclip.errors import InputError
from cxrclip.official.behaviours import Behaviours

# What a profile changes of the published settings. Small encoders and images keep the method and cost minutes.
_SMALL = {"text_encoder": "bert-small", "image_size": 64, "projection_dim": 128, "batch_size": 48,
          "learning_rate": 3e-3, "max_tokens": 80}
PROFILES: Mapping[str, Mapping] = {
    "quick": _SMALL | {"image_encoder": "resnet-small", "steps": 300},
    "standard": _SMALL | {"image_encoder": "resnet-small", "steps": 1000, "batch_size": 64,
                         "text_start": 2000, "image_start": 1200},
    "paper": {},
}
IMAGE_ENCODERS = {"resnet": {"quick": "resnet-small", "standard": "resnet-small", "paper": "resnet50"},
                  "swin": {"quick": "swin-small", "standard": "swin-small", "paper": "swin-tiny"}}
CHOICES: Mapping[str, tuple[str, ...]] = {"draw": ("first", "random"), "false_negatives": ("keep", "mask", "soft"),
                                          "batches": ("mixed", "one-source", "streamed")}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value > 0


@dataclass(frozen=True)
class Experiment:
    """One pretraining run. Defaults are the published settings; `at` shrinks them to a profile.

    `pretraining` names roles of the mix. `steps` counts optimiser updates; when it is None, `epochs` passes over
    the pretraining studies are made. `published_weights`: the published encoders start from the published weights and
    tokenizer; False starts them at random, with a vocabulary of the mix, to try them without a download.

    The fields after `seed` are departures from the paper, for comparisons (comparisons.py); all are off by default.
        shares: of each role's training studies, aligned with `pretraining`; smaller shares lie within larger ones.
        draw: with one view (text), the "first" frontal (section) or a "random" one. augment: images and texts.
        mvs: False contrasts the pair (x1, t1) alone. false_negatives: "keep", "mask" or "soft" (remedies.py).
        batches: "mixed", "one-source", or "streamed", for training sets that outgrow a disk: mixed batches of the
            shards as they come (data/stream.py), without shares, report_share, reports_last or rules.
        report_share: of each batch. reports_last: share of the last steps that
        draw from reports only (remedies.py). label_weight: of label-only studies' rows in every term.
        rich_prompts: label prompts that tell side, zone and severity, from the phantom's truth (oracle.py).
        chunk: studies that a process embeds at once, with cached gradients (training.cached_backward), for batches that
            do not fit into memory; "auto" measures how many do. BatchNorm then sees a chunk in place of a batch.
        text_start: steps of masked-language modelling on the training reports of the mix's first role, from which a
            small text encoder starts; image_start: steps of telling fractals apart, from which a small image encoder
            starts (start.py). 0 starts at random.
        rules: "intended", "official" for what the released code does, or rows of the ledger, "B2,B3".
            Under B11 plain CLIP cannot be had: asking for one view and one text gives two, with ICL and TCL at 0.
    """

    mix: str = "phantom"
    profile: str = "paper"
    pretraining: tuple[str, ...] = ("M",)
    image_encoder: str = "resnet50"
    text_encoder: str = "bio-clinical-bert"
    image_size: int = 224
    projection_dim: int = 512
    max_tokens: int = 256
    published_weights: bool = True
    views: int = 2
    texts: int = 2
    icl_weight: float = 1.0
    tcl_weight: float = 0.5
    steps: int | None = None
    epochs: float = 15
    batch_size: int = 128
    learning_rate: float = 5e-5
    weight_decay: float = 1e-4
    warmup: float = 1 / 15
    validations: int = 5
    seed: int = 0
    shares: tuple[float, ...] | None = None
    draw: str = "first"
    augment: bool = True
    mvs: bool = True
    false_negatives: str = "keep"
    batches: str = "mixed"
    report_share: float | None = None
    reports_last: float = 0.0
    label_weight: float = 1.0
    rich_prompts: bool = False
    chunk: int | str | None = None
    text_start: int = 0
    image_start: int = 0
    rules: str = "intended"

    def __post_init__(self) -> None:
        if Behaviours.of(self.rules).no_plain_clip and self.views == self.texts == 1:
            for name, value in {"views": 2, "texts": 2, "icl_weight": 0.0, "tcl_weight": 0.0}.items():
                object.__setattr__(self, name, value)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if self.shares is not None and len(self.shares) != len(self.pretraining):
            raise InputError(f"shares={self.shares} of {','.join(self.pretraining)}: give one share for each role")
        counts = ("image_size", "projection_dim", "max_tokens", "batch_size", "validations")
        in_range = {"pretraining": bool(self.pretraining), "views": self.views in (1, 2), "texts": self.texts in (1, 2),
                  **{name: _is_count(getattr(self, name)) for name in counts},
                  "steps": self.steps is None or _is_count(self.steps), "epochs": self.epochs > 0,
                  "learning_rate": self.learning_rate > 0, "weight_decay": self.weight_decay >= 0,
                  "warmup": 0 <= self.warmup <= 1, "icl_weight": self.icl_weight >= 0,
                  "tcl_weight": self.tcl_weight >= 0, "shares": all(0 < share <= 1 for share in self.shares or ()),
                  "report_share": self.report_share is None or 0 < self.report_share < 1,
                  "reports_last": 0 <= self.reports_last < 1, "label_weight": self.label_weight > 0,
                  "text_start": self.text_start >= 0, "image_start": self.image_start >= 0,
                  "chunk": self.chunk in (None, "auto") or _is_count(self.chunk)}
        if wrong := [name for name, right in in_range.items() if not right]:
            raise InputError(f"{wrong[0]}={getattr(self, wrong[0])}: out of range: give a share between 0 and 1, a "
                             "weight of 0 or more, a positive rate or length, a whole number of 1 or more, 1 or 2 "
                             "views and texts, and 0 or more steps of a start")
        if self.batches == "one-source" and self.report_share is not None:
            raise InputError("report_share and one-source batches exclude each other: choose one of them")
        if self.batches == "streamed":
            plain = {"shares": None, "report_share": None, "reports_last": 0.0, "rules": "intended"}
            if other := [name for name, value in plain.items() if getattr(self, name) != value]:
                raise InputError(f"{other[0]} needs studies at random access: leave it out, or batches='streamed'")

    @classmethod
    def at(cls, profile: str, **changes: object) -> Experiment:
        """The experiment at a profile's size, with `changes`; image_encoder may be 'resnet' or 'swin'.

        Raises InputError for an unknown profile or field, naming the known ones.
        """
        if profile not in PROFILES:
            raise InputError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(changes) - set(known)):
            raise InputError(f"unknown parameter {unknown[0]!r} of an experiment: known are {', '.join(known)}")
        if (encoder := changes.get("image_encoder")) in IMAGE_ENCODERS:
            changes["image_encoder"] = IMAGE_ENCODERS[encoder][profile]
        return cls(profile=profile, **{**PROFILES[profile], **changes})

    @property
    def name(self) -> str:
        """Short name for bars and tables, such as 'resnet-small M,C seed 0'."""
        return f"{self.image_encoder} {','.join(self.pretraining)} seed {self.seed}"

    @property
    def method(self) -> str:
        """CXR-CLIP, or CLIP for one image and one text a study."""
        return "CLIP" if self.views == self.texts == 1 else "CXR-CLIP"

    @property
    def run_name(self) -> str:
        """Name of the run in results, the same for all its seeds: method, encoder, data, and what departs from the
        profile's recipe, such as 'CXR-CLIP resnet-small M icl_weight=0.3'."""
        recipe, named = Experiment.at(self.profile), {"mix", "profile", "pretraining", "image_encoder", "seed"}
        named |= {"views", "texts", "icl_weight", "tcl_weight"} if self.method == "CLIP" else set()
        other = [f"{item.name}={getattr(self, item.name)}" for item in fields(self)
                 if item.name not in named and getattr(self, item.name) != getattr(recipe, item.name)]
        return " ".join([self.method, self.image_encoder, ",".join(self.pretraining), *other])
