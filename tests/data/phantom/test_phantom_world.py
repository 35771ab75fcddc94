"""The phantom world: reproducible, free of leakage, labelled and worded at the stated rates."""

import collections
import functools
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from cxrclip import studies
from cxrclip.data import images, shards
from cxrclip.data.phantom import reports, world
from cxrclip.data.phantom.anatomy import DEVICE_KINDS, FINDINGS, Case, Finding, sample_body
from cxrclip.data.phantom.render import Film
from cxrclip.data.sources.public import collision
from cxrclip.errors import InputError

N = 1500
LASTING = ("pacemaker", "sternal wires")


@pytest.fixture(scope="module")
def rows():
    """rows(name, n, split): studies without the cost of drawing them."""

    def render(case, views, scanner, size, masks):
        pixels = np.random.default_rng(case.seed).integers(0, 255, (8, 8)).astype(np.uint8)
        return [Film(view, pixels, dict.fromkeys(range(len(case.findings)), pixels > 99)) for view in views]

    @functools.cache
    def draw(name, n=N, split="train"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world, "render_study", render)
            return [world.study(name, split, i, seed=5)[0] for i in range(n)]

    return draw


@functools.cache
def visits(name, n=N):
    return [world.visit(name, "train", i, seed=5) for i in range(n)]


def share(flags):
    return float(np.mean(list(flags)))


def case_with(*findings):
    return Case(sample_body(np.random.default_rng(0)), findings, 1)


# The folder -------------------------------------------------------------------------------------------------


