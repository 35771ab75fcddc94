"""Released weights: a file of the plainly restated released model gives its numbers; any other file gives one line."""

from __future__ import annotations

import json
import os
import zipfile

import numpy as np
import pytest
import torch
from builders import drawn_tests
from sklearn.metrics import roc_auc_score
from torch import nn
from torchvision.models import resnet18, resnet50
from transformers import BertConfig, BertModel, SwinConfig, SwinModel, ViTConfig, ViTModel

from cxrclip import evaluation, metrics
from cxrclip.errors import InputError
from cxrclip.experiments.tokenizer import train_tokenizer
from cxrclip.official import weights as official
from cxrclip.official.weights import load_official, official_tokenizer, random_official
from cxrclip.transforms import EvalTransform

NAMES = {"resnet50": "resnet", "swin-tiny": "microsoft/swin-tiny-patch4-window7-224"}
SCALING = {"resnet50": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "swin-tiny": ((0.5,) * 3, (0.5,) * 3)}
TOLERANCE = 1e-5


# ---- the released model, restated -----------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A network under a name."""

    def __init__(self, name, network):
        super().__init__()
        self.name = name
        self.add_module(name, network)

    @property
    def network(self):
        return getattr(self, self.name)


class Released(nn.Module):
    """What the released code computes: ResNet-50 without fc, or Swin's token 0; BERT's last token; two projections."""

    def __init__(self, encoder):
        super().__init__()
        if encoder == "resnet50":
            network = resnet50()
            del network.fc
            self.image_encoder = Wrapped("resnet", network)
        else:
            self.image_encoder = Wrapped("image_encoder", SwinModel(SwinConfig()))
        self.text_encoder = Wrapped("text_encoder", BertModel(BertConfig(vocab_size=28996)))
        self.image_projection = Wrapped("projection", nn.Linear({"resnet50": 2048, "swin-tiny": 768}[encoder], 512))
        self.text_projection = Wrapped("projection", nn.Linear(768, 512))
        self.logit_scale = nn.Parameter(torch.tensor(3.1))

    def image_features(self, pixels):
        net = self.image_encoder.network
        if self.image_encoder.name == "image_encoder":
            return net(pixels).last_hidden_state[:, 0]
        x = net.maxpool(net.relu(net.bn1(net.conv1(pixels))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x)))).mean(dim=(2, 3))

    def text_features(self, tokens):
        hidden = self.text_encoder.network(**tokens).last_hidden_state
        ends = tokens["attention_mask"].sum(dim=1) - 1
        return torch.stack([row[int(end)] for row, end in zip(hidden, ends, strict=True)])

    def embeds(self, features, side):
        projected = getattr(self, f"{side}_projection").network(features)
        return projected / projected.norm(dim=1, keepdim=True)


def as_in_2023(name):
    """A name of today's SwinModel in the transformers of the released files (4.26)."""
    for new, old in (("attention.q_proj", "attention.self.query"), ("attention.k_proj", "attention.self.key"),
                     ("attention.v_proj", "attention.self.value"), ("attention.o_proj", "attention.output.dense"),
                     ("attention.relative_position_bias.", "attention.self."), ("mlp.fc1", "intermediate.dense"),
                     ("mlp.fc2", "output.dense")):
        name = name.replace(new, old) if name.startswith("image_encoder.image_encoder.") else name
    return name


def released_state(model, old_names=True):
    """The state dict of a released file, with the buffers that transformers 4.26 still saved."""
    state = dict(model.state_dict())
    state |= {name: table for name, table in model.named_buffers() if name.endswith(("relative_position_index",
                                                                                      "position_ids"))}
    return {as_in_2023(name) if old_names else name: tensor for name, tensor in state.items()}


