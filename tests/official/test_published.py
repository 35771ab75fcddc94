"""The published weights that training starts from: found, named where they are lacking, and put in their place."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import ResNet50_Weights, resnet50

from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.official import published


def test_published_weights_that_cannot_be_fetched_are_named(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(published.BertModel, "from_pretrained", offline)
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", offline)
    monkeypatch.setattr(published.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(InputError, match="bio-clinical-bert: emilyalsentzer/Bio_ClinicalBERT is not on this machine"):
        published._published_weights("bio-clinical-bert")
    with pytest.raises(InputError, match="resnet50: IMAGENET1K_V1 is not on this machine"):
        published._published_weights("resnet50")
    with pytest.raises(InputError, match="emilyalsentzer/Bio_ClinicalBERT is not on this machine"):
        published.published_tokenizer()
    with pytest.raises(InputError, match="unknown published text encoder 'bert-small'"):
        published.published_tokenizer("bert-small")


def test_published_weights_are_put_where_they_belong(monkeypatch):
    reference = resnet50()
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda *_, **__: reference.state_dict())
    model = CXRCLIPModel(CXRCLIPConfig("resnet50", "bert-small", image_size=64, projection_dim=32, vocab_size=90))
    small = model.text_encoder.network.embeddings.word_embeddings.weight.clone()
    published.start_from_published(model)
    assert torch.equal(model.image_encoder.network.conv1.weight, reference.conv1.weight)
    assert torch.equal(model.text_encoder.network.embeddings.word_embeddings.weight, small)
