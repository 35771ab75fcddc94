"""The processor: equal to the evaluation's own transform and tokens, saved and found again by transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from downloads import dicom
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, BertTokenizer, PreTrainedTokenizerFast, pipeline

from cxrclip import evaluation, studies
from cxrclip.data import shards
from cxrclip.data.images import decode_gray, encode_gray, read_gray, store_film
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.experiments.tokenizer import train_tokenizer
from cxrclip.hub.processing import CXRCLIPImageProcessor, CXRCLIPProcessor
from cxrclip.transforms import EvalTransform

TEXTS = ["No pneumonia.", "Pneumonia of the left lower lobe, and a small effusion on that side.", "Normal chest."]
SHAPES = ((64, 64), (90, 70), (48, 61), (131, 257))
PIPELINE = """
import json, sys
import cxrclip.hub.processing
from transformers import pipeline
classify = pipeline("zero-shot-image-classification", model=sys.argv[1])
print(json.dumps(classify(sys.argv[2], candidate_labels=json.loads(sys.argv[3]), hypothesis_template="{}")))
"""


def film_of(shape, seed=0):
    """A smooth film with all tones, (H, W) uint8."""
    noise = np.random.default_rng(seed).uniform(0, 255, (9, 9)).astype(np.float32)
    return cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = CXRCLIPConfig(image_encoder="resnet-small", text_encoder="bert-small", projection_dim=32, image_size=64,
                           max_tokens=12, vocab_size=len(train_tokenizer(TEXTS)))
    model = CXRCLIPModel(config)
    with torch.no_grad():                       # batch statistics that are not those of an untouched network
        for _ in range(3):
            model.encode_images(torch.randn(8, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def processor(model):
    return CXRCLIPProcessor.of(model.config, train_tokenizer(TEXTS))


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("image_encoder", ["resnet-small", "swin-small"])
def test_pixels_equal_those_of_the_evaluation(shape, image_encoder):
    config = CXRCLIPConfig(image_encoder=image_encoder, text_encoder="bert-small", image_size=64)
    image_processor = CXRCLIPImageProcessor(config.image_size, config.image_mean, config.image_std)
    film = film_of(shape)
    expected = EvalTransform(64, config.image_mean, config.image_std)(film)[None]
    for given in (film, torch.from_numpy(film), Image.fromarray(film), np.stack([film] * 3, axis=2),
                  Image.fromarray(film).convert("RGB"), Image.fromarray(film).convert("RGBA"),
                  Image.fromarray(film).convert("LA"), [film]):
        assert torch.equal(image_processor(given, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "I", "I;16", "F", "RGBA", "PA"])
def test_any_mode_becomes_gray_as_when_it_is_read_from_a_file(mode, processor, tmp_path):
    film = film_of((70, 90))
    if mode in ("I", "I;16", "F"):
        image = Image.fromarray(film.astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]) * 11 + 300)
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([film, film // 2, film[::-1], np.where(film > 90, 255, 40)]).astype(np.uint8))
    else:
        image = Image.fromarray(np.dstack([film, film // 2, film[::-1]])).convert(mode)
    assert image.mode == mode
    path = tmp_path / "film.tiff"
    image.save(path)
    config = processor.image_processor
    expected = EvalTransform(64, config.image_mean, config.image_std)(read_gray(path, "film"))
    assert torch.equal(config(image)["pixel_values"][0], expected)
    assert torch.equal(config(path)["pixel_values"][0], expected)
    assert torch.equal(config([str(path), image])["pixel_values"][1], expected)


def test_transparent_pixels_are_black(processor):
    film = film_of((64, 64))
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, :32] = 255
    hidden = np.dstack([film, film, film, alpha])
    shown = film.copy()
    shown[:, 32:] = 0
    process = processor.image_processor
    assert torch.equal(process(Image.fromarray(hidden))["pixel_values"], process(shown)["pixel_values"])


@pytest.mark.parametrize(("film", "message"), [
    ("nowhere.png", "nowhere.png: no such image file"),
    (np.zeros((3, 64, 64), np.float32), r"film 1: \(3, 64, 64\) float32 is no film: give a path, a PIL image"),
    (torch.zeros(64, 64, requires_grad=True), "film 1: .* is no film"),
    ([], "no film given"),
    ([np.zeros((64, 64), np.uint8), None], r"film 2: \(\) NoneType is no film"),
    (np.full((64, 64), np.nan, np.float32), "film 1: pixels that are no number"),
])
def test_what_is_no_film_is_refused(film, message, processor):
    with pytest.raises(InputError, match=message):
        processor.image_processor(film)


def test_an_option_that_would_change_the_transform_is_refused(processor):
    with pytest.raises(TypeError, match="do_center_crop"):
        processor.image_processor(film_of((64, 64)), do_center_crop=False)


def test_texts_are_padded_and_cut_as_in_the_evaluation(processor):
    own = train_tokenizer(TEXTS)
    expected = own(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    tokens = processor(text=TEXTS, return_tensors="pt")
    assert set(tokens) == {"input_ids", "attention_mask"}
    assert tokens["input_ids"].shape == (3, 12)
    assert (tokens["input_ids"][1, -1]) == own.sep_token_id                     # cut, and closed
    assert all(torch.equal(tokens[name], expected[name]) for name in tokens)
    assert own.model_max_length > 12                                            # the given tokenizer is left alone


def test_what_a_tokenizer_was_used_for_before_does_not_matter(model, tmp_path):
    used = train_tokenizer(TEXTS)
    used(TEXTS, truncation=True, padding=True, max_length=5)
    used.save_pretrained(tmp_path)                                              # as training leaves it
    processor = CXRCLIPProcessor.of(model.config, PreTrainedTokenizerFast.from_pretrained(tmp_path))
    processor.save_pretrained(tmp_path / "again")
    for item in (processor, CXRCLIPProcessor.from_pretrained(tmp_path / "again")):
        assert [len(ids) for ids in item(text=TEXTS)["input_ids"]] == [12, 12, 12]
        assert len(item.tokenizer(TEXTS[1])["input_ids"]) > 12                  # so does the pipeline: it cuts nothing


def test_a_tokenizer_of_another_model_is_refused(model):
    with pytest.raises(InputError, match="take the tokenizer that the model was trained with"):
        CXRCLIPProcessor.of(model.config, train_tokenizer(["other words"]))


def test_berts_own_tokenizer_makes_what_the_model_takes(tmp_path):
    """Bio_ClinicalBERT's tokenizer is a BertTokenizer, which may add token_type_ids: the model has none."""
    vocabulary = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "pneumonia"])}
    tokenizer = BertTokenizer(vocab=vocabulary)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    config = CXRCLIPConfig("resnet-small", "bert-small", image_size=64, max_tokens=5, vocab_size=len(tokenizer))
    CXRCLIPProcessor.of(config, tokenizer).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert set(again.tokenizer(["no pneumonia"])) == {"input_ids", "attention_mask"}
    assert again(text=["no pneumonia no pneumonia"])["input_ids"] == [[2, 5, 6, 5, 3]]
    assert "token_type_ids" in tokenizer(["no"])