def test_workers_do_not_change_a_byte(tmp_path):
    def draw(k):
        sizes = {"train": 34, "test": 3}
        return world.generate("M", sizes, tmp_path / str(k), seed=3, image_size=32, workers=k, progress=False)

    one, two = draw(1), draw(2)
    names = sorted(file.name for file in one.iterdir())
    assert names == ["dataset.json", "studies-00000.parquet", "truth.parquet"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    other = world.generate("M", {"train": 4}, tmp_path / "other", seed=4, image_size=32, workers=1, progress=False)
    assert studies.fingerprint(other) != studies.fingerprint(one)


def test_folder_is_valid_complete_and_aligned_with_its_truth(tmp_path):
    sizes = {"train": 25, "valid": 6, "test": 5}
    folder = world.generate("C", sizes, tmp_path / "C", image_size=40, workers=1, progress=False)
    studies.validate(folder, reports.CHEXPERT)
    studies.check_leakage({"C": folder})
    table = pq.read_table(folder / "studies-00000.parquet").to_pylist()
    truth = pq.read_table(folder / "truth.parquet").to_pylist()
    assert collections.Counter(row["split"] for row in table) == sizes
    assert [row["study_id"] for row in table] == [known["study_id"] for known in truth]
    for row, known in zip(table, truth, strict=True):
        assert all(images.read_gray(image["bytes"], "").shape == (40, 40) for image in row["images"])
        assert {mask["view"] for mask in known["masks"]} <= set(row["views"])
        assert len(known["masks"]) == len(known["findings"]) * len(row["views"])
        assert all(mask["finding_index"] < len(known["findings"]) for mask in known["masks"])
        case = case_with(*(Finding(**finding) for finding in known["findings"]))
        assert set(row["positive"]) <= set(world.true_labels(case, "chexpert"))
    about = json.loads((folder / "dataset.json").read_text())["about"]
    assert about["institution"] == "C"
    assert about["sizes"] == sizes
    assert about["image_size"] == 40
    assert about["seed"] == 0
    assert about["description"]


def test_a_larger_world_begins_with_the_smaller(rows):
    assert rows("M", 30) == rows("M")[:30]


def test_splits_and_institutions_are_different_people(rows):
    ages = [[r["age"] for r in rows(name, 40, split)] for name in ("M", "mimic-cxr") for split in ("train", "test")]
    assert all(a != b for k, a in enumerate(ages) for b in ages[:k])


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("PadChest", {"train": 3}, "unknown phantom institution 'PadChest'"),
        ("M", {"training": 3}, "unknown split 'training'"),
        ("M", {"train": -1}, "cannot draw -1"),
        ("chexpert5x200", {"test": 12}, "multiple of 5"),
        ("M", {"train": 0}, "no study"),
    ],
)
def test_bad_requests_leave_nothing(tmp_path, name, sizes, message):
    with pytest.raises(InputError, match=message):
        world.generate(name, sizes, tmp_path / "out", workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_process_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "_draw", os._exit)
    with pytest.raises(InputError, match="could not be drawn: its process failed"):
        world.generate("M", {"train": 70}, tmp_path / "out", image_size=32, workers=2, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch, workers):
    def full_disk(rows, folder, **_):
        next(iter(rows))
        raise InputError("disk full")

    monkeypatch.setattr(shards, "write_studies", full_disk)
    with pytest.raises(InputError, match="disk full"):
        world.generate("M", {"train": 70}, tmp_path / "out", image_size=32, workers=workers, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def write_table(self, table):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    with pytest.raises(InputError, match=r"cannot be written .No space left"):
        world.generate("M", {"train": 2}, tmp_path / "out", image_size=32, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_runs_from_a_script_without_a_main_guard(tmp_path):
    """Notebooks and standard input have no file that a fresh process could import."""
    code = f"""
from cxrclip.data.phantom import world
world.generate("siim", {{"test": 34}}, {str(tmp_path / "out")!r}, image_size=32, workers=2, progress=False)
"""
    done = subprocess.run([sys.executable, "-"], input=code, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "truth.parquet").is_file()
    assert not done.stderr


# Patients and findings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", world.INSTITUTIONS)
def test_patients_return_with_the_same_body(name):
    seen = visits(name, 600)
    patients = {v.patient_id for v in seen}
    assert len({v.study_id for v in seen}) == 600
    ratio = 600 / len(patients)
    assert ratio == 1 if world.INSTITUTIONS[name].one_of else 1.2 < ratio < 1.42
    for before, after in itertools.pairwise(seen):
        same = before.patient_id == after.patient_id
        assert same == after.follow_up
        assert same == (before.case.body == after.case.body)
        if same:
            lasting = {f for f in before.case.findings if world.ILLNESSES[f.name].chronic or f.kind in LASTING}
            assert lasting <= set(after.case.findings)
    assert len({v.case.seed for v in seen}) == 600


@pytest.mark.parametrize("name", world.INSTITUTIONS)
def test_findings_are_well_placed(name):
    for v in visits(name, 600):
        assert len({(f.name, f.kind) for f in v.case.findings}) == len(v.case.findings)
        for f in v.case.findings:
            if f.name != "Support Devices":
                illness = world.ILLNESSES[f.name]
                assert (f.side is not None) == (illness.sides is not None)
                assert (f.zone is not None) == (illness.zones is not None and f.kind != "clavicle")
            assert (f.kind is not None) == (f.name in ("Support Devices", "Fracture"))


def test_tables_name_every_finding():
    assert set(world.ILLNESSES) == set(FINDINGS)
    assert set(world.DEVICES) == set(DEVICE_KINDS)
    order = list(world.ILLNESSES)
    assert all(order.index(first) < order.index(later)
               for first, illness in world.ILLNESSES.items() for later in illness.effects)
    places = [shares for illness in world.ILLNESSES.values() for shares in (illness.sides, illness.zones) if shares]
    for shares in (world.SEVERITY_UP, world.SEVERITY_BED, *places):
        assert sum(shares) == pytest.approx(1)
    for institution in world.INSTITUTIONS.values():
        assert institution.scanner in world.SCANNERS
        assert set(institution.emphasis) | set(institution.one_of) <= set(FINDINGS)
        assert set(institution.habits) <= set(reports.HABITS)


def test_findings_keep_company():
    cases = [({f.name for f in v.case.findings}, v.views) for v in visits("M")]

    def given(name, condition):
        return share(name in names for names, views in cases if condition(names, views))

    assert given("Edema", lambda n, v: "Cardiomegaly" in n) > 1.8 * given("Edema", lambda n, v: "Cardiomegaly" not in n)
    effusion = [given("Pleural Effusion", lambda n, v, x=x: ("Edema" in n) == x) for x in (True, False)]
    assert effusion[0] > 1.8 * effusion[1]
    devices = [given("Support Devices", lambda n, v, x=x: (v == ("AP",)) == x) for x in (True, False)]
    assert devices[0] > 3 * devices[1]
    rates = {name: given(name, lambda n, v: True) for name in FINDINGS}
    assert rates["Tuberculosis"] < 0.03
    assert 0.01 < min(rates.values()) < max(rates.values()) < 0.35


def test_the_ill_are_filmed_ap_and_alone():
    seen = visits("M")
    severity = {
        ap: np.mean([f.severity for v in seen if (v.views == ("AP",)) == ap for f in v.case.findings]) for ap in (0, 1)
    }
    assert severity[1] > severity[0] + 0.1
    assert 0.5 < share(len(v.views) == 2 for v in seen) < 0.7
    assert share(v.views == ("AP",) for v in seen if v.case.findings) > 2 * share(
        v.views == ("AP",) for v in seen if not v.case.findings
    )


def test_5x200_has_exactly_one_finding_in_turn():
    classes = world.INSTITUTIONS["chexpert5x200"].one_of
    for i, v in enumerate(visits("chexpert5x200", 300)):
        assert world.true_labels(v.case, "5x200") == (classes[i % 5],)
        assert set(world.true_labels(v.case, "chexpert")) <= {classes[i % 5], "Lung Opacity"}


def test_institutions_differ():
    scanners = {i.scanner for name, i in world.INSTITUTIONS.items() if name not in ("mimic-cxr", "chexpert5x200")}
    assert len(scanners) == 7
    ages = {name: np.mean([v.case.body.age for v in visits(name, 600)]) for name in ("M", "C14")}
    assert ages["M"] > ages["C14"] + 8


# Labels -----------------------------------------------------------------------------------------------------


def test_derived_names():
    case = case_with(
        Finding("Mass", "left", "upper", 3),
        Finding("Fibrosis", "both", "lower", 1),
        Finding("Pneumothorax", "right", None, 3),
        Finding("Pleural Thickening", "left", "upper", 1),
        Finding("Fracture", "left", "mid", 1, "rib"),
    )
    assert set(world.true_labels(case, "chexpert")) == {"Lung Lesion", "Pneumothorax", "Pleural Other", "Fracture"}
    assert set(world.true_labels(case, "chestxray14")) == {"Mass", "Fibrosis", "Pneumothorax", "Pleural_Thickening"}
    assert set(world.true_labels(case, "vindr")) == {
        "Nodule/Mass", "Lung tumor", "ILD", "Pulmonary fibrosis", "Pneumothorax", "Mediastinal shift",
        "Pleural thickening", "Rib fracture",
    }  # fmt: skip
    assert world.true_labels(case, "rsna") == ()
    assert world.true_labels(case, "siim") == ("Pneumothorax",)


def test_names_of_the_empty_case():
    devices = case_with(Finding("Support Devices", "right", None, 2, "central line"))
    names = {vocabulary: world.true_labels(case_with(), vocabulary) for vocabulary in world.VOCABULARIES}
    assert names == {"chexpert": ("No Finding",), "chestxray14": ("No Finding",), "vindr": (), "rsna": ("Normal",),
                     "siim": (), "5x200": ()}  # fmt: skip
    assert world.true_labels(devices, "chexpert") == ("No Finding", "Support Devices")
    assert world.true_labels(devices, "rsna") == ()
    assert world.true_labels(case_with(Finding("Emphysema", "both")), "chexpert") == ()


def test_vocabularies_are_the_published_ones():
    sizes = {name: len(rules) for name, rules in world.VOCABULARIES.items()}
    assert sizes == {"chexpert": 13, "chestxray14": 14, "vindr": 18, "rsna": 1, "siim": 1, "5x200": 5}


@pytest.mark.parametrize(
    ("name", "vocabulary"),
    [("vindr-cxr", "vindr"), ("rsna", "rsna"), ("siim", "siim"), ("chexpert5x200", "5x200")],
)
def test_test_sets_are_labelled_with_the_truth(rows, name, vocabulary):
    for row, v in zip(rows(name, 300), visits(name, 300), strict=True):
        assert tuple(row["positive"]) == world.true_labels(v.case, vocabulary)
        assert sorted({*row["positive"], *row["negative"]} - {"Normal"}) == sorted(world.VOCABULARIES[vocabulary])
        assert row["uncertain"] == []


def test_c14_is_mostly_normal_and_mined_at_the_stated_rates(rows):
    table, seen = rows("C14", 3000), visits("C14", 3000)
    assert 0.51 <= share(row["positive"] == ["No Finding"] for row in table) <= 0.57
    true = [set(world.true_labels(v.case, "chestxray14")) - {"No Finding"} for v in seen]
    found = [set(row["positive"]) - {"No Finding"} for row in table]
    misses = sum(len(t - f) for t, f in zip(true, found, strict=True)) / sum(map(len, true))
    assert misses == pytest.approx(world.MISSED, abs=0.015)
    invented = share(bool(f - t) for t, f in zip(true, found, strict=True))
    assert world.INVENTED * 0.6 < invented <= world.INVENTED * 1.3
    for row in table:
        assert set(row["positive"]) ^ set(row["negative"]) >= set(world.VOCABULARIES["chestxray14"])
        assert row["views"] in (["PA"], ["AP"])
    assert 0.2 < collision([tuple(row["positive"]) for row in table]) < 0.45


def test_c_is_labelled_as_by_a_labeller(rows):
    table = rows("C")
    assert 0.004 < share(not (r["positive"] or r["negative"] or r["uncertain"]) for r in table) < 0.02
    assert share(bool(r["uncertain"]) for r in table) > 0.15
    assert collision([str((r["positive"], r["negative"], r["uncertain"])) for r in table]) < 0.005
    for row, v in zip(table, visits("C"), strict=True):
        true = set(world.true_labels(v.case, "chexpert"))
        assert set(row["positive"]) <= true
        assert not set(row["negative"]) & true
        assert row.get("findings") is None


@pytest.mark.parametrize(("name", "finding", "low", "high"), [
    ("rsna", "Pneumonia", 0.19, 0.27), ("siim", "Pneumothorax", 0.19, 0.27),
])  # fmt: skip
def test_task_prevalence(rows, name, finding, low, high):
    assert low < share(finding in row["positive"] for row in rows(name)) < high


def test_every_vindr_class_occurs(rows):
    counts = collections.Counter(name for row in rows("vindr-cxr") for name in row["positive"])
    assert min(counts[name] for name in world.VOCABULARIES["vindr"]) > 0.02 * N


# Texts ------------------------------------------------------------------------------------------------------


def test_sections_go_missing_at_the_stated_rates(rows):
    table = rows("M")
    has = [(bool(row.get("findings")), bool(row.get("impression"))) for row in table]
    for kind, expected in zip(((True, True), (True, False), (False, True)), (0.75, 0.12, 0.13), strict=True):
        assert has.count(kind) / N == pytest.approx(expected, abs=0.03)
    for row in table:
        for section in ("findings", "impression"):
            assert len(row.get(f"{section}_aug", [])) == bool(row.get(section))
        assert row["positive"] == row["negative"] == row["uncertain"] == []


def test_reports_are_rarely_alike_but_for_stock_sentences(rows):
    for name in ("M", "openi"):
        table = rows(name)
        assert collision(row["findings"] for row in table if row.get("findings")) < 0.003
        assert collision(row["impression"] for row in table if row.get("impression")) < 0.02
        ill = [row for row, v in zip(table, visits(name), strict=True) if v.case.findings]
        assert collision(row["findings"] for row in ill if row.get("findings")) < 0.0005


def test_reports_have_a_usual_length(rows):
    def sentences(section):
        return np.mean([len(re.findall(r"[a-z]\.", row[section])) for row in rows("M") if row.get(section)])

    assert 5 < sentences("findings") < 10
    assert 1.5 < sentences("impression") < 4


def test_openi_is_written_in_another_habit(rows):
    def words(name):
        return np.mean([len(row["findings"].split()) for row in rows(name) if row.get("findings")])

    assert words("openi") < 0.8 * words("M")


def test_only_impressions_in_5x200(rows):
    assert all(row.get("findings") is None and row["impression"] for row in rows("chexpert5x200", 100))
