"""Mix files: what they may say, how faults are named, and that prepared data are found again."""

from __future__ import annotations

import pytest
import yaml

from cxrclip.data import mixes
from cxrclip.errors import InputError


def write(tmp_path, content) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("name", ["phantom", "real-sample", "paper"])
def test_committed_mixes_load_and_name_the_papers_roles(name):
    mix = mixes.load_mix(name)
    assert list(mix.pretraining) == ["M", "C", "C14"]
    assert {"vindr-cxr", "rsna", "siim", "chexpert5x200", "mimic-cxr", "openi"} <= set(mix.tests)


@pytest.mark.parametrize(("content", "message"), [
    ("pretraining: [", "malformed"),
    ({"tests": {}}, "'pretraining' is missing"),
    ({"pretraining": {"M": {"phantom": "X"}}}, "role M: unknown phantom 'X': choose one of M, C"),
    ({"pretraining": {"M": {"source": "X"}}}, "role M: unknown source 'X'"),
    ({"pretraining": {"M": {"phantom": "M", "colour": 1}}}, "role M: unknown key 'colour'"),
    ({"pretraining": {"M": {"phantom": "M", "folder": "x"}}}, "exactly one of"),
    ({"pretraining": {"M": {}}}, "exactly one of"),
    ({"pretraining": {"M": "phantom"}}, "role M: `name: value` lines"),
    ({"pretraining": {"M": {"missing": "x"}}, "tests": {"t": {"role": "M"}}}, "must name a role with data"),
    ({"pretraining": {"M": {"phantom": "M"}}, "tests": {"t": {"role": "N"}}}, "must name a role with data"),
    ({"pretraining": {}, "tests": {"t": {"phantom": "rsna", "tasks": ["guess"]}}}, "role t: tasks: item 1: "),
    ({"pretraining": {}, "tests": {"t": {"phantom": "rsna", "tasks": "retrieval"}}}, "role t: tasks: a list is needed"),
    ({"pretraining": {"../M": {"phantom": "M"}}}, r"role \.\./M: name: a plain name is needed"),
    ({"pretraining": {"M": {"phantom": ["M"]}}}, "role M: unknown phantom"),
    ({"pretraining": {"M": {"missing": 3}}}, "role M: value: text is needed, found 3"),
    ({"pretraining": {"M": {"phantom": "M", "name": "N"}}}, "role M: unknown key 'name'"),
    ({"pretraining": {"M": {"phantom": "M", "sizes": {"quick": {"train": -1}}}}}, "sizes: quick: train: .* found -1"),
    ({"pretraining": {"M": {"phantom": "M", "sizes": {"quick": {"dev": 9}}}}}, "sizes: quick: dev"),
    ({"pretraining": {"M": {"phantom": "M", "max_negatives": 0}}}, "role M: max_negatives"),
    ({"pretraining": {"M": {"phantom": "M"}}, "tests": {"M": {"role": "M"}}}, "role M is in pretraining and in tests"),
    ({"pretraining": {}, "testing": {}}, "unknown key 'testing': known are about, pretraining, tests"),
    ("pretraining: {M: {phantom: M}, M: {phantom: C}}", "'M' is given twice"),
])
def test_faults_name_file_role_and_key(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        mixes.load_mix(path)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_mix_lists_the_known():
    with pytest.raises(InputError, match="unknown mix 'nope': choose one of paper, phantom, real-sample"):
        mixes.load_mix("nope")
    with pytest.raises(InputError, match=r"gone\.yaml does not exist"):
        mixes.load_mix("gone.yaml")


def test_missing_folder_root_and_sizes_are_found_before_any_work(tmp_path):
    folder = write(tmp_path, {"pretraining": {"M": {"folder": str(tmp_path / "gone")}}})
    with pytest.raises(InputError, match=r"role M: .*gone is no study folder"):
        mixes.check_mix(mixes.load_mix(folder), "quick", "")
    source = write(tmp_path, {"pretraining": {"M": {"source": "openi", "root": "openi"}}})
    with pytest.raises(InputError, match=r"role M: no folder .*openi: set DATA"):
        mixes.check_mix(mixes.load_mix(source), "quick", str(tmp_path))
    sizes = write(tmp_path, {"pretraining": {"M": {"phantom": "M", "sizes": {"quick": {"train": 1}}}}})
    with pytest.raises(InputError, match="role M: no sizes for profile 'paper'"):
        mixes.check_mix(mixes.load_mix(sizes), "paper", "")


WANTED = {"pretraining": {"M": {"source": "mimic-cxr", "root": "m", "missing": "needs M"},
                          "C": {"source": "chexpert", "root": "c", "missing": "needs C"}},
          "tests": {"mimic-cxr": {"role": "M"},
                    "chexpert5x200": {"source": "chexpert5x200", "root": "c", "needs": ["list.csv"],
                                      "missing": "needs a list"}}}


def test_a_download_that_is_not_there_is_a_role_with_a_reason(tmp_path):
    mix, data = mixes.load_mix(write(tmp_path, WANTED)), tmp_path / "data"
    (data / "c").mkdir(parents=True)
    here = mixes.with_downloads(mix, str(data))
    assert {name: role.filling for name, role in here.roles.items()} == {
        "M": "missing", "C": "source", "mimic-cxr": "missing", "chexpert5x200": "missing"}
    assert [here.roles[name].value for name in ("M", "mimic-cxr", "chexpert5x200")] == ["needs M", "needs M",
                                                                                     "needs a list"]
    (data / "c" / "list.csv").touch()
    (data / "m").mkdir()
    assert mixes.with_downloads(mix, str(data)) == mix
    mixes.check_mix(mix, "paper", str(data))


def test_without_any_pretraining_data_one_line_says_what_was_looked_for(tmp_path):
    mix = mixes.load_mix(write(tmp_path, WANTED))
    with pytest.raises(InputError, match=r"mix mine: nothing to pretrain on, there is no .*c \(C: needs C\), .*m \(M: "
                                         r"needs M\): set DATA") as caught:
        mixes.check_mix(mix, "paper", str(tmp_path / "data"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "message"), [
    ({"mapping": {"SWOLLEN": "Edema"}}, "role M, option mapping"),
    ({"image_size": "small"}, "role M, option image_size"), ({"max_rejected": "few"}, "role M, option max_rejected"),
    ({"workers": "two"}, "role M, option workers"), ({"shares": [0.5, 0.5]}, "role M, option shares")])
def test_an_option_of_another_type_is_found_before_any_work(tmp_path, options, message):
    """A mapping to a word was read as a list of its letters, and the studies had these as labels."""
    role = {"source": "table", "root": ".", "options": {"file": "t.csv", "image": "film", "patient": "who"} | options}
    with pytest.raises(InputError, match=message):
        mixes.check_mix(mixes.load_mix(write(tmp_path, {"pretraining": {"M": role}})), "quick", str(tmp_path))


def test_a_test_role_without_prompts_is_found_before_any_work(tmp_path):
    sizes = {"quick": {"train": 4, "valid": 4, "test": 4}}
    content = {"pretraining": {"M": {"phantom": "M", "sizes": sizes}},
               "tests": {"my-hospital": {"role": "M", "tasks": ["linear-probe"]}}}
    with pytest.raises(InputError, match="role my-hospital, prompts: unknown zero-shot task 'my-hospital'"):
        mixes.check_mix(mixes.load_mix(write(tmp_path, content)), "quick", "")
    content["tests"]["my-hospital"]["prompts"] = "rsna"
    mixes.check_mix(mixes.load_mix(write(tmp_path, content)), "quick", "")


def test_missing_files_without_a_reason_are_a_fault(tmp_path):
    (tmp_path / "c").mkdir()
    content = {"pretraining": {"C": {"source": "chexpert", "root": "c", "needs": ["list.csv"]}}}
    with pytest.raises(InputError, match=r"role C: no .*list\.csv: set DATA"):
        mixes.check_mix(mixes.load_mix(write(tmp_path, content)), "quick", str(tmp_path))


def test_prepared_data_are_found_again_and_shared_between_roles(tiny_mix, tiny_bench):
    first = tiny_bench.prepared(tiny_mix, "quick")
    before = {role: (folder / "dataset.json").stat().st_mtime_ns for role, folder in first.folders.items()}
    again = mixes.prepare(mixes.load_mix(tiny_mix), "quick", tiny_bench.build, progress=False)
    assert {role: (folder / "dataset.json").stat().st_mtime_ns for role, folder in again.folders.items()} == before
    assert first.missing == {"C": "needs CheXpert: registration", "vindr-cxr": "needs VinDr-CXR: credentialed access"}
    assert len(first.studies("M", "train")) == 24


def test_training_texts_hold_reports_and_prompts(tiny_mix, tiny_bench):
    from cxrclip.prompts import PromptBank

    bank = PromptBank.load()
    texts = set(mixes.training_texts(tiny_bench.prepared(tiny_mix, "quick"), bank))
    assert set(bank.sentences()) < texts
    row = tiny_bench.prepared(tiny_mix, "quick").studies("M", "train")[0]
    assert (row["findings"] or row["impression"]) in texts