def test_saved_and_found_again(folder, model, processor):
    again = AutoProcessor.from_pretrained(folder)
    assert type(again) is CXRCLIPProcessor
    assert type(AutoImageProcessor.from_pretrained(folder)) is CXRCLIPImageProcessor
    assert again.tokenizer.model_max_length == 12
    inputs, films = {"text": TEXTS, "return_tensors": "pt"}, [film_of(shape) for shape in SHAPES]
    before, after = (item(images=films, **inputs) for item in (processor, again))
    assert set(before) == {"pixel_values", "input_ids", "attention_mask"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.inference_mode():
        expected = model(**before).logits_per_image
        assert torch.equal(AutoModel.from_pretrained(folder)(**after).logits_per_image, expected)


def test_saving_again_gives_the_same_files(folder, tmp_path):
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    names = ("processor_config.json", "tokenizer.json")
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    alone = AutoImageProcessor.from_pretrained(folder)
    alone.save_pretrained(tmp_path / "alone")
    assert torch.equal(AutoImageProcessor.from_pretrained(tmp_path / "alone")(film_of((64, 80)))["pixel_values"],
                       alone(film_of((64, 80)))["pixel_values"])


def by_evaluation(model, film, texts, tmp_path):
    """The probabilities of the texts, from the embeddings of the evaluation code."""
    row = {"study_id": "s", "patient_id": "p", "source": "x", "split": "test", "views": ["PA"],
           "images": [{"bytes": encode_gray(film, "png"), "path": None}]}
    shards.write_studies([row], tmp_path / "studies")
    transform = EvalTransform(64, model.config.image_mean, model.config.image_std)
    images = evaluation.embed_studies(model, studies.open_studies(tmp_path / "studies", "test"), transform)
    embeds = evaluation.embed_texts(model, train_tokenizer(TEXTS), texts, max_tokens=12)
    logits = model.logit_scale.exp().item() * (images.embeds @ embeds.T)[0]
    return dict(zip(texts, np.exp(logits) / np.exp(logits).sum(), strict=True))


def test_pipeline_scores_are_those_of_the_evaluation(folder, model, tmp_path):
    film, texts = film_of((90, 70), seed=3), ["No pneumonia.", "Normal chest.", "Pneumonia of the left lower lobe"]
    expected = by_evaluation(model, film, texts, tmp_path)
    Image.fromarray(film).save(tmp_path / "film.png")
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    for given in (str(tmp_path / "film.png"), Image.fromarray(film)):
        found = classify(given, candidate_labels=texts, hypothesis_template="{}")
        assert {item["label"]: item["score"] for item in found} == pytest.approx(expected, abs=1e-6)
    assert max(expected.values()) - min(expected.values()) > 1e-3


def written(film, name, folder):
    """The film in a file of some format."""
    path = folder / name
    image = Image.fromarray(film)
    if name.endswith(".dcm"):
        dicom(path, PixelRepresentation=0, BitsAllocated=8, BitsStored=8, HighBit=7, Rows=film.shape[0],
              Columns=film.shape[1], PixelData=film.tobytes())
    elif name.endswith(".jpg"):
        turned = Image.Exif()
        turned[0x0112] = 6
        image.save(path, exif=turned)
    elif "16" in name:
        Image.fromarray(film.astype(np.uint16) * 11 + 300).save(path)
    elif "rgba" in name:
        Image.fromarray(np.dstack([film, film, film, film[::-1]])).save(path)
    else:
        image.save(path)
    return path


@pytest.mark.parametrize("name", ["8.png", "16.png", "rgba.png", "turned.jpg", "film.dcm"])
def test_a_film_is_scored_as_the_model_saw_films_whatever_its_format(name, folder, processor, tmp_path):
    path = written(film_of((90, 70), seed=3), name, tmp_path)
    config = processor.image_processor
    stored = store_film(path, "film", 90)                                       # what a study table holds
    expected = EvalTransform(64, config.image_mean, config.image_std)(read_gray(path, "film"))
    assert torch.equal(config(path)["pixel_values"][0], expected)
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    inputs = classify.preprocess(str(path), candidate_labels=TEXTS)
    assert torch.equal(inputs["pixel_values"][0], expected)
    if name != "film.dcm":
        assert torch.equal(classify.preprocess(Image.open(path), candidate_labels=TEXTS)["pixel_values"][0], expected)
    in_table = EvalTransform(64, config.image_mean, config.image_std)(decode_gray(stored, "film"))
    assert (in_table - expected).abs().mean() * 0.25 * 255 < 3                  # shades: a table stores JPEG


def test_a_label_longer_than_the_model_reads_is_cut_with_a_warning(folder, tmp_path):
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    film = Image.fromarray(film_of((64, 64)))
    labels = ["Normal chest.", " ".join(["small effusion"] * 40)]
    with pytest.warns(UserWarning, match="1 of 2 labels are longer than the 12 tokens"):
        scores = classify(film, candidate_labels=labels, hypothesis_template="{}")
    assert sum(item["score"] for item in scores) == pytest.approx(1)
    with pytest.raises(InputError, match="no such image file"):
        classify(str(tmp_path / "none.png"), candidate_labels=labels)


def test_pipeline_works_offline_in_a_process_of_its_own(folder, model, tmp_path):
    film, texts = film_of((64, 99), seed=5), ["No pneumonia.", "Normal chest."]
    Image.fromarray(film).save(tmp_path / "film.png")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path),
                   "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", PIPELINE, str(folder), str(tmp_path / "film.png"), json.dumps(texts)],
                           capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not [word for word in ("not supported", "backend", "Error") if word in ended.stderr], ended.stderr
    found = {item["label"]: item["score"] for item in json.loads(ended.stdout)}
    assert found == pytest.approx(by_evaluation(model, film, texts, tmp_path), abs=1e-6)


def test_nothing_of_the_folder_is_code(folder):
    assert {path.suffix for path in Path(folder).iterdir()} <= {".json", ".safetensors"}
    assert "auto_map" not in (folder / "config.json").read_text() + (folder / "processor_config.json").read_text()
