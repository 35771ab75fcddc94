"""Image and text encoders, pooling, projection, and CXRCLIPModel (paper, section 2.1).

Encoders are chosen by name: "resnet50", "swin-tiny" and "bio-clinical-bert" are the published ones; "resnet-small",
"swin-small" and "bert-small" are the same kinds of network at a size that one CPU core trains in minutes.
"resnet-small-groupnorm" has no batch statistics: batches of one source need it for a fair test (comparisons.remedies).
Shapes: B images or texts, S pixels a side, L tokens, F features before projection, D embedding dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import constants as hub
from huggingface_hub.utils import logging as hub_logging
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.models.resnet import BasicBlock
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SwinConfig,
    SwinModel,
)
from transformers.utils import ModelOutput

from cxrclip.errors import InputError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation per channel
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# On CPUs, eager attention is as fast as SDPA or faster for so few tokens (benchmarks/bench_encoders.py). The small
# networks start from wider weights: with the usual 0.02 a layer only 64 wide hardly passes anything on, and the last
# token does not hear of the others for hundreds of steps. 0.07 is 0.02 scaled by the root of the widths, 768 and 64.
# They train for minutes, so nothing is dropped at random.
SWINS: Mapping[str, Mapping] = {
    "swin-tiny": {},  # the defaults of SwinConfig are microsoft/swin-tiny-patch4-window7-224
    "swin-small": {"embed_dim": 24, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 4,
                   "drop_path_rate": 0.0, "initializer_range": 0.1, "attn_implementation": "eager"},
}
BERTS: Mapping[str, Mapping] = {
    "bio-clinical-bert": {"vocab_size": 28996},  # the rest is BERT base, the defaults of BertConfig
    "bert-small": {"vocab_size": 2000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "intermediate_size": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
                   "initializer_range": 0.07, "attn_implementation": "eager"},
}
Norm = Callable[[int], nn.Module]  # channels -> a normalisation layer
TEXTS_AT_ONCE = 32  # texts of like length in one pass of BERT
IMAGE_ENCODERS = ("resnet50", "swin-tiny", "resnet-small", "resnet-small-groupnorm", "swin-small")
TEXT_ENCODERS = tuple(BERTS)
IMAGE_POOLINGS = ("mean", "first_token")
TEXT_POOLINGS = ("last_token", "first_token", "mean")
PUBLISHED_WEIGHTS = {"resnet50": "IMAGENET1K_V1", "swin-tiny": "microsoft/swin-tiny-patch4-window7-224",
                     "bio-clinical-bert": "emilyalsentzer/Bio_ClinicalBERT"}


class CXRCLIPConfig(PretrainedConfig):
    """What a CXRCLIPModel is made of; the defaults are the published model.

    image_encoder, text_encoder: a name of IMAGE_ENCODERS, TEXT_ENCODERS. image_pooling: "mean" over all places, or
    "first_token", the top-left patch that the released code takes of Swin (ledger B8). text_pooling: "last_token"
    (published), "first_token" or "mean". logit_scale_init: initial log of the logit scale. vocab_size, image_mean and
    image_std default to those of the encoder. image_size: pixels a side.
    Raises InputError for an unknown name, or an image too small for the encoder's windows.
    """

    model_type = "cxrclip"

    def __init__(self, image_encoder: str = "resnet50", text_encoder: str = "bio-clinical-bert",
                 projection_dim: int = 512, image_pooling: str = "mean", text_pooling: str = "last_token",
                 logit_scale_init: float = math.log(1 / 0.07), vocab_size: int | None = None, image_size: int = 224,
                 image_mean: Sequence[float] | None = None, image_std: Sequence[float] | None = None,
                 max_tokens: int = 256, pad_token_id: int = 0, **kwargs: object) -> None:
        _check_name("image encoder", image_encoder, IMAGE_ENCODERS)
        _check_name("text encoder", text_encoder, TEXT_ENCODERS)
        _check_name("image pooling", image_pooling, IMAGE_POOLINGS if image_encoder in SWINS else ("mean",))
        _check_name("text pooling", text_pooling, TEXT_POOLINGS)
        mean, std = HALF if image_encoder in SWINS else IMAGENET
        self.image_encoder, self.image_pooling = image_encoder, image_pooling
        self.text_encoder, self.text_pooling = text_encoder, text_pooling
        self.projection_dim, self.logit_scale_init = projection_dim, logit_scale_init
        self.vocab_size = vocab_size or BERTS[text_encoder]["vocab_size"]
        self.image_size, self.max_tokens = image_size, max_tokens
        self.image_mean, self.image_std = list(image_mean or mean), list(image_std or std)
        super().__init__(**kwargs)
        self.pad_token_id = pad_token_id


@dataclass
class CXRCLIPOutput(ModelOutput):
    """image_embeds (B, D) and text_embeds (B', D), unit rows; logits_per_image (B, B') = s * image_embeds @
    text_embeds.T and its transpose logits_per_text; logit_scale s, the multiplier, a scalar."""

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    logit_scale: Tensor | None = None


class CXRCLIPModel(PreTrainedModel):
    """Two encoders, two linear projections with bias, one learnable logit scale (paper, section 2.1).

    The parameter `logit_scale` is the log of the multiplier in the output; it is not clamped.
    """

    config_class = CXRCLIPConfig
    base_model_prefix = "cxrclip"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: CXRCLIPConfig) -> None:
        super().__init__(config)
        self.image_encoder = build_image_encoder(config)
        self.text_encoder = build_text_encoder(config)
        self.image_projection = nn.Linear(self.image_encoder.features, config.projection_dim)
        self.text_projection = nn.Linear(self.text_encoder.features, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init)))
        self.post_init()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F), before projection: what the linear probe sees."""
        return self.image_encoder(pixel_values)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, F), before projection."""
        return self.text_encoder(input_ids, attention_mask)

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D) unit rows."""
        return F.normalize(self.image_projection(self.get_image_features(pixel_values)), dim=-1)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, D) unit rows."""
        return F.normalize(self.text_projection(self.get_text_features(input_ids, attention_mask)), dim=-1)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> CXRCLIPOutput:
        """pixel_values (B, 3, S, S), input_ids and attention_mask (B', L) -> CXRCLIPOutput."""
        image_embeds = self.embed_images(pixel_values)                # (B, D)
        text_embeds = self.embed_texts(input_ids, attention_mask)     # (B', D)
        scale = self.logit_scale.exp()
        logits = scale * image_embeds @ text_embeds.T                 # (B, B')
        return CXRCLIPOutput(image_embeds, text_embeds, logits, logits.T, scale)

    def load_published_encoders(self) -> None:
        """Start both encoders from the weights that the paper started from (fetched once, then from the cache).

        ResNet-50 and Swin-Tiny: ImageNet; BERT: Bio_ClinicalBERT. Small encoders have none and stay as they are.
        Raises InputError naming the weights if they are neither here nor can be fetched.
        """
        names = {self.config.image_encoder: self.image_encoder, self.config.text_encoder: self.text_encoder}
        for name, encoder in names.items():
            if name in PUBLISHED_WEIGHTS:
                encoder.network.load_state_dict(_published_weights(name))

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of each part: image_encoder, text_encoder, the projections, logit_scale."""
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in self.named_children()}
        return counts | {"logit_scale": self.logit_scale.numel()}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Reached for what is ours: projections and ResNets. BERT and Swin bring their own rule.
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's ResNet
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.Linear):
            module.reset_parameters()
        elif module is self:
            nn.init.constant_(self.logit_scale, self.config.logit_scale_init)


# ---- image encoders -------------------------------------------------------------------------------------------------


class ResNet50(nn.Module):
    """torchvision's ResNet-50 up to its last feature map: (B, 3, S, S) -> (B, 2048, S / 32, S / 32)."""

    features = 2048

    def __init__(self) -> None:
        super().__init__()
        self.network = resnet50()
        self.network.fc = nn.Identity()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 2048, S / 32, S / 32)."""
        net = self.network
        x = net.maxpool(net.relu(net.bn1(net.conv1(pixel_values))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))


class SmallResNet(nn.Module):
    """Four stages of one basic block, (B, 3, S, S) -> (B, 192, S / 32, S / 32).

    The stem is 3 x 3 with stride 2 and no max-pool: a line or a nodule of two pixels survives it.
    """

    widths = (24, 48, 96, 192)
    features = widths[-1]

    def __init__(self, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(3, self.widths[0], 3, norm), nn.ReLU(inplace=True))
        inputs = (self.widths[0], *self.widths[:-1])
        self.stages = nn.Sequential(*(BasicBlock(i, o, stride=2, downsample=_conv_norm(i, o, 1, norm), norm_layer=norm)
                                      for i, o in zip(inputs, self.widths, strict=True)))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 192, S / 32, S / 32)."""
        x = pixel_values.contiguous(memory_format=torch.channels_last)  # a third faster on CPUs
        return self.stages(self.stem(x))


