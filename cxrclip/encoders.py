"""Image and text encoders, pooling, projection, and CXRCLIPModel (paper, section 2.1).

Encoders are chosen by name. "resnet50", "swin-tiny" and "bio-clinical-bert" are those of the paper; "resnet-small",
"swin-small" and "bert-small" are the same kinds of network at a size that one CPU core trains in minutes.
"resnet-small-groupnorm" has no batch statistics, so that the features of an image do not depend on its batch.
Shapes: B images or texts, S pixels a side, L tokens, F features before projection, D embedding dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50
from torchvision.models.resnet import BasicBlock
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bert import BertConfig, BertLayer, BertModel
from transformers.models.swin import SwinConfig, SwinModel
from transformers.utils import ModelOutput

from cxrclip.errors import InputError
from cxrclip.transforms import normalised

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation per channel
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# The small networks differ from the published ones in three more settings:
# - Eager attention: with so few tokens, on CPUs, it is at least as fast as SDPA (benchmarks/bench_encoders.py).
# - A larger initializer_range: with the usual 0.02, attention in a network only 64 wide mixes so little at first that
#   the last token ignores the rest of its text for hundreds of steps. 0.07 is 0.02 * sqrt(768 / 64).
# - No dropout, as they train for minutes only.
SWINS: Mapping[str, Mapping[str, Any]] = {
    "swin-tiny": {},  # the defaults of SwinConfig are microsoft/swin-tiny-patch4-window7-224
    "swin-small": {"embed_dim": 24, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 4,
                   "drop_path_rate": 0.0, "initializer_range": 0.1, "attn_implementation": "eager"},
}
BERTS: Mapping[str, Mapping[str, Any]] = {
    "bio-clinical-bert": {"vocab_size": 28996},  # the rest is BERT base, the defaults of BertConfig
    "bert-small": {"vocab_size": 2000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "intermediate_size": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
                   "initializer_range": 0.07, "attn_implementation": "eager"},
}
Norm = Callable[[int], nn.Module]  # channels -> a normalisation layer
CPU_TOKENS, ON_GPU = 83_200, 16_384  # of texts that go through BERT together: on a CPU, tokens times features; on a GPU
IMAGE_ENCODERS = ("resnet50", "swin-tiny", "resnet-small", "resnet-small-groupnorm", "swin-small")
TEXT_ENCODERS = tuple(BERTS)
IMAGE_POOLINGS = ("mean", "first_token")
TEXT_POOLINGS = ("last_token", "first_token", "mean")


class CXRCLIPConfig(PretrainedConfig):
    """What a CXRCLIPModel is made of; the defaults are the published model.

    Args:
        image_encoder, text_encoder: one of IMAGE_ENCODERS and one of TEXT_ENCODERS.
        image_pooling: "mean" over the feature map; for a Swin also "first_token", its top-left patch.
        text_pooling: "last_token" (published), "first_token" or "mean".
        logit_scale_init: the initial log of the logit scale.
        vocab_size, image_mean, image_std: those of the encoder by default. image_size: pixels a side.

    Raises:
        InputError: an unknown name.
    """

    model_type = "cxrclip"

    def __init__(self, image_encoder: str = "resnet50", text_encoder: str = "bio-clinical-bert",
                 projection_dim: int = 512, image_pooling: str = "mean", text_pooling: str = "last_token",
                 logit_scale_init: float = math.log(1 / 0.07), vocab_size: int | None = None, image_size: int = 224,
                 image_mean: Sequence[float] | None = None, image_std: Sequence[float] | None = None,
                 max_tokens: int = 256, pad_token_id: int = 0, **kwargs: Any) -> None:
        choices = {"image encoder": (image_encoder, IMAGE_ENCODERS), "text encoder": (text_encoder, TEXT_ENCODERS),
                   "image pooling": (image_pooling, IMAGE_POOLINGS if image_encoder in SWINS else ("mean",)),
                   "text pooling": (text_pooling, TEXT_POOLINGS)}
        for what, (name, known) in choices.items():
            if name not in known:
                raise InputError(f"unknown {what} {name!r}: choose one of {', '.join(known)}")
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
    """Two encoders, two linear projections with bias, one learnable logit scale (paper, section 2.1)."""

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
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init)))  # log s, not clamped
        self.post_init()

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) normalised, or (B, 1, S, S) gray of 0 to 1 -> (B, F), pooled, before projection: what a linear
        probe sees."""
        if pixel_values.shape[1] == 1:
            pixel_values = normalised(pixel_values, self.config.image_mean, self.config.image_std)
        return self.image_encoder(pixel_values)

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, F), pooled, before projection."""
        return self.text_encoder(input_ids, attention_mask)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D), projected but not normalised, as in transformers' CLIPModel."""
        return self.image_projection(self.encode_images(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, D), projected but not normalised, as in transformers' CLIPModel."""
        return self.text_projection(self.encode_texts(input_ids, attention_mask))

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D) unit rows: what a cosine compares."""
        return F.normalize(self.get_image_features(pixel_values), dim=-1)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, D) unit rows: what a cosine compares."""
        return F.normalize(self.get_text_features(input_ids, attention_mask), dim=-1)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> CXRCLIPOutput:
        """pixel_values (B, 3, S, S), input_ids and attention_mask (B', L) -> CXRCLIPOutput."""
        image_embeds = self.embed_images(pixel_values)                # (B, D)
        text_embeds = self.embed_texts(input_ids, attention_mask)     # (B', D)
        scale = self.logit_scale.exp()
        logits = scale * image_embeds @ text_embeds.T                 # (B, B')
        return CXRCLIPOutput(image_embeds, text_embeds, logits, logits.T, scale)

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of each part: image_encoder, text_encoder, the projections, logit_scale."""
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in self.named_children()}
        return counts | {"logit_scale": self.logit_scale.numel()}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Called for the projections and ResNets only: BERT and Swin are initialised by their own classes.
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
    """Four stages of one basic block each: (B, 3, S, S) -> (B, 192, S / 32, S / 32).

    The stem is 3 x 3 with stride 2 and no max-pooling, so that a line or a nodule two pixels wide survives it.
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
        for module in self.network.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(in_float32)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F, S / P, S / P)."""
        tokens = self.network(pixel_values).last_hidden_state                                 # (B, cells, F)
        return tokens.transpose(1, 2).unflatten(2, (-1, math.ceil(pixel_values.shape[-1] / self.cell)))


def in_float32(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A normalisation layer's input in float32 also under autocast, as on a GPU: nearer to float32, and faster."""
    return (inputs[0].float(),)