def released_file(path, state, encoder, config=None, **entries):
    """Write the dict of a released file, with everything the released trainer puts beside the weights."""
    if config is None:
        config = {"model": {"name": "clip_custom", "image_encoder": {"source": "x", "name": NAMES[encoder]},
                            "text_encoder": {"pooling": "eos"}, "projection_head": {"name": "linear", "proj_dim": 512}},
                  "base": {"seed": 1234, "image_size": 224, "text_max_length": 256, "output": {"checkpoint": "here"}},
                  "loss": {"mvs": [1.0, None, True]}}
    weights = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(weights.parameters())
    weights(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    torch.save({"model": state, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
                "config": config, "epoch": 15, "train_loss": 1.25, **entries}, path)
    return path


@pytest.fixture(scope="module", params=["resnet50", "swin-tiny"])
def pair(request, tmp_path_factory):
    """The encoder's name, the restated model with random weights, and the model loaded from its file."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Released(request.param).eval()
        for name, buffer in model.named_buffers():  # statistics as after training, not 0 and 1
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.8, 1.5)
    path = tmp_path_factory.mktemp("official") / "model.tar"
    loaded = load_official(released_file(path, released_state(model), request.param))
    path.unlink()
    return request.param, model, loaded


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return drawn_tests("openi", 10, tmp_path_factory.mktemp("openi") / "studies")


@pytest.fixture(scope="module")
def tokenizer(studies):
    return train_tokenizer(evaluation.retrieval_texts(studies)[1])


# ---- the same numbers -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_features_embeds_and_logits_are_those_of_the_released_model(pair, tokenizer):
    _, released, loaded = pair
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tokens = tokenizer(["heart size is normal .", "no pleural effusion", "clear"], padding=True, return_tensors="pt")
    features, texts = released.image_features(pixels), released.text_features(tokens)
    assert torch.allclose(loaded.encode_images(pixels), features, rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.allclose(loaded.encode_texts(**tokens), texts, rtol=TOLERANCE, atol=TOLERANCE)
    embeds = released.embeds(features, "image"), released.embeds(texts, "text")
    found = loaded(pixels, **tokens)
    assert torch.allclose(found.image_embeds, embeds[0], atol=TOLERANCE)
    assert torch.allclose(found.text_embeds, embeds[1], atol=TOLERANCE)
    logits = torch.tensor(3.1).exp() * embeds[0] @ embeds[1].T
    assert torch.allclose(found.logits_per_image, logits, atol=1e-4)  # the scale is 22
    assert torch.allclose(found.logits_per_image.softmax(1), logits.softmax(1), atol=TOLERANCE)
    assert loaded.logit_scale.item() == pytest.approx(3.1)


def test_what_comes_along(pair):
    encoder, _, loaded = pair
    mean, std = SCALING[encoder]
    config = loaded.config
    assert (config.image_encoder, config.image_size, config.max_tokens, config.vocab_size) == (encoder, 224, 256, 28996)
    assert (tuple(config.image_mean), tuple(config.image_std)) == (mean, std)
    assert config.image_pooling == ("mean" if encoder == "resnet50" else "first_token")
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@torch.inference_mode()
def test_ranks_and_metrics_are_those_of_the_released_evaluation(pair, studies, tokenizer):
    encoder, released, loaded = pair
    transform = EvalTransform(loaded.config.image_size, loaded.config.image_mean, loaded.config.image_std)
    images = evaluation.embed_studies(loaded, studies, transform)
    rows, texts = evaluation.retrieval_texts(studies)
    assert len(rows) > 5
    embeds = evaluation.embed_texts(loaded, tokenizer, texts, max_tokens=loaded.config.max_tokens)
    ranks = evaluation.retrieve(images[rows], embeds, texts)["rank"].to_numpy()

    films = [evaluation.decode_gray(study["images"][0]["bytes"], "film") for study in studies]
    pixels = torch.stack([EvalTransform(224, *SCALING[encoder])(film) for film in films])
    theirs = released.embeds(released.image_features(pixels), "image").numpy()
    distinct = list(dict.fromkeys(texts))

    def embedded(words):
        return np.concatenate([released.embeds(released.text_features(tokenizer([word], return_tensors="pt")),
                                               "text").numpy() for word in words])
    similar = theirs[rows] @ embedded(distinct).T
    expected = [len(distinct) - int(np.flatnonzero(np.argsort(line) == distinct.index(text))[0])
                for line, text in zip(similar, texts, strict=True)]
    assert np.allclose(images.embeds, theirs, atol=TOLERANCE)
    assert ranks.tolist() == expected
    assert len(set(expected)) > 1
    assert metrics.recall_at_k(images[rows].embeds, embeds, texts).recall[5] == np.mean([r <= 5 for r in expected])

    prompts = {"Cardiomegaly": (["No Cardiomegaly"], ["Cardiomegaly"])}
    probability = evaluation.zero_shot_scores(images.embeds, evaluation.embed_prompts(loaded, tokenizer, prompts))[:, 0]
    cosines = theirs @ embedded(["No Cardiomegaly", "Cardiomegaly"]).T
    expected = np.exp(cosines[:, 1]) / np.exp(cosines).sum(axis=1)
    truth = np.arange(len(studies)) % 2 == 0
    assert np.allclose(probability, expected, atol=TOLERANCE)
    assert metrics.auroc(probability, truth) == pytest.approx(roc_auc_score(truth, expected))


# ---- files that are whole and still differ --------------------------------------------------------------------------


def expanded(shapes):
    """Tensors of full shape in no space: each is one number, expanded."""
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in shapes.items()}


def hollow(encoder, old_names=True):
    """A released state dict of zeros, without the buffers."""
    with torch.device("meta"):
        shapes = Released(encoder).state_dict()
    return expanded({as_in_2023(name) if old_names else name: tensor for name, tensor in shapes.items()})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A file of random_official and what it loads to: the ResNet."""
    path = random_official(tmp_path_factory.mktemp("random") / "random.tar", seed=5)
    return path, load_official(path)


def same(model, other):
    wanted = other.state_dict()
    return all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("change", ["ddp", "float16", "bfloat16", "no config", "numbers of BERT's pooler"])
def test_prefix_precision_and_config_change_nothing(change, drawn, tmp_path):
    path, expected = drawn
    stored = torch.load(path, weights_only=True)
    assert stored["model"]["logit_scale"].dtype == torch.float16
    if change == "ddp":
        stored["model"] = {f"module.{name}": tensor for name, tensor in stored["model"].items()}
    elif change == "bfloat16":
        stored["model"] = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor
                           for name, tensor in stored["model"].items()}
    elif change == "no config":
        del stored["config"]
    elif change.startswith("numbers"):
        stored["model"]["text_encoder.text_encoder.pooler.dense.bias"] += 1
    torch.save(stored, tmp_path / "changed.tar")
    loaded = load_official(tmp_path / "changed.tar")
    assert loaded.dtype == torch.float32
    assert loaded.config.to_dict() == expected.config.to_dict()
    if change == "bfloat16":
        assert torch.equal(loaded.text_projection.weight, expected.text_projection.weight.bfloat16().float())
    else:
        assert same(loaded, expected)


