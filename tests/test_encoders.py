"""Shapes, pooling against plain loops, padding, saving and loading, tokenizers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models import ResNet50_Weights, resnet50
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast, SwinConfig, SwinModel

from cxrclip import encoders
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel, build_image_encoder, build_text_encoder, train_tokenizer
from cxrclip.errors import InputError

TEXTS = ["No pleural effusion.", "Small left pleural effusion with mild atelectasis.", "The heart is normal in size.",
         "Right lower zone consolidation, severe.", "Nodule of 12 mm in the left upper zone."] * 4


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
        assert model.get_image_features(pixels).shape == (3, features)
        assert model.get_text_features(ids, mask).shape == (5, 64)
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
        image = model.get_image_features(pixels) @ model.image_projection.weight.T + model.image_projection.bias
        text = model.get_text_features(ids, mask) @ model.text_projection.weight.T + model.text_projection.bias
    torch.testing.assert_close(output.image_embeds, image / image.norm(dim=1, keepdim=True))
    torch.testing.assert_close(output.text_embeds, text / text.norm(dim=1, keepdim=True))


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
        together, apart = model.get_image_features(pixels)[:2], model.get_image_features(pixels[:2])
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
        together = model.get_text_features(ids, mask)
        padded = model.get_text_features(nn.functional.pad(ids, (0, 7)), nn.functional.pad(mask, (0, 7)))
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


# ---- tokenizers and published weights -------------------------------------------------------------------------------

TRAIN = """
import json, sys
from cxrclip.encoders import train_tokenizer
print(json.dumps(train_tokenizer(json.load(sys.stdin), vocab_size=120).get_vocab(), sort_keys=True))
"""


def test_vocabulary_is_the_same_in_any_process_and_order():
    other = subprocess.run([sys.executable, "-c", TRAIN], input=json.dumps(TEXTS[::-1]), capture_output=True, text=True,
                           check=True, env=os.environ | {"PYTHONHASHSEED": "5"}).stdout
    for _ in range(3):
        assert train_tokenizer(iter(TEXTS), 120).get_vocab() == json.loads(other)


def test_tokenizer_is_a_berts(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=120)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(tokenizer) <= 120
    batch = tokenizer(["PLEURAL effusion", "no pleural effusion."], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in batch["input_ids"].tolist()]
    assert words[0][0] == words[1][0] == "[CLS]"
    assert words[1][-1] == "[SEP]"
    assert words[0][-1] == "[PAD]"
    assert "pleural" in words[0], "lower case, and a frequent word is one piece"
    assert tokenizer.decode(tokenizer("Left nodule of 12 mm.")["input_ids"], skip_special_tokens=True) == (
        "left nodule of 12 mm.")
    assert tokenizer("##a [MASK]é€")["input_ids"][0] == 2
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert again.pad_token_id == 0


def test_inner_pieces_are_no_special_tokens():
    tokenizer = train_tokenizer(TEXTS, vocab_size=120)
    assert set(tokenizer.all_special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    ids = tokenizer("noles", add_special_tokens=False)["input_ids"]
    assert len(tokenizer.decode(ids, skip_special_tokens=True)) == len("noles")


def test_no_text_no_vocabulary():
    with pytest.raises(InputError, match="no text to learn a vocabulary from"):
        train_tokenizer(["", " "])


def test_published_weights_that_cannot_be_fetched_are_named(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(encoders.BertModel, "from_pretrained", offline)
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", offline)
    monkeypatch.setattr(encoders.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(InputError, match="bio-clinical-bert: emilyalsentzer/Bio_ClinicalBERT is not on this machine"):
        encoders._published_weights("bio-clinical-bert")
    with pytest.raises(InputError, match="resnet50: IMAGENET1K_V1 is not on this machine"):
        encoders._published_weights("resnet50")
    with pytest.raises(InputError, match="emilyalsentzer/Bio_ClinicalBERT is not on this machine"):
        encoders.published_tokenizer()
    with pytest.raises(InputError, match="unknown published text encoder 'bert-small'"):
        encoders.published_tokenizer("bert-small")


def test_published_weights_are_put_where_they_belong(monkeypatch):
    reference = resnet50()
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda *_, **__: reference.state_dict())
    model = small_model(image_encoder="resnet50")
    small = model.text_encoder.network.embeddings.word_embeddings.weight.clone()
    model.load_published_encoders()
    assert torch.equal(model.image_encoder.network.conv1.weight, reference.conv1.weight)
    assert torch.equal(model.text_encoder.network.embeddings.word_embeddings.weight, small)


def test_projections_start_as_torch_linear_layers():
    bound = 1 / math.sqrt(192)
    weight = small_model(projection_dim=256).image_projection.weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("pooling", encoders.TEXT_POOLINGS)
def test_texts_in_groups_of_like_length_give_the_features_of_one_pass(pooling, monkeypatch):
    config = CXRCLIPConfig("resnet-small", "bert-small", projection_dim=8, image_size=64, vocab_size=50,
                           text_pooling=pooling)
    encoder = encoders.build_text_encoder(config).eval().double()
    lengths = torch.tensor([9, 2, 30, 5, 5, 17, 3])
    mask = (torch.arange(30) < lengths[:, None]).long()
    ids = torch.randint(5, 50, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    results = {}
    for at_once in (100, 3, 1):
        monkeypatch.setattr(encoders, "TEXTS_AT_ONCE", at_once)
        encoder.zero_grad()
        features = encoder(ids, mask)
        (features * torch.arange(7.0, dtype=torch.float64)[:, None]).sum().backward()
        results[at_once] = features.detach(), encoder.network.embeddings.word_embeddings.weight.grad.clone()
    for at_once in (3, 1):
        torch.testing.assert_close(results[at_once], results[100], atol=1e-10, rtol=1e-8)