class ImageEncoder(nn.Module):
    """A network that computes a feature map, and its pooling: (B, 3, S, S) -> (B, F)."""

    def __init__(self, body: ResNet50 | SmallResNet | Swin, pooling: str) -> None:
        super().__init__()
        self.body, self.pooling, self.features = body, pooling, body.features

    @property
    def network(self) -> nn.Module:
        """The torchvision or transformers network inside."""
        return self.body.get_submodule("network")

    def feature_map(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F, h, w), before pooling."""
        return self.body(pixel_values)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F), pooled."""
        features = self.feature_map(pixel_values)                     # (B, F, h, w)
        return features.mean(dim=(2, 3)) if self.pooling == "mean" else features[:, :, 0, 0]


def build_image_encoder(config: CXRCLIPConfig) -> ImageEncoder:
    """The image encoder that `config` names, with random weights. InputError if its windows need a larger image."""
    bodies: Mapping[str, Callable[[], ResNet50 | SmallResNet | Swin]] = {
        "resnet50": ResNet50, "resnet-small": SmallResNet,
        "resnet-small-groupnorm": partial(SmallResNet, norm=partial(nn.GroupNorm, 8)),
        **dict.fromkeys(SWINS, partial(Swin, config))}
    return ImageEncoder(bodies[config.image_encoder](), config.image_pooling)


def _conv_norm(inputs: int, outputs: int, kernel: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, norm(outputs))


# ---- text encoders --------------------------------------------------------------------------------------------------


class TextEncoder(nn.Module):
    """BERT and its pooling: (B, L) token ids and mask -> (B, F).

    Texts of similar length go through BERT together, cut to the longest among them, so that no time is spent on the
    padding of a short impression beside a long findings section. The last layer is computed only for the token that
    the pooling reads. The features are those of one pass of BERT over the batch.
    """

    def __init__(self, network: BertModel, pooling: str) -> None:
        super().__init__()
        self.network, self.pooling, self.features = network, pooling, network.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, F)."""
        lengths = attention_mask.sum(dim=1)                           # (B,)
        order = lengths.argsort(stable=True)
        at_once = ON_GPU if input_ids.is_cuda else CPU_TOKENS // self.features
        parts = []
        for rows in order.split(sizes_of_like_length(lengths[order].tolist(), at_once)):
            longest = lengths[rows[-1]]
            parts.append(self.pooled(input_ids[rows, :longest], attention_mask[rows, :longest]))
        return torch.cat(parts)[order.argsort()]                      # (B, F)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As forward, but all texts at once and padded to one length."""
        *layers, last = self.network.encoder.layer
        tokens = self.network.embeddings(input_ids)                   # (B, L, F)
        mask = create_bidirectional_mask(self.network.config, tokens, attention_mask)
        for layer in layers:
            tokens = layer(tokens, mask)
        if self.pooling == "mean":
            weights = attention_mask[:, :, None].to(tokens.dtype)
            return (last(tokens, mask) * weights).sum(dim=1) / weights.sum(dim=1)
        token = tokens[:, 0] if self.pooling == "first_token" else last_token(tokens, attention_mask)
        return bert_layer_at(cast(BertLayer, last), token, tokens, attention_mask)


def bert_layer_at(layer: BertLayer, token: Tensor, tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """What `layer` makes of one token of each text, and of no other.

    token (B, F), out of tokens (B, L, F); attention_mask (B, L) -> (B, F).
    """
    attention, query = layer.attention.self, token[:, None]           # (B, 1, F)
    q, k, v = (linear(x).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2) for linear, x in
               ((attention.query, query), (attention.key, tokens), (attention.value, tokens)))    # (B, heads, ., .)
    mixed = F.scaled_dot_product_attention(q, k, v, attention_mask[:, None, None].bool(),
                                           attention.dropout.p if layer.training else 0.0)
    attended = layer.attention.output(mixed.transpose(1, 2).flatten(2), query)
    return layer.feed_forward_chunk(attended)[:, 0]


def sizes_of_like_length(lengths: Sequence[int], at_once: int) -> list[int]:
    """How many of the texts of ascending `lengths` go together: as many as have `at_once` tokens, padding included."""
    sizes = [0]
    for length in lengths:
        if sizes[-1] and (sizes[-1] + 1) * length > at_once:
            sizes.append(0)
        sizes[-1] += 1
    return sizes


def build_text_encoder(config: CXRCLIPConfig) -> TextEncoder:
    """The text encoder that `config` names, with random weights. InputError if it cannot read max_tokens tokens."""
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


AutoConfig.register(CXRCLIPConfig.model_type, CXRCLIPConfig)
AutoModel.register(CXRCLIPConfig, CXRCLIPModel)