def test_todays_names_of_swin_are_read_too(tmp_path):
    today = hollow("swin-tiny", old_names=False)
    load_official(released_file(tmp_path / "today.tar", today, "swin-tiny"))
    both = today | {INDEX.replace("relative_position_index", "query.weight"): torch.zeros(96, 96)}
    refused(released_file(tmp_path / "both.tar", both, "swin-tiny"), "1 unknown: image_encoder.*query.weight$")


def test_sizes_and_pooling_of_the_config_come_along(tmp_path):
    config = {"model": {"image_encoder": {"name": NAMES["swin-tiny"]}, "text_encoder": {"pooling": "bos"}},
              "base": {"image_size": 256, "text_max_length": 128}, "unknown": {"deep": [{"er": None}]}}
    loaded = load_official(released_file(tmp_path / "a.tar", hollow("swin-tiny"), "swin-tiny", config)).config
    assert (loaded.image_size, loaded.max_tokens, loaded.text_pooling) == (256, 128, "first_token")


@pytest.mark.parametrize("encoder", ["resnet50", "swin-tiny"])
def test_a_random_file_has_the_names_and_shapes_of_a_released_one(encoder, tmp_path):
    stored = torch.load(random_official(tmp_path / "r.tar", encoder), weights_only=True)
    with torch.device("meta"):
        expected = released_state(Released(encoder))
    assert {name: t.shape for name, t in stored["model"].items()} == {name: t.shape for name, t in expected.items()}
    assert {"model", "optimizer", "scheduler", "config", "epoch", "train_loss"} == set(stored)
    assert [path.name for path in tmp_path.iterdir()] == ["r.tar"]


