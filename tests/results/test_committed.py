"""The committed results are of one version, that of the code beside them, or are marked as older."""

from __future__ import annotations

import pytest

from cxrclip.book import render
from cxrclip.errors import InputError
from cxrclip.experiments import cache
from cxrclip.results import published, readings
from cxrclip.results import rows as results_rows
from cxrclip.results.statistics import over_seeds, with_sums

STATUS = '{{"versions": "{}", "stale": {}, "reason": "test"}}'


def test_the_committed_results_are_of_one_version_and_marked_if_it_is_an_older_one():
    render.check_standard(results_rows.read_results(render.ROOT / render.RESULTS), render.status(render.ROOT))


@pytest.mark.parametrize(("versions", "stale", "fault"), [
    (["training=0", "training=1"], "true", "more than one version"),
    (["training=0", "training=0"], "false", "not of this code"),
    ([cache.versions_text()] * 2, "true", "stale"),
    (["training=2", "training=2"], "true", "status.json says"),
])
def test_mixed_unmarked_and_wrongly_marked_results_are_refused(tmp_path, versions, stale, fault):
    frame = results_rows.read_results(render.ROOT / render.RESULTS / "sizes.csv").head(2).assign(versions=versions)
    said = "training=0" if versions[0] == "training=2" else versions[0]
    path = tmp_path / render.RESULTS / "status.json"
    path.parent.mkdir(parents=True)
    path.write_text(STATUS.format(said, stale))
    with pytest.raises(InputError, match=fault):
        render.check_standard(frame, render.status(tmp_path))


def test_what_page_10_says_of_the_remedies():
    results = render.standard_results()
    table = readings.readings(results, "remedies").set_index(["row", "measure"])
    rsum, zero_shot, probe = "RSUM", "zero-shot AUROC", "probe 100 % AUROC"
    for row, measure, said in (
            ("batches of one source", rsum, "raises"), ("batches of one source", zero_shot, "raises"),
            ("75 % reports in each batch", rsum, "raises"), ("75 % reports in each batch", probe, "lowers"),
            ("last third on reports", rsum, "raises"), ("last third on reports", probe, "lowers"),
            ("prompts with side, zone, severity (oracle)", rsum, "raises"),
            ("prompts with side, zone, severity (oracle)", zero_shot, "lowers"),
            ("false negatives masked", rsum, "cannot tell"), ("false negatives share the target", rsum, "cannot tell"),
            ("C,C14: labels alone", zero_shot, "cannot tell"), ("C,C14: labels alone", rsum, "lowers")):
        assert table.loc[(row, measure), "reading"] == said, (row, measure)
    assert table.loc[("batches of one source", rsum), "p_holm"] < readings.LEVEL
    assert table.loc[("batches of one source", zero_shot), "p_holm"] > readings.LEVEL
    rows = results.query("comparison == 'remedies' and reference == '' and task == 'image_to_text'")
    means = over_seeds(with_sums(rows)).set_index(["row", "dataset", "metric"])["value"]
    sums = means.xs(("all", "RSUM"), level=["dataset", "metric"])
    assert sums["one_source"] > 1.2 * sums["m_c_c14"]
    assert sums["one_source"] > sums["m"] > 4 * sums["labels_only"]
    assert abs(sums["one_source_mask"] - sums["one_source"]) < 0.01 * sums["one_source"]


def test_what_page_10_says_of_the_source_of_a_film():
    results = render.standard_results()
    kinds = over_seeds(results[results["task"] == "text-kind"]).set_index(["row", "dataset"])["value"].unstack()
    apart = kinds["chexpert5x200"] - kinds["mimic-cxr"]
    assert kinds.loc["m_c_c14", "chexpert5x200"] > 0.9
    assert kinds.loc["m_c_c14", "mimic-cxr"] < 0.01
    assert (apart[["m_c_c14", "mask", "share_target", "reports_75", "label_weight_25", "reports_last"]] > 0.6).all()
    assert (apart[["m", "one_source"]].abs() < 0.2).all()
    recall = results.query("comparison == 'remedies' and task == 'image_to_text' and metric == 'R@10'")
    recall = over_seeds(recall).set_index(["dataset", "row"])["value"].unstack()
    assert (recall["one_source"] > recall["m"]).all()
    assert (recall["m_c_c14"] > recall["m"]).to_dict() == {"chexpert5x200": False, "mimic-cxr": True, "openi": True}
    paper = published().query("model == 'CXR-CLIP' and metric == 'R@10' and task == 'image_to_text'")
    known = paper.set_index(["image_encoder", "dataset", "pretraining_data"])["value"]
    assert [known["ResNet-50", where, data] for where in ("chexpert5x200", "mimic-cxr") for data in ("M", "M,C")] == [
        0.326, 0.274, 0.592, 0.582]
    assert known["Swin-T", "chexpert5x200", "M,C"] > known["Swin-T", "chexpert5x200", "M"]


def read(comparison: str, budget: str = "steps"):
    """(row, reference, measure) -> reading and adjusted p of the committed differences."""
    table = readings.readings(render.standard_results(), comparison)
    return table[table["budget"] == budget].set_index(["row", "reference", "measure"])


def test_what_page_8_says_of_icl_and_tcl():
    decided = [*(read("ablation").loc[("+ TCL", "+ ICL", measure)] for measure in ("zero-shot AUROC", "RSUM")),
               read("loss combinations").loc[("MVS + TCL", "MVS + ICL + TCL", "RSUM")]]
    assert [said["reading"] for said in decided] == ["raises"] * 3
    assert max(said["p_holm"] for said in decided) < readings.LEVEL
    weights = read("loss weights")
    for weight in (0, 0.1, 0.3):
        assert weights.loc[(f"ICL {weight}", "the paper's weights", "RSUM"), "reading"] == "raises"


