"""Shapes, pooling against plain loops, projected and pooled features told apart by value, saving and loading."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel, SwinConfig, SwinModel

from cxrclip import encoders
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel, build_image_encoder, build_text_encoder
from cxrclip.errors import InputError


def small_config(**changes):
    settings = {"image_encoder": "resnet-small", "text_encoder": "bert-small", "image_size": 64, "projection_dim": 32,
                "vocab_size": 90, "max_tokens": 64}
    return CXRCLIPConfig(**settings | changes)


def small_model(**changes):
    torch.manual_seed(0)
    return CXRCLIPModel(small_config(**changes)).eval()


def inputs(texts=5, images=3, length=9, size=64):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 90, (texts, length), generator=generator)
    mask = (torch.arange(length) < torch.randint(2, length + 1, (texts, 1), generator=generator)).long()
    return torch.randn(images, 3, size, size, generator=generator), ids * mask, mask


# ---- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image_encoder", "features"), [("resnet-small", 192), ("resnet-small-groupnorm", 192),
                                                         ("swin-small", 96)])
def test_forward_shapes_and_unit_rows(image_encoder, features):
    model = small_model(image_encoder=image_encoder)
    pixels, ids, mask = inputs()
    with torch.no_grad():
        output = model(pixels, ids, mask)
        assert model.encode_images(pixels).shape == (3, features)
        assert model.encode_texts(ids, mask).shape == (5, 64)
    assert output.image_embeds.shape == (3, 32)
    assert output.text_embeds.shape == (5, 32)
    torch.testing.assert_close(output.image_embeds.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(output.text_embeds.norm(dim=1), torch.ones(5))
    assert output.logit_scale.item() == pytest.approx(1 / 0.07)
    for i in range(3):
        for t in range(5):
            expected = (output.image_embeds[i] * output.text_embeds[t]).sum() / 0.07
            assert output.logits_per_image[i, t].item() == pytest.approx(expected.item(), abs=1e-4)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)


def test_embeds_are_the_projected_features():
    model = small_model()
    nn.init.normal_(model.image_projection.bias)
    pixels, ids, mask = inputs()
    with torch.no_grad():
        output = model(pixels, ids, mask)
        image = model.encode_images(pixels) @ model.image_projection.weight.T + model.image_projection.bias
        text = model.encode_texts(ids, mask) @ model.text_projection.weight.T + model.text_projection.bias
    torch.testing.assert_close(output.image_embeds, image / image.norm(dim=1, keepdim=True))
    torch.testing.assert_close(output.text_embeds, text / text.norm(dim=1, keepdim=True))


def test_features_of_equal_width_before_and_after_projection_are_told_apart_by_value():
    """F = D = 64 for images and texts, as 768 wide Swin and BERT features may be: no shape would betray a mix-up.

    `get_*_features` are projected, as in transformers' CLIPModel; `encode_*` are what is projected.
    """
    model = small_model(projection_dim=64)
    model.image_encoder.body.stages[-1] = nn.Sequential(model.image_encoder.body.stages[-1], nn.Conv2d(192, 64, 1))
    model.image_projection = nn.Linear(64, 64)
    pixels, ids, mask = inputs(texts=3)
    with torch.no_grad():
        sides = {"image": (model.encode_images(pixels), model.get_image_features(pixels), model.embed_images(pixels)),
                 "text": (model.encode_texts(ids, mask), model.get_text_features(ids, mask),
                          model.embed_texts(ids, mask))}
        cosines = {}
        for side, (pooled, projected, unit) in sides.items():
            assert pooled.shape == projected.shape == unit.shape == (3, 64)
            assert torch.equal(projected, getattr(model, f"{side}_projection")(pooled))
            assert (projected - pooled).abs().max() > 0.1
            assert (projected.norm(dim=1) - 1).abs().max() > 1e-3, "not normalised"
            assert torch.equal(unit, nn.functional.normalize(projected, dim=-1))
        for k, name in enumerate(("pooled", "projected", "unit")):
            image, text = (nn.functional.normalize(sides[side][k], dim=-1) for side in ("image", "text"))
            cosines[name] = image @ text.T
        torch.testing.assert_close(cosines["projected"], cosines["unit"])
        torch.testing.assert_close(model(pixels, ids, mask).logits_per_image * 0.07, cosines["unit"])
        assert (cosines["pooled"] - cosines["unit"]).abs().max() > 0.05


def test_the_names_mean_what_they_mean_in_transformers():
    """CLIPModel and CXRCLIPModel: normalised `get_*_features` are the embeddings of the output."""
    clip = CLIPModel(CLIPConfig(text_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                                             "intermediate_size": 32, "vocab_size": 90, "eos_token_id": 1},
                                vision_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                                               "intermediate_size": 32, "image_size": 64, "patch_size": 32},
                                projection_dim=32)).eval()
    pixels, ids, mask = inputs()
    for model in (clip, small_model()):
        with torch.no_grad():
            output = model(pixel_values=pixels, input_ids=ids, attention_mask=mask)
            features = model.get_image_features(pixels), model.get_text_features(ids, mask)
        for feature, embeds in zip(features, (output.image_embeds, output.text_embeds), strict=True):
            feature = getattr(feature, "pooler_output", feature)
            torch.testing.assert_close(nn.functional.normalize(feature, dim=-1), embeds)


def test_every_parameter_learns():
    model = small_model().train()
    output = model(*inputs(texts=3))
    nn.functional.cross_entropy(output.logits_per_image, torch.arange(3)).backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert still == [], "a parameter without gradient stops DistributedDataParallel"


def test_seed_decides_the_weights():
    one, two = small_model(), small_model()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    torch.manual_seed(1)
    assert not torch.equal(CXRCLIPModel(small_config()).image_projection.weight, one.image_projection.weight)


@pytest.mark.parametrize(("image_encoder", "alone"), [("resnet-small", False), ("resnet-small-groupnorm", True)])
def test_group_norm_does_not_know_the_batch(image_encoder, alone):
    """While training, the features of a film depend on the other films of the batch with batch norm only."""
    model, (pixels, _, _) = small_model(image_encoder=image_encoder).train(), inputs()
    with torch.no_grad():
        together, apart = model.encode_images(pixels)[:2], model.encode_images(pixels[:2])
    assert torch.allclose(together, apart, atol=1e-5) == alone


@pytest.mark.parametrize("image_encoder", ["resnet-small", "resnet-small-groupnorm", "swin-small"])
def test_save_and_load_are_exact_and_offline(image_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = small_model(image_encoder=image_encoder, image_pooling="mean", text_pooling="mean")
    model.train()(*inputs())  # moves the batch-norm statistics
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is CXRCLIPModel
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    with torch.no_grad():
        before, after = model(*inputs()), loaded(*inputs())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert AutoConfig.from_pretrained(tmp_path).image_encoder == image_encoder
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_parameter_counts_add_up():
    model = small_model()
    counts = model.parameter_counts()
    assert set(counts) == {"image_encoder", "text_encoder", "image_projection", "text_projection", "logit_scale"}
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["image_projection"] == 192 * 32 + 32


def test_published_sizes():
    config = CXRCLIPConfig()
    assert (config.projection_dim, config.image_size, config.max_tokens, config.vocab_size) == (512, 224, 256, 28996)
    assert config.image_mean == [0.485, 0.456, 0.406]
    assert CXRCLIPConfig(image_encoder="swin-tiny").image_mean == [0.5, 0.5, 0.5]
    with torch.device("meta"):
        bert = build_text_encoder(config)
        resnet = build_image_encoder(config)
        swin = build_image_encoder(CXRCLIPConfig(image_encoder="swin-tiny"))
    assert (resnet.features, swin.features, bert.features) == (2048, 768, 768)
    assert sum(p.numel() for p in bert.parameters()) == 107_719_680  # BERT base cased without its pooler
    assert sum(p.numel() for p in resnet.parameters()) == 23_508_032  # ResNet-50 without its classifier
    assert sum(p.numel() for p in swin.parameters()) == 27_519_354  # Swin-Tiny without its classifier


@pytest.mark.parametrize(("changes", "message"), [
    ({"image_encoder": "resnet-51"}, "unknown image encoder 'resnet-51': choose one of resnet50, swin-tiny"),
    ({"text_encoder": "gpt"}, "unknown text encoder 'gpt': choose one of bio-clinical-bert, bert-small"),
    ({"image_pooling": "max"}, "unknown image pooling 'max'"),
    ({"image_pooling": "first_token"}, "unknown image pooling 'first_token': choose one of mean"),
    ({"text_pooling": "cls"}, "unknown text pooling 'cls': choose one of last_token, first_token, mean")])
def test_unknown_names_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        small_config(**changes)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="image_size 64 is too small for swin-tiny: its last stage needs 224"):
        CXRCLIPModel(small_config(image_encoder="swin-tiny"))
    with pytest.raises(InputError, match="max_tokens 600: bert-small reads at most 512"):
        CXRCLIPModel(small_config(max_tokens=600))


# ---- image encoders -------------------------------------------------------------------------------------------------


def test_resnet50_is_torchvisions():
    torch.manual_seed(0)
    ours = build_image_encoder(CXRCLIPConfig()).eval()
    theirs = resnet50().eval()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.network.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels))


def test_swin_pooling_is_the_mean_or_the_top_left_token():
    config = small_config(image_encoder="swin-small", image_pooling="first_token")
    encoder = build_image_encoder(config).eval()
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        tokens = encoder.network(pixels).last_hidden_state
        assert torch.equal(encoder(pixels), tokens[:, 0])
        encoder.pooling = "mean"
        torch.testing.assert_close(encoder(pixels), tokens.mean(dim=1))
        assert encoder.feature_map(pixels).shape == (2, 96, 4, 6)
        assert torch.equal(encoder.feature_map(pixels)[:, :, 1, 2], tokens[:, 6 + 2])


def test_swin_tiny_is_the_published_architecture():
    swin = SwinConfig()
    with torch.device("meta"):
        reference = SwinModel(swin, add_pooling_layer=False)
        ours = build_image_encoder(CXRCLIPConfig(image_encoder="swin-tiny")).network
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert (swin.embed_dim, tuple(swin.depths), swin.window_size, swin.patch_size) == (96, (2, 2, 6, 2), 7, 4)


@pytest.mark.parametrize("image_encoder", ["resnet-small", "swin-small"])
def test_feature_map_keeps_places(image_encoder):
    """A change in the lower right corner moves the lower right cell most."""
    encoder = build_image_encoder(small_config(image_encoder=image_encoder)).eval()
    one = inputs(images=1)[0]
    two = one.clone()
    two[:, :, 52:, 52:] = 3.0
    with torch.no_grad():
        change = (encoder.feature_map(one) - encoder.feature_map(two)).norm(dim=1)[0]
    assert change.argmax() == change.numel() - 1


# ---- text encoders --------------------------------------------------------------------------------------------------


def test_last_token_against_a_plain_loop():
    tokens = torch.randn(4, 6, 3)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]])
    expected = []
    for row, row_mask in zip(tokens, mask.tolist(), strict=True):
        place = len(row_mask) - 1
        while not row_mask[place]:
            place -= 1
        expected.append(row[place])
    assert torch.equal(encoders.last_token(tokens, mask), torch.stack(expected))


@pytest.mark.parametrize("pooling", ["last_token", "first_token", "mean"])
def test_text_pooling_against_a_plain_loop_and_any_padding(pooling):
    model = small_model(text_pooling=pooling)
    _, ids, mask = inputs()
    with torch.no_grad():
        together = model.encode_texts(ids, mask)
        padded = model.encode_texts(nn.functional.pad(ids, (0, 7)), nn.functional.pad(mask, (0, 7)))
        for i, n in enumerate(mask.sum(dim=1).tolist()):
            tokens = model.text_encoder.network(ids[i:i + 1, :n]).last_hidden_state[0]
            alone = {"last_token": tokens[-1], "first_token": tokens[0], "mean": tokens.mean(dim=0)}[pooling]
            torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together, padded, atol=1e-5, rtol=1e-4)


def test_what_the_padding_holds_does_not_matter():
    model = small_model()
    _, ids, mask = inputs()
    with torch.no_grad():
        assert torch.equal(model.embed_texts(ids, mask), model.embed_texts(ids + (1 - mask) * 7, mask))


def test_projections_start_as_torch_linear_layers():
    bound = 1 / math.sqrt(192)
    weight = small_model(projection_dim=256).image_projection.weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def plain_features(encoder, ids, mask):
    """One pass of BERT over all texts, padding and all, then one row of its last layer (or their mean)."""
    tokens = encoder.network(ids, attention_mask=mask).last_hidden_state
    pooled = {"last_token": lambda row, n: row[n - 1], "first_token": lambda row, n: row[0],
              "mean": lambda row, n: row[:n].mean(dim=0)}[encoder.pooling]
    return torch.stack([pooled(row, n) for row, n in zip(tokens, mask.sum(dim=1).tolist(), strict=True)])


def with_gradients(encoder, features_of):
    """Features, and the gradients of a number made of them."""
    encoder.zero_grad()
    features = features_of()
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return [features.detach(), *(parameter.grad.clone() for parameter in encoder.parameters())]


@pytest.mark.parametrize("pooling", encoders.TEXT_POOLINGS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_texts_in_groups_of_like_length_give_the_features_of_one_pass(pooling, attention, monkeypatch):
    """In float32 to 1e-5, features and gradients, whatever goes through BERT together."""
    torch.manual_seed(0)
    monkeypatch.setitem(encoders.BERTS, "bert-small", encoders.BERTS["bert-small"] | {"attn_implementation": attention})
    config = CXRCLIPConfig("resnet-small", "bert-small", projection_dim=8, image_size=64, vocab_size=50,
                           text_pooling=pooling)
    encoder = encoders.build_text_encoder(config).train()
    lengths = torch.tensor([9, 2, 30, 5, 5, 17, 3])
    mask = (torch.arange(30) < lengths[:, None]).long()
    ids = torch.randint(5, 50, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    expected = with_gradients(encoder, lambda: plain_features(encoder, ids, mask))
    for tokens in (10_000, 20, 1):
        monkeypatch.setattr(encoders, "CPU_TOKENS", tokens * encoder.features)
        measured = with_gradients(encoder, lambda: encoder(ids, mask))
        for one, other in zip(measured, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_texts_of_like_length_fill_but_do_not_exceed_what_goes_together():
    assert encoders.sizes_of_like_length([2, 3, 3, 5, 9, 40, 40], 12) == [3, 1, 1, 1, 1]
    assert encoders.sizes_of_like_length([1, 1, 1], 100) == [3]


def test_gray_films_are_normalised_by_the_model():
    model = small_model(image_encoder="resnet-small").eval()
    gray = torch.rand(2, 1, 64, 64)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.config.image_mean, model.config.image_std))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_images(gray), model.encode_images((gray - mean) / std))


def test_swin_normalises_in_float32_under_autocast():
    encoder = build_image_encoder(small_config(image_encoder="swin-small"))
    kinds = set()
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        encoder(torch.randn(1, 3, 64, 64)).sum().backward()
    assert kinds == {torch.float32}
