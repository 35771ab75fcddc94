"""Evaluation against plain re-statements of the protocols, on tiny studies and a tiny untrained model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cxrclip import evaluation, metrics, studies
from cxrclip.data import shards
from cxrclip.data.images import encode_gray, read_gray
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.experiments import checkpoints, oracle
from cxrclip.experiments.tokenizer import train_tokenizer
from cxrclip.transforms import EvalTransform

REPORTS = ["The heart is enlarged.", "Clear lungs.", None, "Clear lungs.", "A small left pleural effusion.", "Edema."]


def square(i: int) -> np.ndarray:
    """A film whose content depends on i: a bright square that moves."""
    image = np.full((48, 40), 40, np.uint8)
    image[6 * i % 30: 6 * i % 30 + 12, 10:25] = 200
    return image


def row(i: int, **changes) -> dict:
    films = [square(i), square(i + 3)] if i % 2 else [square(i)]
    return {"study_id": f"s{i}", "patient_id": f"p{i // 2}", "source": "tiny", "split": "test",
            "images": [{"bytes": encode_gray(film, "png"), "path": f"{i}.png"} for film in films],
            "views": ["PA", "LATERAL"][:len(films)], "findings": REPORTS[i % 6], "impression": None, "findings_aug": [],
            "impression_aug": [], "positive": [["Edema"], ["pleural EFFUSION", "Edema"], []][i % 3], "negative": [],
            "uncertain": [], "sex": None, "age": None, **changes}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = shards.write_studies([row(i) for i in range(7)], tmp_path_factory.mktemp("tiny") / "studies")
    return studies.open_studies(folder)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text for text in REPORTS if text] * 5)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = CXRCLIPConfig(image_encoder="resnet-small", text_encoder="bert-small", projection_dim=16, image_size=32,
                           vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    return CXRCLIPModel(config).eval()


@pytest.fixture(scope="module")
def transform(model):
    return EvalTransform(32, model.config.image_mean, model.config.image_std)


def unit(rng, *shape) -> np.ndarray:
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# ---- embedding


def test_first_image_of_every_study_is_embedded_whatever_the_batch(model, table, transform):
    whole = evaluation.embed_studies(model, table, transform, batch_size=64)
    parts = evaluation.embed_studies(model, table, transform, batch_size=3)
    assert list(whole.study_ids) == [f"s{i}" for i in range(7)]
    assert list(whole.patient_ids) == ["p0", "p0", "p1", "p1", "p2", "p2", "p3"]
    np.testing.assert_allclose(whole.features, parts.features, atol=1e-5)
    with torch.no_grad():
        alone = model.encode_images(transform(square(3))[None])[0].numpy()
    np.testing.assert_allclose(whole.features[3], alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(whole.embeds, axis=1), 1, atol=1e-5)


def test_a_model_is_given_back_as_it_was(model, table, transform, tokenizer):
    model.train()
    evaluation.embed_studies(model, table, transform)
    evaluation.embed_texts(model, tokenizer, ["clear lungs"])
    assert model.training
    model.eval()


def test_embeds_are_those_of_the_model_itself(model, table, transform, tokenizer):
    found = evaluation.embed_studies(model, table, transform)
    texts = ["Clear lungs.", "The heart is enlarged. A small left pleural effusion."]
    embeds = evaluation.embed_texts(model, tokenizer, texts)
    films = [read_gray(study["images"][0]["bytes"], "film") for study in table]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=torch.stack([transform(film) for film in films]), input_ids=tokens["input_ids"],
                       attention_mask=tokens["attention_mask"])
    np.testing.assert_allclose(found.embeds, output.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(embeds, output.text_embeds.numpy(), atol=1e-5)


def test_texts_come_back_in_the_order_given(model, tokenizer):
    texts = ["The heart is enlarged.", "Edema.", "A small left pleural effusion.", "Edema.", "Clear lungs."]
    together = evaluation.embed_texts(model, tokenizer, texts, batch_size=2)
    alone = np.concatenate([evaluation.embed_texts(model, tokenizer, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert len(np.unique(np.round(together, 4), axis=0)) == 4
    with pytest.raises(InputError, match="an empty one"):
        evaluation.embed_texts(model, tokenizer, ["Edema.", "  "])


def test_prompts_are_embedded_side_by_side(model, tokenizer):
    prompts = {"Edema": (("No edema.",), ("Edema.", "The heart is enlarged.")), "Clear": ((), ("Clear lungs.",))}
    embeds = evaluation.embed_prompts(model, tokenizer, prompts)
    assert {name: tuple(side.shape for side in pair) for name, pair in embeds.items()} == {
        "Edema": ((1, 16), (2, 16)), "Clear": ((0, 16), (1, 16))}
    clear, heart = evaluation.embed_texts(model, tokenizer, ["Clear lungs.", "The heart is enlarged."])
    np.testing.assert_allclose(embeds["Clear"][1][0], clear, atol=1e-5)
    np.testing.assert_allclose(embeds["Edema"][1][1], heart, atol=1e-5)


def test_embeddings_survive_the_disk_and_damage_is_named(tmp_path, model, table, transform):
    found = evaluation.embed_studies(model, table, transform)
    path = checkpoints.save_embeddings(found, tmp_path / "deep" / "m.npz")
    again = checkpoints.load_embeddings(path)
    for name in ("study_ids", "patient_ids", "features", "embeds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    assert [entry.name for entry in path.parent.iterdir()] == ["m.npz"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="damaged embeddings"):
        checkpoints.load_embeddings(path)
    with pytest.raises(InputError, match="no such embeddings"):
        checkpoints.load_embeddings(tmp_path / "none.npz")


def test_a_damaged_film_is_named(model, transform, tmp_path):
    bad = row(1, images=[{"bytes": encode_gray(square(1), "png")[:60], "path": "x.png"}], views=["PA"])
    folder = shards.write_studies([row(0), bad], tmp_path / "studies")
    with pytest.raises(InputError, match="s1"):
        evaluation.embed_studies(model, studies.open_studies(folder), transform)


# ---- classification


def test_targets_ignore_case_and_other_names(table):
    found = evaluation.targets(table, ["Pleural Effusion", "edema", "Hernia"])
    expected = [[False, True], [True, True], [False, False]] * 2 + [[False, True]]
    np.testing.assert_array_equal(found, np.column_stack([expected, np.zeros(7)]))


def test_zero_shot_is_the_softmax_of_two_mean_cosines():
    rng = np.random.default_rng(0)
    images = unit(rng, 5, 8)
    prompts = {"A": (unit(rng, 1, 8), unit(rng, 3, 8)), "B": (unit(rng, 2, 8), unit(rng, 1, 8))}
    found = evaluation.zero_shot_scores(images, prompts)
    for i, image in enumerate(images):
        for k, (negative, positive) in enumerate(prompts.values()):
            no = sum(float(np.dot(image, text)) for text in negative) / len(negative)
            yes = sum(float(np.dot(image, text)) for text in positive) / len(positive)
            assert found[i, k] == pytest.approx(np.exp(yes) / (np.exp(yes) + np.exp(no)), abs=1e-6)
    with pytest.raises(InputError, match="'C' lacks"):
        evaluation.zero_shot_scores(images, {"C": (unit(rng, 0, 8), unit(rng, 1, 8))})


def test_zero_shot_classes_take_the_mean_cosine_whatever_the_number_of_prompts():
    images = np.eye(2, dtype=np.float32)
    none = np.zeros((0, 2))
    prompts = {"many": (none, np.array([[1, 0], [0, 1], [0, 1]])), "one": (none, np.array([[1, 0]]))}
    np.testing.assert_allclose(evaluation.zero_shot_classes(images, prompts), [[1 / 3, 1], [2 / 3, 0]], atol=1e-6)


def labelled(rng, n: int = 200, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    features = rng.normal(3.0, 5.0, size=(n, 6))
    targets = features[:, :k] + rng.normal(0, 4, size=(n, k)) > np.linspace(4, 13, k)
    return features, targets


def test_probe_is_scikit_learn_on_standardised_features():
    rng = np.random.default_rng(0)
    features, targets = labelled(rng)
    test = rng.normal(3.0, 5.0, size=(30, 6))
    found = evaluation.linear_probe(features, targets, test, c=0.1)
    assert found.shape == (1, 30, 4)
    scaler = StandardScaler().fit(features)
    for k in range(4):
        direct = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(features), targets[:, k])
        np.testing.assert_allclose(found[0, :, k], direct.decision_function(scaler.transform(test)), atol=1e-6)


def test_probe_never_sees_rows_outside_its_draw():
    rng = np.random.default_rng(0)
    features, targets = labelled(rng)
    rows = evaluation.stratified_draw(targets, 0.1, np.random.default_rng([7, 1]))
    spoiled = np.where(np.isin(np.arange(200), rows)[:, None], features, 1e6)
    honest, other = (evaluation.linear_probe(x, targets, features[:9], fraction=0.1, draws=2, seed=7)[1]
                     for x in (features, spoiled))
    np.testing.assert_array_equal(honest, other)


def test_a_class_with_one_outcome_has_a_constant_score():
    rng = np.random.default_rng(0)
    features, targets = labelled(rng)
    targets[:, 2], targets[:, 3] = False, True
    found = evaluation.linear_probe(features, targets, features)
    assert (found[0, :, 2:] == 0).all()
    assert np.ptp(found[0, :, 0]) > 0


@pytest.mark.parametrize("seed", range(20))
def test_draws_hold_every_class_with_both_outcomes_and_keep_shares(seed):
    rng = np.random.default_rng(seed)
    share = np.array([0.5, 0.2, 0.05, 0.01, 0.005, 0.8])
    targets = rng.random((400, 6)) < share
    targets[rng.integers(400), 4] = True
    rows = evaluation.stratified_draw(targets, 0.1, np.random.default_rng(seed))
    assert len(rows) == 40
    assert len(set(rows)) == 40
    drawn = targets[rows]
    assert (drawn.any(axis=0) == targets.any(axis=0)).all()
    assert not drawn.all(axis=0).any()
    assert abs(drawn.mean(axis=0)[:2] - share[:2]).max() < 0.2


def test_draws_differ_and_are_found_again():
    targets = labelled(np.random.default_rng(0))[1]
    a, b, c = (list(evaluation.stratified_draw(targets, 0.1, np.random.default_rng(s))) for s in (0, 1, 0))
    assert a == c != b
    assert list(evaluation.stratified_draw(targets, 1.0, np.random.default_rng(0))) == list(range(200))


def test_c_is_chosen_on_the_rows_given():
    rng = np.random.default_rng(0)
    features, targets = labelled(rng)
    found = evaluation.choose_probe_c(features[:100], targets[:100], features[100:], targets[100:], grid=(0.01, 1.0))
    assert list(found["c"]) == [0.01, 1.0]
    assert found["auroc"].between(0.6, 1).all()


def test_score_frame_has_a_row_per_study_class_and_draw(model, table, transform):
    images = evaluation.embed_studies(model, table, transform)
    scores, truth = np.arange(28.0).reshape(2, 7, 2), np.arange(14).reshape(7, 2) % 3 == 0
    frame = evaluation.score_frame(images, ["A", "B"], scores, truth)
    assert list(frame.columns) == ["study_id", "patient_id", "class", "score", "target", "draw"]
    for line in frame.itertuples():
        i, k = int(line.study_id[1:]), "AB".index(line[3])
        assert line.score == scores[line.draw, i, k]
        assert line.target == truth[i, k]
        assert line.patient_id == f"p{i // 2}"
    assert "draw" not in evaluation.score_frame(images, ["A", "B"], scores[0], truth)
    with pytest.raises(InputError, match="do not fit"):
        evaluation.score_frame(images, ["A"], scores[0], truth)


# ---- retrieval


def test_the_longer_section_is_the_text():
    assert evaluation.retrieval_text({"findings": "Zz.", "impression": "A longer one."}) == "A longer one."
    assert evaluation.retrieval_text({"findings": " Same. ", "impression": "Equal"}) == "Same."
    assert evaluation.retrieval_text({"findings": None, "impression": None}) == ""


def test_studies_without_a_report_take_no_part(table):
    rows, texts = evaluation.retrieval_texts(table)
    assert list(rows) == [0, 1, 3, 4, 5, 6]
    assert texts == [REPORTS[i % 6] for i in rows]


def three(embeds: np.ndarray) -> evaluation.ImageEmbeddings:
    return evaluation.ImageEmbeddings(np.array(["a", "b", "c"]), np.array(["p", "p", "q"]), embeds, embeds)


def test_ranks_by_hand():
    images = three(np.eye(3, dtype=np.float32))
    embeds = np.array([[0.8, 0.6, 0.0], [0.6, 0.8, 0.0], [0.96, 0.28, 0.0]], np.float32)
    frame = evaluation.retrieve(images, embeds, ["x", "y", "z"])
    assert list(frame["rank"]) == [2, 1, 2]     # c: all three cosines are 0, the tie shares rank 2
    assert (frame["n_candidates"] == 3).all()
    assert (frame["direction"] == "image_to_text").all()
    assert list(frame["patient_id"]) == ["p", "p", "q"]
    back = evaluation.retrieve(images, embeds, ["x", "y", "z"], "text_to_image")
    assert list(back["rank"]) == [1, 1, 3]
    with pytest.raises(InputError, match="one report for each image"):
        evaluation.retrieve(images, embeds, ["x"])


def test_identical_reports_are_one_candidate():
    embeds = np.eye(3, dtype=np.float32)[[0, 0, 2]]
    images = three(np.eye(3, dtype=np.float32))
    frame = evaluation.retrieve(images, embeds, ["same", "same", "other"])
    assert (frame["n_candidates"] == 2).all()
    assert list(frame["rank"]) == [1, 1.5, 1]
    back = evaluation.retrieve(images, embeds, ["same", "same", "other"], "text_to_image")
    assert back[["study_id", "rank", "n_right", "n_candidates"]].to_numpy().tolist() == [["a", 1, 2, 3], ["c", 1, 1, 3]]


# ---- difficulty


def test_supervised_reference_learns_what_can_be_seen_and_repeats_itself(tmp_path):
    rng = np.random.default_rng(0)

    def film(bright: bool) -> np.ndarray:
        image = rng.integers(30, 90, (40, 40)).astype(np.uint8)
        image[12:28, 12:28] += np.uint8(120 * bright)
        return image
    rows = [row(i, positive=["Mass"] * (i % 2), images=[{"bytes": encode_gray(film(i % 2 == 1), "png"), "path": ""}],
                views=["PA"]) for i in range(60)]
    folder = shards.write_studies(rows, tmp_path / "studies")
    data = studies.open_studies(folder)
    truth = evaluation.targets(data, ["Mass"])
    before = torch.random.get_rng_state()
    first, second = (oracle.supervised_reference(data, truth, data, image_size=32, steps=30, batch_size=16)
                     for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(first, second)
    assert first.shape == (60, 1)
    assert first[truth[:, 0]].min() > first[~truth[:, 0]].max()


def test_ranked_reports_show_the_best_and_the_own_one_once():
    texts = ["a", "b", "a", "c", "d"]
    found = evaluation.ranked_reports(np.array([0.1, 0.9, 0.1, 0.5, 0.3]), texts, own=2, top=2)
    assert found["text"].tolist() == ["b", "c", "a"]
    assert found["rank"].tolist() == [1, 2, 4]
    assert found["own"].tolist() == [False, False, True]


# ---- coarse text


def known(side=None, zone=None, severity=2, name="Mass", kind=None) -> dict:
    return {"name": name, "side": side, "zone": zone, "severity": severity, "kind": kind}


def test_coarse_accuracy_by_hand():
    """a retrieves b's report, b its own, c that of b, d a's (its own text is a's as well, so it stands for a)."""
    ids = np.array(["a", "b", "c", "d"])
    images = evaluation.ImageEmbeddings(ids, np.array(["p", "p", "q", "r"]), np.eye(4)[[1, 1, 1, 0]],
                                        np.eye(4, dtype=np.float32)[[1, 1, 1, 0]])
    texts, text_embeds = ["x", "y", "z", "x"], np.eye(4, dtype=np.float32)
    truth = {"a": [known("left", "upper", 1), known("both", None, 3, "Edema")],
             "b": [known("left", "lower", 2), known("both", None, 1, "Edema")],
             "c": [known("right", "lower", 2), known(None, None, 2, "Cardiomegaly")],
             "d": [known("left", "upper", 3), known("left", None, 2, "Fracture", "clavicle")]}
    frame = oracle.coarse_text_accuracy(images, text_embeds, texts, truth)
    found = {(row.study_id, row.finding, row.matter): (row.retrieved, row.right, round(row.chance, 3))
             for row in frame.itertuples()}
    # Candidates a, b, c have masses left, left, right; upper, lower, lower; 1, 2, 2. Edema is always on both sides.
    assert found == {
        ("a", "Mass", "side"): ("b", True, 0.667), ("a", "Mass", "zone"): ("b", False, 0.333),
        ("a", "Mass", "severity"): ("b", False, 0.333), ("a", "Edema", "severity"): ("b", False, 0.5),
        ("b", "Mass", "side"): ("b", True, 0.667), ("b", "Mass", "zone"): ("b", True, 0.667),
        ("b", "Mass", "severity"): ("b", True, 0.667), ("b", "Edema", "severity"): ("b", True, 0.5),
        ("c", "Mass", "side"): ("b", False, 0.333), ("c", "Mass", "zone"): ("b", True, 0.667),
        ("c", "Mass", "severity"): ("b", True, 0.667),
        ("d", "Mass", "side"): ("a", True, 0.667), ("d", "Mass", "zone"): ("a", True, 0.333),
        ("d", "Mass", "severity"): ("a", False, 0.0)}
    assert dict(zip(frame["study_id"], frame["patient_id"], strict=True)) == {"a": "p", "b": "p", "c": "q", "d": "r"}


def test_random_embeddings_are_right_as_often_as_chance_says():
    rng = np.random.default_rng(0)
    ids = np.array([f"s{i}" for i in range(1500)])
    truth = {study: [known(rng.choice(["left", "right", "both"], p=[0.5, 0.3, 0.2]), rng.choice(["upper", "lower"]),
                           int(rng.integers(1, 4)))] for study in ids}
    images = evaluation.ImageEmbeddings(ids, ids, unit(rng, 1500, 16), unit(rng, 1500, 16))
    frame = oracle.coarse_text_accuracy(images, unit(rng, 1500, 16), list(ids), truth)
    assert len(frame) == 4500
    for _, part in frame.groupby("matter"):
        assert abs(part["right"].mean() - part["chance"].mean()) < 0.06


def test_collisions_by_hand_and_by_drawing_batches():
    contents = ["normal"] * 30 + ["edema"] * 8 + [f"only {i}" for i in range(22)]
    pairs = [contents[i] == contents[j] for i in range(60) for j in range(60) if i != j]
    assert metrics.collision_probability(contents) == pytest.approx(np.mean(pairs))
    rng, drawn = np.random.default_rng(0), []
    for _ in range(2000):
        batch = [contents[i] for i in rng.permutation(60)[:16]]
        drawn.append(sum(other == batch[0] for other in batch[1:]))
    assert 15 * metrics.collision_probability(contents) == pytest.approx(np.mean(drawn), rel=0.06)
    with pytest.raises(InputError, match="give at least two"):
        metrics.collision_probability(["one"])