class Swin(nn.Module):
    """transformers' Swin as a feature map: (B, 3, S, S) -> (B, F, S / P, S / P); P = 32 (tiny) or 16 (small)."""

    def __init__(self, config: CXRCLIPConfig) -> None:
        super().__init__()
        swin = SwinConfig(image_size=config.image_size, **SWINS[config.image_encoder])
        self.cell = swin.patch_size * 2 ** (len(swin.depths) - 1)  # pixels a side of a cell of the map
        if config.image_size < swin.window_size * self.cell:
            raise InputError(f"image_size {config.image_size} is too small for {config.image_encoder}: its last stage "
                             f"needs {swin.window_size * self.cell} pixels a side")
        self.network = SwinModel(swin, add_pooling_layer=False)
        self.features = self.network.num_features

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F, S / P, S / P)."""
        tokens = self.network(pixel_values).last_hidden_state                                 # (B, cells, F)
        return tokens.transpose(1, 2).unflatten(2, (-1, math.ceil(pixel_values.shape[-1] / self.cell)))


class ImageEncoder(nn.Module):
    """A network that makes a feature map, and its pooling: (B, 3, S, S) -> (B, F)."""

    def __init__(self, body: nn.Module, pooling: str) -> None:
        super().__init__()
        self.body, self.pooling, self.features = body, pooling, body.features

    @property
    def network(self) -> nn.Module:
        """The torchvision or transformers network inside."""
        return self.body.network

    def feature_map(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F, h, w), for saliency maps."""
        return self.body(pixel_values)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F), pooled."""
        features = self.feature_map(pixel_values)                     # (B, F, h, w)
        return features.mean(dim=(2, 3)) if self.pooling == "mean" else features[:, :, 0, 0]


def build_image_encoder(config: CXRCLIPConfig) -> ImageEncoder:
    """The image encoder that the configuration names, with random weights; `.features` is F."""
    bodies = {"resnet50": ResNet50, "resnet-small": SmallResNet,
              "resnet-small-groupnorm": partial(SmallResNet, norm=partial(nn.GroupNorm, 8))}
    body = Swin(config) if config.image_encoder in SWINS else bodies[config.image_encoder]()
    return ImageEncoder(body, config.image_pooling)


def _conv_norm(inputs: int, outputs: int, kernel: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, norm(outputs))


# ---- text encoders --------------------------------------------------------------------------------------------------


class TextEncoder(nn.Module):
    """BERT and its pooling: (B, L) token ids and mask -> (B, F).

    Texts of like length go through BERT together, cut to the longest among them: a short impression does not pay for
    the padding of a long findings section. The features are those of one pass over the whole batch.
    """

    def __init__(self, network: BertModel, pooling: str) -> None:
        super().__init__()
        self.network, self.pooling, self.features = network, pooling, network.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, F)."""
        lengths = attention_mask.sum(dim=1)                           # (B,)
        order = lengths.argsort(stable=True)
        parts = []
        for rows in order.split(TEXTS_AT_ONCE):
            longest = lengths[rows[-1]]
            parts.append(self._pooled(input_ids[rows, :longest], attention_mask[rows, :longest]))
        return torch.cat(parts)[order.argsort()]                      # (B, F)

    def _pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.network(input_ids, attention_mask=attention_mask).last_hidden_state     # (B, L, F)
        if self.pooling == "first_token":
            return tokens[:, 0]
        if self.pooling == "last_token":
            return last_token(tokens, attention_mask)
        mask = attention_mask[:, :, None].to(tokens.dtype)
        return (tokens * mask).sum(dim=1) / mask.sum(dim=1)