def test_random_files_follow_the_seed(drawn, tmp_path):
    _, expected = drawn
    before = torch.random.get_rng_state()
    again = random_official(tmp_path / "a.tar", seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(load_official(again), expected)
    assert not same(load_official(random_official(tmp_path / "a.tar", seed=6)), expected)


# ---- files that are refused -----------------------------------------------------------------------------------------


def refused(path, message):
    """load_official names the file and says `message` in one line."""
    with pytest.raises(InputError, match=message) as caught:
        load_official(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


QUERY = "text_encoder.text_encoder.encoder.layer.3.attention.self.query.weight"
INDEX = "image_encoder.image_encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"


@pytest.mark.parametrize(("encoder", "changes", "message"), [
    ("resnet50", {"image_encoder.head.weight": torch.zeros(2)}, "1 unknown: image_encoder.head.weight"),
    ("resnet50", {"logit_bias": torch.zeros(1)}, "1 unknown: logit_bias$"),
    ("resnet50", {"text_encoder.text_encoder.pooler.extra": torch.zeros(1)}, "1 unknown: text_encoder.*pooler.extra"),
    ("resnet50", {QUERY: None}, f"1 lacking: {QUERY}$"),
    ("swin-tiny", {"image_encoder.image_encoder.layernorm.bias": None}, "1 lacking: image_encoder.*layernorm.bias$"),
    ("resnet50", {QUERY: torch.zeros(768, 767)}, f"1 of another shape, kind or content: {QUERY}$"),
    ("resnet50", {"logit_scale": torch.tensor(3)}, "of another shape, kind or content: logit_scale$"),
    ("resnet50", {"logit_scale": torch.tensor(torch.nan)}, "1 tensors hold NaN or infinite numbers: logit_scale"),
    ("resnet50", {"text_encoder.text_encoder.embeddings.position_ids": torch.arange(512).flip(0)[None]},
     "of another shape, kind or content: text_encoder.text_encoder.embeddings.position_ids"),
    ("swin-tiny", {INDEX: torch.zeros(49, 49).long()}, f"of another shape, kind or content: {INDEX}$"),
    ("resnet50", {"text_projection.projection.weight": torch.zeros(256, 768)}, "of another shape"),
    ("resnet50", {"image_encoder.image_encoder.layernorm.bias": torch.zeros(768)}, "holds both a ResNet and a Swin"),
    ("resnet50", {3: torch.zeros(1)}, "'model' holds more than named tensors: 3"),
    ("resnet50", {"logit_scale": 2.5}, "'model' holds more than named tensors: logit_scale"),
    ("resnet50", {"module.logit_scale": torch.zeros(1)}, "1 unknown: module.logit_scale"),
])
def test_a_state_that_does_not_fit_is_listed(encoder, changes, message, tmp_path):
    state = hollow(encoder)
    for name, tensor in changes.items():
        state.pop(name, None) if tensor is None else state.update({name: tensor})
    refused(released_file(tmp_path / "odd.tar", state, encoder), message)


@pytest.mark.parametrize(("config", "message"), [
    ({"model": {"image_encoder": {"name": NAMES["swin-tiny"]}}}, "config names .*swin.*, the weights look like"),
    ({"model": {"image_encoder": {"name": "google/vit-base-patch16-224"}}}, "config names the image encoder 'google"),
    ({"model": {"projection_head": {"proj_dim": 256}}}, "config says projection to 256, the weights project to 512"),
    ({"model": {"text_encoder": {"pooling": "max"}}}, "text_encoder: pooling: .*'eos', 'bos' or 'mean', found"),
    ({"base": {"image_size": "224"}}, "config: base: image_size: .*valid integer, found '224'"),
    ({"base": {"image_size": 0}}, "config: base: image_size: .*greater than or equal to 1, found 0"),
    ({"base": {"text_max_length": 600}}, "max_tokens 600: bio-clinical-bert reads at most 512 tokens"),
    ([1, 2], r"config: `name: value` lines are needed, found \[1, 2\]"),
])
def test_a_config_that_contradicts_the_weights_is_refused(config, message, tmp_path):
    refused(released_file(tmp_path / "odd.tar", hollow("resnet50"), "resnet50", config), message)


def test_other_architectures_are_refused(tmp_path):
    with torch.device("meta"):
        small, vit = resnet18(), ViTModel(ViTConfig(num_hidden_layers=1))
    rest = {name: tensor for name, tensor in hollow("resnet50").items() if not name.startswith("image_encoder.")}
    for prefix, network, message in (
            ("image_encoder.resnet.", small, "not the weights of resnet50 .*: 2 unknown: .*fc.weight"),
            ("image_encoder.image_encoder.", vit, "not the weights of swin-tiny and bio-clinical-bert: .*unknown"),
            ("visual.", vit, "no image encoder known here .*a released file has image_encoder.resnet")):
        state = rest | {prefix + name: tensor for name, tensor in expanded(network.state_dict()).items()}
        refused(released_file(tmp_path / "other.tar", state, "resnet50", {}), message)
    torch.save(expanded(small.state_dict()), tmp_path / "bare.tar")
    refused(tmp_path / "bare.tar", "no state dict under 'model'")
    torch.save({"model": expanded(small.state_dict())}, tmp_path / "bare.tar")
    refused(tmp_path / "bare.tar", "no image encoder known here")
    for content in ([1], {"model": None}, {"model": "weights"}, {}):
        torch.save(content, tmp_path / "none.tar")
        refused(tmp_path / "none.tar", "no state dict under 'model'.*kakaobrain/cxr-clip")


class Harmful:
    """Unpickling it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_file_with_code_is_refused_and_the_code_never_runs(tmp_path):
    mark = tmp_path / "ran"
    for place in ("model", "config", "optimizer"):
        content = {"model": {}, "config": {}, "optimizer": {}} | {place: Harmful(mark)}
        torch.save(content, tmp_path / "harmful.tar")
        refused(tmp_path / "harmful.tar", r"holds more than tensors and plain values \(\w+\.system\): refused")
        torch.save(content, tmp_path / "old.tar", _use_new_zipfile_serialization=False)
        refused(tmp_path / "old.tar", "not a torch.save file")
    assert not mark.exists()
    torch.load(tmp_path / "harmful.tar", weights_only=False)  # the trap works: loaded carelessly, it makes the file
    assert mark.exists()


def test_damaged_files_are_named(tmp_path):
    path = released_file(tmp_path / "whole.tar", {"a": torch.zeros(50_000)}, "resnet50")
    whole, damaged = path.read_bytes(), tmp_path / "damaged.tar"
    for length in (0, 1, 1000, len(whole) // 2, len(whole) - 10):
        damaged.write_bytes(whole[:length])
        refused(damaged, "not a torch.save file, or a truncated one: get it again")
    place = whole.index(b"\0" * 1000)
    damaged.write_bytes(whole[:place] + b"\1" + whole[place + 1:])
    refused(damaged, "damaged, or not a torch.save file .wrong checksum")
    damaged.write_text("<html>quota exceeded</html>")
    refused(damaged, "not a torch.save file")
    with zipfile.ZipFile(damaged, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(damaged, "damaged, or not a torch.save file")
    refused(tmp_path / "gone.tar", "no such file: the released files r50_m.tar")
    refused(tmp_path, "no such file")


def test_an_unknown_encoder_or_a_full_disk_stops_the_writer(tmp_path):
    with pytest.raises(InputError, match="unknown image encoder 'vit': choose one of resnet50, swin-tiny"):
        random_official(tmp_path / "a.tar", "vit")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        random_official(tmp_path / "file" / "a.tar")


# ---- the tokenizer --------------------------------------------------------------------------------------------------


def vocabulary(folder, size):
    """The two files that the tokenizer of Bio_ClinicalBERT consists of, with another vocabulary."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", "heart", "Heart"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*words, *(f"w{i}" for i in range(size - len(words)))]))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": size}))
    return folder


