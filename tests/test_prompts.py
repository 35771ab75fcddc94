"""prompts.py: the sentences themselves, label reports against slow re-statements, and faults in a prompts file."""

import dataclasses
import json
import pickle
from collections import Counter

import numpy as np
import pytest
import yaml

from cxrclip.data.sources import chestxray14
from cxrclip.errors import InputError
from cxrclip.prompts import DEFAULT_FILE, PromptBank

CHEXPERT = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
]
CHESTXRAY14_ONLY = ["Emphysema", "Fibrosis", "Hernia", "Infiltration", "Mass", "Nodule", "Pleural Thickening"]


@pytest.fixture(scope="module")
def bank():
    return PromptBank.load()


def tiny(**changes):
    """The content of a small valid prompts file."""
    content = {
        "prompts": {
            "Edema": {"positive": ["There is edema."], "negative": ["No edema."], "uncertain": ["Possible edema."]},
            "Mass": {"positive": ["A mass.", "One mass."], "negative": ["No mass."]},
        },
        "aliases": {"Oedema": "Edema"},
        "zero_shot": {"two": {"negative": ["No {finding}"], "positive": ["{finding}"], "classes": ["Edema", "Mass"]}},
    }
    return content | changes


def write(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


# ---- the sentences ----------------------------------------------------------------------------------------


def test_classes_and_states(bank):
    assert sorted(bank.classes) == sorted(CHEXPERT + CHESTXRAY14_ONLY)
    for name in CHEXPERT:
        assert set(bank.prompts[name]) == {"positive", "negative", "uncertain"}
    for name in CHESTXRAY14_ONLY:
        assert set(bank.prompts[name]) == {"positive", "negative"}


def test_every_list_has_five_to_nine_proper_sentences(bank):
    for name, states in bank.prompts.items():
        for state, sentences in states.items():
            assert 5 <= len(sentences) <= 9, (name, state)
            for sentence in sentences:
                assert sentence[0].isupper(), sentence
                assert sentence.endswith("."), sentence
                assert sentence == " ".join(sentence.split()), sentence


def test_some_positive_sentence_of_each_finding_names_it_plainly(bank):
    """A model that reads a name only after "no" can invert it."""
    for name in set(bank.classes) - {"No Finding", "Pleural Other"}:
        stem = name.removesuffix("s").removesuffix("ion").lower()
        assert any(stem in sentence.lower() for sentence in bank.prompts[name]["positive"]), name


def test_sentences_are_all_and_unique(bank):
    expected = {s for states in bank.prompts.values() for sentences in states.values() for s in sentences}
    assert set(bank.sentences()) == expected
    assert len(bank.sentences()) == len(expected)


# ---- label reports ----------------------------------------------------------------------------------------


def test_report_says_each_label_once_and_nothing_else(bank):
    labels = {"positive": ["Edema", "Mass"], "negative": ["Pneumonia", "Fracture"], "uncertain": ["Atelectasis"]}
    for seed in range(50):
        text = bank.report(**labels, rng=np.random.default_rng(seed))
        for state, names in labels.items():
            for name in names:
                said = [s for s in bank.prompts[name][state] if s in text]
                assert said, (name, state, text)
                text = text.replace(max(said, key=len), "", 1)
        assert text.strip() == ""


def test_report_draws_sentence_and_order_evenly(tmp_path):
    """All 2 sentences x 6 orders of three labels are equally likely."""
    bank = PromptBank.load(write(tmp_path / "p.yaml", tiny(prompts=tiny()["prompts"] | {
        "Nodule": {"positive": ["A nodule."], "negative": ["No nodule."]}})))
    rng = np.random.default_rng(0)
    counts = Counter(bank.report(["Mass"], ["Nodule"], ["Edema"], rng) for _ in range(6000))
    assert len(counts) == 12
    for text, count in counts.items():
        assert abs(count - 500) < 4.5 * 500**0.5, (text, count)


def test_max_negatives_keeps_that_many_evenly_and_every_other_label(bank):
    negatives = ["Mass", "Nodule", "Hernia", "Fibrosis", "Emphysema"]
    own = {name: set(bank.prompts[name]["negative"]) for name in negatives}
    counts, rng = Counter(), np.random.default_rng(1)
    for _ in range(2000):
        text = bank.report(["Edema"], negatives, ["Pneumonia"], rng, max_negatives=3)
        said = [name for name in negatives if any(s in text for s in own[name])]
        assert len(said) == 3
        assert any(s in text for s in bank.prompts["Edema"]["positive"])
        assert any(s in text for s in bank.prompts["Pneumonia"]["uncertain"])
        counts.update(said)
    for name in negatives:
        assert abs(counts[name] - 1200) < 4.5 * (2000 * 0.6 * 0.4) ** 0.5, counts


def test_fewer_negatives_than_allowed_are_all_kept(bank):
    text = bank.report([], ["Mass", "Nodule"], [], np.random.default_rng(0), max_negatives=3)
    assert text.count(".") == 2


def test_report_depends_on_the_generator_alone(bank):
    draws = [bank.report(["Edema"], ["Mass"], [], np.random.default_rng(seed)) for seed in [3, 3, 4, 5, 6, 7]]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 2


@pytest.mark.parametrize(("name", "expected"), [
    ("Effusion", "Pleural Effusion"), ("pleural effusion", "Pleural Effusion"),
    ("Pleural_Thickening", "Pleural Thickening"),
    ("Pleural thickening", "Pleural Thickening"), ("Pulmonary fibrosis", "Fibrosis"), ("Edema", "Edema"),
])
def test_other_names(bank, name, expected):
    assert bank.class_of(name) == expected


def test_one_finding_under_two_names_is_said_once(bank):
    text = bank.report(["Effusion", "Pleural Effusion"], [], [], np.random.default_rng(0))
    assert text in bank.prompts["Pleural Effusion"]["positive"]


def test_unknown_finding_names_the_nearest(bank):
    with pytest.raises(InputError, match=r"'Cardiomegalie'.*Cardiomegaly"):
        bank.report(["Cardiomegalie"], [], [], np.random.default_rng(0))
    with pytest.raises(InputError, match=r"'xyz'.*Pneumothorax"):
        bank.class_of("xyz")


def test_b12_no_label_gives_no_empty_sentence(bank):
    with pytest.raises(InputError, match="without any label"):
        bank.report([], [], [], np.random.default_rng(0))
    assert bank.labelled([], [], []) == {}


def test_b4_string_instead_of_list(bank):
    with pytest.raises(InputError, match=r"positive labels: 'Edema' is a plain string.*\['Edema'\]"):
        bank.report("Edema", [], [], np.random.default_rng(0))


def test_contradiction_and_missing_state(bank):
    with pytest.raises(InputError, match=r"'Pleural Effusion' is labelled both positive and negative"):
        bank.report(["Effusion"], ["Pleural Effusion"], [], np.random.default_rng(0))
    with pytest.raises(InputError, match=r"'Hernia' has no uncertain sentences"):
        bank.report([], [], ["Hernia"], np.random.default_rng(0))


# ---- zero-shot --------------------------------------------------------------------------------------------


def test_chexpert5x200_counts_are_the_papers(bank):
    task = bank.zero_shot("chexpert5x200")
    assert {name: len(positive) for name, (_, positive) in task.items()} == {
        "Atelectasis": 210, "Cardiomegaly": 15, "Consolidation": 192, "Edema": 18, "Pleural Effusion": 54}
    for negative, positive in task.values():
        assert negative == ()
        assert len(set(positive)) == len(positive)
        assert all(text == " ".join(text.split()) for text in positive)


@pytest.mark.parametrize(("task", "classes"), [("vindr-cxr", 18), ("chestxray14", 14), ("siim", 1), ("rsna", 1)])
def test_tasks_and_their_ensembles(bank, task, classes):
    plain, ensemble = bank.zero_shot(task), bank.zero_shot(f"{task}-ensemble")
    assert len(plain) == classes
    assert list(plain) == list(ensemble)
    for (negative, positive), (negatives, positives) in zip(plain.values(), ensemble.values(), strict=True):
        assert len(negative) == len(positive) == 1
        assert min(len(negatives), len(positives)) >= 3
        assert not set(negatives) & set(positives)
        assert not any("{" in text for text in (*negative, *positive, *negatives, *positives))


def test_protocol_texts(bank):
    assert bank.zero_shot("rsna") == {"Pneumonia": (("No evidence of pneumonia",), ("Findings suggesting pneumonia.",))}
    assert bank.zero_shot("siim") == {"Pneumothorax": (("No Pneumothorax",), ("Pneumothorax",))}
    assert bank.zero_shot("vindr-cxr")["Nodule/Mass"] == (("No Nodule/Mass",), ("Nodule/Mass",))
    assert bank.zero_shot("chestxray14")["Mass"] == (("No Mass",), ("Mass",))


def test_zero_shot_classes_are_the_names_the_study_tables_use(bank):
    """A class the table writes otherwise would be scored as absent from every film."""
    assert sorted(bank.zero_shot("chestxray14")) == sorted(chestxray14.FINDINGS)
    assert set(bank.zero_shot("chexpert5x200")) < set(CHEXPERT)
    assert set(chestxray14.FINDINGS) < set(bank.classes)


def test_unknown_task(bank):
    with pytest.raises(InputError, match=r"'vindr'; known: vindr-cxr"):
        bank.zero_shot("vindr")


# ---- files ------------------------------------------------------------------------------------------------


def test_frozen_and_picklable(bank):
    with pytest.raises(dataclasses.FrozenInstanceError):
        bank.prompts = {}
    assert pickle.loads(pickle.dumps(bank)) == bank


def test_own_yaml_and_partial_yaml(tmp_path, bank):
    full = PromptBank.load(write(tmp_path / "full.yaml", tiny()))
    assert full.class_of("oedema") == "Edema"
    assert full.zero_shot("two") == {"Edema": (("No Edema",), ("Edema",)), "Mass": (("No Mass",), ("Mass",))}
    partial = PromptBank.load(write(tmp_path / "part.yaml", {"prompts": tiny()["prompts"]}))
    assert partial.classes == ["Edema", "Mass"]
    assert partial.tasks == bank.tasks
    assert partial.class_of("Pulmonary edema") == "Edema"
    with pytest.raises(InputError, match="unknown finding"):
        partial.class_of("Effusion")  # an alias of a class this file does not have


def test_official_json(tmp_path, bank):
    path = tmp_path / "official.json"
    path.write_text(json.dumps({
        "Edema": {"pos": ["Edema."], "neg": ["No edema."], "unc": ["Edema?"]},
        "Pleural Effusion": {"pos": ["Fluid."], "neg": ["No fluid."], "unc": []},
    }))
    loaded = PromptBank.load(path)
    assert loaded.prompts["Edema"] == {"positive": ("Edema.",), "negative": ("No edema.",), "uncertain": ("Edema?",)}
    assert set(loaded.prompts["Pleural Effusion"]) == {"positive", "negative"}
    assert loaded.report(["Effusion"], [], [], np.random.default_rng(0)) == "Fluid."
    assert loaded.tasks == bank.tasks


def fault(*keys, value):
    """tiny() with the value at `keys` replaced, or removed for None."""
    content = json.loads(json.dumps(tiny()))
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return content


@pytest.mark.parametrize(("content", "message"), [
    ("prompts: [unclosed", "malformed"),
    ("", "lines are needed"),
    ("- a list", "lines are needed"),
    ("a: 1\nb: 2\na: 3\n", "'a' is given twice"),
    ("prompts: {[Edema]: {}}", "malformed"),
    (fault("aliases", "Oedema", value=["Edema"]), "aliases: Oedema: text is needed, found ['Edema']"),
    (tiny(promts={}), "unknown key 'promts': known are aliases, prompts, zero_shot"),
    (tiny(prompts={}), "prompts: at least one is needed"),
    (tiny(prompts={1: {}}), "prompts: 1: text is needed"),
    (fault("prompts", "Mass", value=["A mass."]), "prompts: Mass: `name: value` lines"),
    (fault("prompts", "Mass", "positive", value=[]), "prompts: Mass: positive: at least one is needed"),
    (fault("prompts", "Mass", "positive", value=None), "prompts: Mass: 'positive' is missing"),
    (fault("prompts", "Mass", "negative", value=None), "prompts: Mass: 'negative' is missing"),
    (fault("prompts", "Mass", "negativ", value=["No."]), "prompts: Mass: unknown key 'negativ'"),
    (fault("prompts", "Mass", "positive", value="A mass."), "Mass: positive: a list is needed, found 'A mass.'"),
    (fault("prompts", "Mass", "positive", value=["A", "A"]), "prompts: Mass: positive: 'A' is given twice"),
    (fault("prompts", "Mass", "positive", value=["No mass."]), "prompts: Mass: 'No mass.' is given twice"),
    (fault("prompts", "Mass", "positive", value=[" "]), "prompts: Mass: positive: item 1: empty sentence"),
    (fault("prompts", "Mass", "positive", value=[{"Note": "x"}]),
     "prompts: Mass: positive: item 1: text is needed, found {'Note': 'x'}"),
    (fault("prompts", "Mass", "positive", value=[False]), "Mass: positive: item 1: text is needed, found False"),
    (fault("aliases", "Oedema", value="Odema"), "aliases: Oedema: 'Odema' is not a class"),
    (fault("zero_shot", "two", "positive", value=None), "zero_shot: two: 'positive' is missing"),
    (fault("zero_shot", "two", "positive", value=[]), "zero_shot: two: positive: at least one is needed"),
    (fault("zero_shot", "two", "classes", value=["A", "A"]), "zero_shot: two: classes: 'A' is given twice"),
    (fault("zero_shot", "two", value={"A": {"severity": [""], "subtype": ["x"]}}),
     "zero_shot: two: A: 'location' is missing"),
    (fault("zero_shot", "two", value={"A": {"severity": [""], "subtype": [""], "location": [""]}}),
     "zero_shot: two: A: subtype: item 1: empty sentence"),
    (fault("zero_shot", "two", value={"A": {"severity": [" "], "subtype": ["x"], "location": [""]}}),
     "zero_shot: two: A: severity: item 1: empty sentence"),
    (fault("zero_shot", "two", "classes", value=[{}]), "zero_shot: two: classes: {}: text is needed"),
    (fault("zero_shot", "two", "classes", value={"A": "x", "B": "x"}), "zero_shot: two: classes: 'x' is given twice"),
    (fault("zero_shot", "two", value=["A"]), "zero_shot: two: `name: value` lines"),
])
def test_faults_are_one_line_with_file_and_key(tmp_path, content, message):
    path = write(tmp_path / "mine.yaml", content)
    with pytest.raises(InputError) as caught:
        PromptBank.load(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_faults_of_other_files(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read"):
        PromptBank.load(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00prompts")
    with pytest.raises(InputError, match=r"binary\.yaml: malformed"):
        PromptBank.load(tmp_path / "binary.yaml")
    for text, message in [
        ("{", "malformed"),
        ('{"Edema": {"positive": ["x"]}}', "Edema: unknown key 'positive'"),
        ('{"Edema": ["x"]}', "Edema: `name: value` lines"),
        ('{"Edema": {"pos": ["x"], "neg": ["y"]}, "Edema": {}}', "'Edema' is given twice"),
    ]:
        (tmp_path / "official.json").write_text(text)
        with pytest.raises(InputError, match=message):
            PromptBank.load(tmp_path / "official.json")


def test_a_sentence_twice_across_keys_of_yaml_is_found(tmp_path):
    text = DEFAULT_FILE.read_text(encoding="utf-8").replace("  Edema:\n", "  Cardiomegaly:\n", 1)
    with pytest.raises(InputError, match="'Cardiomegaly' is given twice"):
        PromptBank.load(write(tmp_path / "mine.yaml", text))