def test_what_page_8_says_of_longer_training():
    whole, label_data = "MVS + ICL + TCL on M, 4 x as long", "MVS + ICL + TCL on M,C,C14, 4 x as long"
    longer = read("longer training", "epochs")["reading"]
    for measure in ("zero-shot AUROC", "RSUM"):
        assert longer[whole, "MVS on M, 4 x as long", measure] != "raises"
        assert longer[label_data, whole, measure] == "lowers"
    assert longer[label_data, whole, "probe 100 % AUROC"] == "raises"
    results = render.standard_results().query("comparison == 'longer training' and task == 'zero-shot-ensemble'")
    ensemble = results[(results["metric"] == "auroc") & (results["reference"] == "")].groupby("row")["value"].mean()
    assert abs(ensemble["m_c_c14"] - ensemble["tcl"]) < 0.02
    losses = render.standard_results().query("metric == 'fall in the last fifth' and budget != 'compute'")
    means = losses.groupby(["comparison", "row"])["value"].mean()
    assert means["longer training"].between(0.005, 0.02).all()
    assert means["ablation"].drop("clip", errors="ignore").between(0.03, 0.05).all()


def test_what_page_9_says_of_the_budgets():
    epochs = read("label growth", "epochs").loc[("M,C,C14", "M")]["reading"].to_dict()
    assert epochs == {"zero-shot AUROC": "raises", "probe 100 % AUROC": "raises", "RSUM": "cannot tell"}
    steps = read("label growth")
    assert [steps.loc[(mixture, "M", "RSUM"), "reading"] for mixture in ("M,C", "M,C,C14")] == ["lowers"] * 2


def test_what_page_9_says_of_the_reasons():
    """Side, zone and severity do not sink; the probe gains no less; R@10 falls on one set and rises on another."""
    shown = render.standard_results()
    means = over_seeds(shown[(shown["comparison"] == "label growth") & (shown["reference"] == "")])
    means = means[means["budget"] == "epochs"]
    coarse = means[means["task"] == "coarse-text"].pivot_table(index="row", columns="class", values="value")
    assert (coarse.loc["m_c_c14"] >= coarse.loc["m"]).all()
    gained = readings.readings(shown, "label growth").query("budget == 'epochs' and row == 'M,C,C14'")
    gained = gained.set_index("measure")["value"]
    assert gained["probe 100 % AUROC"] >= gained["zero-shot AUROC"]
    recall = means[(means["task"] == "image_to_text") & (means["metric"] == "R@10") & (means["class"] == "all")]
    recall = recall.set_index(["dataset", "row"])
    for later in ("m_c25", "m_c50", "m_c", "m_c_c14"):
        assert recall.loc[("chexpert5x200", later), "high"] < recall.loc[("chexpert5x200", "m"), "low"]
        assert recall.loc[("mimic-cxr", later), "value"] > recall.loc[("mimic-cxr", "m"), "value"]


def test_what_page_9_says_of_the_small_swin():
    both = readings.readings(render.standard_results(), "").set_index(["row", "reference", "measure"])["reading"]
    for mixture in ("M,C", "M,C,C14"):
        for measure in ("zero-shot AUROC", "probe 100 % AUROC", "RSUM"):
            assert both[f"CXR-CLIP swin-small {mixture}", "CXR-CLIP swin-small M", measure] == "raises"
    main = render.standard_results().query("comparison == '' and reference == '' and task == 'image_to_text'")
    rsum = over_seeds(with_sums(main)).query("metric == 'RSUM' and dataset == 'all'").set_index("run")["value"]
    assert 2 * rsum["CXR-CLIP swin-small M"] < rsum["CXR-CLIP resnet-small M"]


def main_means(task: str, metric: str):
    """(image encoder, mixture, dataset) -> mean over seeds of the committed main rows of CXR-CLIP."""
    shown = render.standard_results().query("comparison == '' and reference == '' and model == 'CXR-CLIP'")
    means = over_seeds(shown[(shown["task"] == task) & (shown["metric"] == metric) & (shown["class"] == "all")])
    return means.set_index(["image_encoder", "pretraining_data", "dataset"])["value"]


def test_what_page_6_says_of_the_sets():
    zero_shot, probe = (main_means(task, "auroc")["resnet-small"].unstack()
                        for task in ("zero-shot", "linear-probe-100"))
    assert (zero_shot.loc["M,C"] > zero_shot.loc["M"]).all()
    assert (zero_shot.loc["M,C,C14"] > zero_shot.loc["M,C"]).to_dict() == {
        "rsna": False, "siim": True, "vindr-cxr": False}
    assert zero_shot.loc["M,C,C14", "rsna"] < zero_shot.loc["M", "rsna"]
    assert probe.mean(axis=1).loc[["M", "M,C", "M,C,C14"]].is_monotonic_increasing


def test_what_page_7_says_of_graded_retrieval():
    graded, recall = main_means("graded retrieval", "nDCG@10"), main_means("image_to_text", "R@10")
    assert set(graded.index.get_level_values("dataset")) == {"mimic-cxr"}
    for means, numbers in ((graded, (58, 66)), (recall, (49, 56))):
        assert tuple(round(100 * means["resnet-small", mixture, "mimic-cxr"]) for mixture in ("M", "M,C")) == numbers
    for encoder in ("resnet-small", "swin-small"):
        for means in (graded, recall):
            assert min(means[encoder, mixture, "mimic-cxr"] for mixture in ("M,C", "M,C,C14")) > means[
                encoder, "M", "mimic-cxr"]