def test_a_tokenizer_from_a_folder_lowers_case_as_the_released_code_does(tmp_path):
    tokens = official_tokenizer(vocabulary(tmp_path / "a", 28996))(["Heart", "heart w1"], padding=True)
    assert tokens["input_ids"][0] == [101, 104, 102, 0]
    assert tokens["attention_mask"] == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_without_a_tokenizer_the_message_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")
    wanted = "config.json and vocab.txt of huggingface.co/emilyalsentzer/Bio_ClinicalBERT"
    with pytest.raises(InputError, match=f"a: a tokenizer of 500 pieces.*need 28996 and 0: save {wanted}"):
        official_tokenizer(vocabulary(tmp_path / "a", 500))
    with pytest.raises(InputError, match=f"gone: no such folder: make it and save {wanted} there"):
        official_tokenizer(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"empty: no tokenizer .*: save {wanted} there"):
        official_tokenizer(tmp_path / "empty")
    monkeypatch.setattr("cxrclip.official.published.AutoTokenizer.from_pretrained", offline)
    with pytest.raises(InputError, match=f"not on this machine and cannot be fetched.*save {wanted} in a folder"):
        official_tokenizer()


def test_the_released_names_tell_encoder_and_data():
    assert official.FILES["swint_mcc"] == ("swin-tiny", "M,C,C14")
    assert sorted(official.FILES) == sorted(f"{e}_{d}" for e in ("r50", "swint") for d in ("m", "mc", "mcc"))