def build_text_encoder(config: CXRCLIPConfig) -> TextEncoder:
    """The text encoder that the configuration names, with random weights; `.features` is F."""
    settings = dict(BERTS[config.text_encoder]) | {"vocab_size": config.vocab_size, "pad_token_id": config.pad_token_id}
    bert = BertConfig(**settings)
    if config.max_tokens > bert.max_position_embeddings:
        raise InputError(f"max_tokens {config.max_tokens}: {config.text_encoder} reads at most "
                         f"{bert.max_position_embeddings} tokens")
    return TextEncoder(BertModel(bert, add_pooling_layer=False), config.text_pooling)


def last_token(tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """The last token that is no padding, [SEP]: tokens (B, L, F), attention_mask (B, L) of 0/1 -> (B, F)."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    last = (attention_mask * places).argmax(dim=1)                    # (B,)
    return tokens[torch.arange(len(tokens), device=tokens.device), last]


# ---- tokenizers and published weights -------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> PreTrainedTokenizerFast:
    """A lower-case WordPiece vocabulary of at most `vocab_size` pieces (but every character), learnt from `texts`.

    As BERT: [CLS] text [SEP], and [PAD] is 0. The same texts, in any order, always give the same vocabulary.
    Raises InputError if there is no text.
    """
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise InputError("train_tokenizer: no text to learn a vocabulary from: look at the pretraining studies")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
             "mask_token": "[MASK]"}
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    # The trainer numbers the pieces "##a" in the order of a randomly seeded hash table, and ties go by number. Given
    # as special tokens they are numbered here; a second tokenizer, below, knows them as ordinary pieces.
    inner = sorted({f"##{letter}" for word in words for letter in word[1:]})
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, splitter
    learner.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*names.values(), *inner], show_progress=False))
    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"],
                                   **names)


def published_tokenizer(text_encoder: str = "bio-clinical-bert") -> PreTrainedTokenizerBase:
    """The tokenizer of a published text encoder, fetched once. Raises InputError where there is none."""
    _check_name("published text encoder", text_encoder, [name for name in TEXT_ENCODERS if name in PUBLISHED_WEIGHTS])
    return _fetch(text_encoder, lambda **where: AutoTokenizer.from_pretrained(PUBLISHED_WEIGHTS[text_encoder], **where))


def published_place(name: str) -> tuple[str, Path]:
    """Where the weights of a published encoder come from, and the file or folder that they belong into here.

    ResNet-50: one file of torch hub (TORCH_HOME moves it). The others: a folder of the Hugging Face cache (HF_HOME).
    """
    source = PUBLISHED_WEIGHTS[name]
    if name == "resnet50":
        url = ResNet50_Weights[source].url
        return url, Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    folder = f"models--{source.replace('/', '--')}"
    return f"{hub.ENDPOINT}/{source}", Path(hub.HF_HUB_CACHE) / folder


def published_fetched(image_encoder: str, text_encoder: str) -> None:
    """Fetch what an experiment with these encoders starts from, so that a fault shows before any work.

    Small encoders start from nothing. Raises InputError naming the weights, their source and their place here.
    """
    for name in (image_encoder, text_encoder):
        if name in PUBLISHED_WEIGHTS:
            _published_weights(name)
    if text_encoder in PUBLISHED_WEIGHTS:
        published_tokenizer(text_encoder)


def _published_weights(name: str) -> dict[str, Tensor]:
    source = PUBLISHED_WEIGHTS[name]
    if name == "resnet50":
        weights = _fetch(name, _resnet50_weights)
        return {key: tensor for key, tensor in weights.items() if not key.startswith("fc.")}
    kind = SwinModel if name in SWINS else BertModel
    return _fetch(name, lambda **where: kind.from_pretrained(source, add_pooling_layer=False, **where).state_dict())


def _resnet50_weights(local_files_only: bool = False) -> dict[str, Tensor]:
    _, place = published_place("resnet50")
    if local_files_only and not place.is_file():
        raise FileNotFoundError(place)
    return ResNet50_Weights[PUBLISHED_WEIGHTS["resnet50"]].get_state_dict(check_hash=True)


def _fetch(name: str, get: Callable[..., object]) -> object:
    """What is in the cache, without asking the network; else from the network."""
    try:
        with suppress(OSError):
            return get(local_files_only=True)
        with _without_retry_lines():
            return get()
    except OSError as fault:  # a network that is not there is an OSError, from urllib as from huggingface_hub
        address, place = published_place(name)
        how = f"download {address} to {place}" if name == "resnet50" else (
            f"where there is a network, run `hf download {PUBLISHED_WEIGHTS[name]}` ({address}) and copy what it made "
            f"to {place}")
        raise InputError(f"{name}: {PUBLISHED_WEIGHTS[name]} is not on this machine and cannot be fetched: "
                         f"{how}") from fault
    except (EOFError, RuntimeError, UnpicklingError) as fault:  # how torch tells of a file that was cut off
        raise InputError(f"{name}: {published_place(name)[1]} is damaged ({type(fault).__name__}): delete it and fetch "
                         "it again") from fault


@contextmanager
def _without_retry_lines() -> Iterator[None]:
    """Keep huggingface_hub from a line for each of its retries: one line, ours, says what failed."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def _check_name(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise InputError(f"unknown {what} {name!r}: choose one of {', '.join(known)}")


AutoConfig.register(CXRCLIPConfig.model_type, CXRCLIPConfig)
AutoModel.register(CXRCLIPConfig, CXRCLIPModel)
