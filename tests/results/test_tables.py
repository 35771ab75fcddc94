"""Tables through their cells: what is measured, what is published, and why a number is lacking."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from synthetic import COMMON, row, tidy, tidy_results

from cxrclip import results
from cxrclip.errors import InputError
from cxrclip.results import rows as results_rows
from cxrclip.results import tables

TABLES = {"table 1": tables.table1, "table 2": tables.table2, "table 3": tables.table3,
          "table 3, text to image": tables.table3_text_to_image, "table 4": tables.table4}


@pytest.fixture(scope="module")
def full() -> pd.DataFrame:
    return tidy_results(seeds=2)


def measured(columns=tables.TABLE_2, encoder="resnet-small", data="M", **changes) -> list[dict]:
    return [row(dataset=dataset, task=task, metric=metric, image_encoder=encoder, pretraining_data=data,
                run=f"{encoder} {data}", **changes) for dataset, task, metric in columns]


def cell(table: tables.Table, encoder: str, data: str, dataset: str, column: str, model: str = "CXR-CLIP") -> str:
    return table.cells.loc[(model, encoder, data), (dataset, column)]


def both(table: tables.Table, encoder: str, data: str, dataset: str, column: str, model: str = "CXR-CLIP") -> list[str]:
    """The measured and the published number."""
    return [cell(table, encoder, data, dataset, name, model) for name in (column, tables.PUBLISHED + column)]


def test_table_2_shows_measured_and_published_side_by_side():
    table = tables.table2(tidy(*measured()))
    assert both(table, "resnet-small (ResNet-50)", "M", "RSNA", "zero-shot AUROC") == ["70.0 [60.0, 75.0]", "83.3 r"]
    assert both(table, "ResNet-50", "M,C", "RSNA", "zero-shot AUROC") == ["–", "81.7 r"]
    assert both(table, "Swin-T", "M,C,C14", "RSNA", "probe 100 % AUROC") == ["–", "89.8 q*"]
    gloria = both(table, "ResNet-50", "C with reports", "CheXpert5x200", "zero-shot accuracy", "GLoRIA")
    assert gloria == ["–", "62.4 r"]
    assert table.footnotes[0] == "–: published only: not trained here (GLoRIA, MedCLIP)"
    assert table.footnotes[1].startswith("–: not measured; run PROFILE=standard (CLIP ResNet-50 M, CXR-CLIP Swin-T M, ")
    longer = tables.table2(tidy(*measured()).assign(profile="standard"))
    assert longer.footnotes[1].startswith("–: not measured; run notebooks/06 (CLIP ")
    assert len(table.footnotes) == 2
    assert "NOT on the paper's data" in table.header
    assert any(line.startswith("r: recalled from memory") for line in table.legend)
    assert any(line.startswith("q*: ") for line in table.legend)


def test_no_cell_is_ever_blank_and_a_deleted_row_says_why():
    rows = measured()
    lacking = [line for line in rows if (line["dataset"], line["task"]) != ("siim", "linear-probe-10")]
    encoder = "resnet-small (ResNet-50)"
    for part in (rows, lacking, []):
        table = tables.table2(tidy(*part))
        assert table.cells.map(lambda text: bool(text.strip())).all(axis=None)
    table = tables.table2(tidy(*lacking))
    assert both(table, encoder, "M", "SIIM", "probe 10 % AUROC") == ["–", "88.3 r"]
    assert both(tables.table2(tidy()), "ResNet-50", "M", "SIIM", "probe 10 % AUROC") == ["–", "88.3 r"]


def test_data_that_are_missing_give_their_reason():
    missing = {"rsna": "needs RSNA: Kaggle account", "C14": "no C14 here"}
    rows = measured([column for column in tables.TABLE_2 if column[0] != "rsna"])
    table = tables.table2(tidy(*rows), missing)
    encoder = "resnet-small (ResNet-50)"
    assert both(table, encoder, "M", "RSNA", "zero-shot AUROC") == ["–", "83.3 r"]
    assert both(table, "Swin-T", "M,C,C14", "SIIM", "zero-shot AUROC") == ["–", "91.4 r"]
    for text in (table.text(), table.markdown(), table.latex()):
        assert text.count("needs RSNA: Kaggle account (RSNA)") == 1, "once, below the table"
        assert text.count("no C14 here (ChestX-ray14 (C14))") == 1


def test_table_3_sums_the_recalls_itself():
    columns = [(name, "image_to_text", metric) for name in results.RETRIEVAL_SETS
               for metric in ("R@1", "R@5", "R@10", "RSUM")]
    rows = measured(columns)
    for line in rows:
        line |= {"value": 0.9, "low": 0.8, "high": 1.0} if line["metric"] == "RSUM" else {}
    table = tables.table3(tidy(*rows))
    columns = [(name, metric) for name in ("CheXpert5x200", "MIMIC-CXR", "Open-I") for metric in ("R@1", "R@5", "R@10")]
    columns = [*columns, ("all three", "RSUM")]
    assert list(table.cells.columns) == [(name, prefix + metric) for name, metric in columns
                                         for prefix in ("", tables.PUBLISHED)]
    encoder = "resnet-small (ResNet-50)"
    assert both(table, encoder, "M", "all three", "RSUM") == ["270.0 [252.7, 287.3]", "215.9 r"]
    merged = results.merge_results(tidy(*rows), results.rsum_rows(tidy(*rows)))
    assert tables.table3(merged).text() == table.text()
    missing = tables.table3(tidy(*rows[:8]), {"openi": "needs Open-I"})
    assert both(missing, encoder, "M", "all three", "RSUM") == ["–", "215.9 r"]
    assert "–: needs Open-I (Open-I)" in missing.footnotes


def test_tables_average_seeds_and_refuse_to_mix():
    one, two = (measured(seeds=seed, value=value) for seed, value in (("0", 0.7), ("1", 0.71)))
    assert cell(tables.table2(tidy(*one, *two)), "resnet-small (ResNet-50)", "M", "RSNA",
                "zero-shot AUROC").startswith("70.5 [")
    with pytest.raises(InputError, match="claim the same cell"):
        tables.table2(tidy(*one, *({**line, "run": "other"} for line in one)))
    with pytest.raises(InputError, match="more than one mix"):
        tables.table2(tidy(*one, *measured(data="M,C", mix="real-sample")))


def test_a_run_the_paper_does_not_have_gets_its_own_row():
    table = tables.table2(tidy(*measured(model="CLIP", encoder="resnet50")))
    assert cell(table, "resnet50 (ResNet-50)", "M", "RSNA", "zero-shot AUROC", "CLIP") == "70.0 [60.0, 75.0]"


def test_class_rows_do_not_reach_the_table():
    table = tables.table2(tidy(*measured(), row(run="resnet-small M", value=0.1, **{"class": "Edema"})))
    assert cell(table, "resnet-small (ResNet-50)", "M", "RSNA", "zero-shot AUROC").startswith("70.0")


def test_table_1_counts_beside_the_published_sizes():
    summary = pd.DataFrame({"name": ["M", "M", "own"], "split": ["train", "valid", "test"], "studies": [2000, 200, 7]})
    sizes = results.size_rows(summary, {"mix": "phantom", "profile": "quick"})
    table = tables.table1(sizes, {"rsna": "needs RSNA"})
    cells = {(index[0], split): text for index, values in table.cells.iterrows() for (_, split), text in values.items()}
    assert (cells["MIMIC-CXR (M)", "train"], cells["MIMIC-CXR (M)", "published train"]) == ("2,000", "222,628 r")
    assert cells["MIMIC-CXR (M)", "test"] == "none"
    assert (cells["RSNA", "test"], cells["RSNA", "published test"]) == ("–", "4,003 k")
    assert "–: needs RSNA (RSNA)" in table.footnotes
    assert (cells["CheXpert (C)", "train"], cells["CheXpert (C)", "published train"]) == ("–", "216,478 c")
    assert table.footnotes[0].startswith("–: not measured; run notebooks/01 (CheXpert (C), ")
    assert cells["own", "test"] == "7"
    assert "NOT on the paper's data" in table.header
    assert "NOT" not in tables.table1(sizes.assign(mix="paper", profile="paper")).header


def test_text_leaves_out_what_was_not_measured():
    text = tables.table2(tidy(*measured(tables.TABLE_2[:1]))).text()
    assert "VinDr-CXR\n" in text
    assert "RSNA\n" not in text
    block = text[:text.index("all in percent")]
    assert sum(line.startswith(("CXR-CLIP", "CLIP", "GLoRIA")) for line in block.splitlines()) == 1


def test_text_fits_a_terminal(full):
    drawn = tables.table2(tidy(*measured())), *(draw(part) for draw in TABLES.values() for part in (tidy(), full))
    assert max(len(line) for table in drawn for line in table.text().splitlines()) <= 120


def test_latex_and_markdown_are_escaped(tmp_path):
    rows = measured(tables.TABLE_2[:1])
    table = tables.table2(tidy(*rows), {"siim": "a|b & 5 %"})
    latex = table.latex()
    body = latex[latex.index("\\midrule"):latex.index("\\bottomrule")].strip().splitlines()[1:]
    assert {line.replace("\\&", "").count("&") for line in body} == {2 + 20}
    assert "a|b \\& 5 \\%" in latex
    assert "\\multicolumn{6}{c}{RSNA}" in latex
    assert "probe 10 \\% AUROC" in latex
    assert "70.0 [60.0, 75.0] & 78.8 r" in latex
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {8, 4}  # a name, three measures or one
    paths = tables.write_table(table, tmp_path / "t2.x")
    assert [path.name for path in paths] == ["t2.x.txt", "t2.x.md", "t2.x.tex"]


def test_sets_beyond_the_paper_get_a_table_of_their_own():
    own = tidy(row(dataset="mine", task="zero-shot", metric="auroc", value=0.61, low=0.5, high=0.72, chance=0.5, n=90),
               row(dataset="rsna", task="zero-shot", metric="auroc", value=0.9, low=0.8, high=0.95))
    text = tables.other_sets_table(own).text()
    assert "61.0 [50.0, 72.0]" in text
    assert "90.0" not in text
    with pytest.raises(InputError, match="beyond the paper's"):
        tables.other_sets_table(own[own["dataset"] == "rsna"])


# ---- the plain-CLIP baseline, the ceiling and the ablation


def test_plain_clip_stands_above_the_cxr_clip_rows_even_when_it_was_not_run(full):
    table = tables.table2(full)
    models = list(table.cells.index.get_level_values("model"))
    assert models.index("CLIP") == models.index("CXR-CLIP") - 1
    assert cell(table, "resnet-small (ResNet-50)", "M", "RSNA", "zero-shot AUROC", "CLIP").startswith("67.0 [")
    without = tables.table2(full[full["model"] != "CLIP"])
    assert cell(without, "ResNet-50", "M", "RSNA", "zero-shot AUROC", "CLIP") == "–"


def test_comparison_rows_do_not_reach_the_main_tables(full):
    main = full[full["comparison"] == ""]
    for draw in (tables.table2, tables.table3, tables.table3_text_to_image):
        assert draw(full).text() == draw(main).text()


def test_seeds_and_what_the_interval_holds_are_said(full):
    table = tables.table2(full)
    assert "mean over 2 training seeds" in table.legend[0]
    assert "quadrature" in table.legend[0]
    # 0.698 and 0.702: t(1) at 97.5 % times sd / sqrt 2, and the patients' 0.01
    half = (12.7062 * 0.004 / 2) ** 2 + 0.01**2
    assert cell(table, "resnet-small (ResNet-50)", "M", "RSNA", "zero-shot AUROC").startswith(
        f"70.0 [{70 - 100 * half**0.5:.1f}, {70 + 100 * half**0.5:.1f}]")
    single = tables.table2(full[full["seeds"].isin(["0", ""])])
    assert "one seed" in single.legend[0]
    ragged = full.drop(full[(full["dataset"] == "rsna") & (full["task"] == "zero-shot") & (full["seeds"] == "1")
                            & (full["model"] == "CLIP") & (full["comparison"] == "")].index)
    assert "(1 of 2 seeds)" in cell(tables.table2(ragged), "resnet-small (ResNet-50)", "M", "RSNA", "zero-shot AUROC",
                                    "CLIP")


def test_tables_of_retrieval_tell_the_size_of_the_gallery(full):
    films = full[(full["task"] == "image_to_text") & (full["dataset"] == "openi")]["n"].max()
    assert any(line.startswith("gallery, the films") and f"Open-I {films:,.0f}" in line
               for line in tables.table3_text_to_image(full).legend)
    assert any(line.startswith("gallery, the distinct reports") for line in tables.table3(full).legend)
    assert not any(line.startswith("gallery") for line in tables.table2(full).legend)


def test_the_ceiling_is_the_last_line_of_both_directions(full):
    for draw in (tables.table3, tables.table3_text_to_image):
        table = draw(full)
        assert table.cells.index[-1] == tables.CEILING_LINE
        ours = [not measure.startswith(tables.PUBLISHED) for _, measure in table.cells.columns]
        assert list(table.cells.iloc[-1][ours]) == ["10.0", "40.0", "60.0"] * 3 + ["330.0"]
    without = tables.table3(full[full["model"] != results_rows.CEILING])
    assert set(without.cells.iloc[-1]) == {"–"}
    assert any("attainable ceiling" in line for line in without.footnotes)


def test_text_to_image_has_no_published_numbers_and_says_so(full):
    table = tables.table3_text_to_image(full)
    assert not any("pub" in text for text in (table.text(), table.markdown(), table.latex()))
    assert all("published" in text for text in (tables.table3(full).markdown(), tables.table3(full).latex()))
    for shown in (table, tables.table3(full)):  # nobody published retrieval of the other methods: no line, no footnote
        assert not any("GLoRIA" in text for text in (*(index[0] for index in shown.cells.index), *shown.footnotes))


def test_table_4_has_a_block_a_budget_and_no_published_number(full):
    table = tables.table4(full)
    assert list(table.cells.index) == [(f"equal {budget}", label) for budget in ("steps", "compute")
                                       for label in results_rows.ROW_LABELS["ablation"].values()]
    assert list(table.cells.columns) == [
        ("classification", "zero-shot AUROC"), ("classification", "probe 100 % AUROC"),
        ("retrieval", "CheXpert5x200 R@10"), ("retrieval", "MIMIC-CXR R@10"), ("retrieval", "Open-I R@10"),
        ("retrieval", "RSUM")]
    first = table.cells.loc[("equal steps", "+ MVS"), ("classification", "zero-shot AUROC")]
    assert first.startswith("73.0 [")
    empty = tables.table4(tidy())
    assert empty.cells.loc[("equal compute", "+ ICL"), ("retrieval", "Open-I R@10")] == "–"
    assert empty.footnotes[0].startswith("–: not measured; run notebooks/08 (")
    assert tables.table4(full, {"openi": "needs Open-I"}).text() == table.text()      # measured rows win
    assert "–: needs Open-I (Open-I)" in tables.table4(tidy(), {"openi": "needs Open-I"}).footnotes


def test_other_comparisons_get_the_same_columns(full):
    table = tables.comparison_table(full, "remedies")
    assert ("equal epochs", "75 % reports in each batch") in table.cells.index
    with pytest.raises(InputError, match="comparisons there: ablation"):
        tables.comparison_table(full, "no such")


def test_a_row_had_stopped_improving_if_its_last_fifth_says_so():
    def losses(run, seed, fall):
        about = {"run": run, "seeds": str(seed), "dataset": "all", "task": "loss"}
        return [row(**about, metric="training loss", value=1.5), row(**about, metric="validation loss", value=2 + seed),
                *([row(**about, metric="fall in the last fifth", value=fall)] if fall is not None else [])]
    text = tables.losses_markdown(tidy(*losses("a", 0, 0.018), *losses("a", 1, 0.000), *losses("b", 0, 0.011),
                                       *losses("c", 0, None)))
    lines = {line.split("|")[3].strip(): [cell.strip() for cell in line.split("|")[4:-1]] for line in text.splitlines()
             if line.count("|") > 4}
    assert lines["a"] == ["1.50", "2.50", "0.9%", "yes"], "means over seeds"
    assert lines["b"] == ["1.50", "2.00", "1.1%", "no"]
    assert lines["c"] == ["1.50", "2.00", "–", "–"]
    assert tables.losses_markdown(tidy()) == ""


def test_third_party_numbers_stand_apart_and_count_for_themselves(tmp_path, monkeypatch):
    text = tables.third_party_markdown()
    assert "ahead of CLIP in 9 of 9 numbers" in text
    assert "| image to text R@10 " in text
    assert re.search(r"\| image to text R@10 +\| +44\.29 \| +55\.03 \|", text)
    others = pd.read_csv(results_rows.THIRD_PARTY)
    assert not set(others["value"].round(4)) & set(results_rows.published()["value"].round(4))
    worse = others.assign(value=others["value"].where(others["metric"] != "R@1", 0.5 - others["value"]))
    worse.to_csv(tmp_path / "other.csv", index=False)
    monkeypatch.setattr(tables, "THIRD_PARTY", tmp_path / "other.csv")
    assert "ahead of CLIP in 7 of 9 numbers" in tables.third_party_markdown()


def affected(gone: pd.Series) -> set[tuple]:
    """The cells that one row bears on, written down from what the tables say they show."""
    dataset, task, metric = gone["dataset"], gone["task"], gone["metric"].removeprefix("ceiling ")
    measure = {"zero-shot": "zero-shot AUROC", "linear-probe-10": "probe 10 % AUROC",
               "linear-probe-100": "probe 100 % AUROC"}.get(task, metric)
    measure = "zero-shot accuracy" if metric == "accuracy" else measure
    if task == "size":
        return {("table 1", results.LABELS[dataset], "studies", metric)}
    line = (gone["model"], f"{gone['image_encoder']} (ResNet-50)", gone["pretraining_data"])
    table = {"image_to_text": "table 3", "text_to_image": "table 3, text to image"}.get(task, "table 2")
    if gone["model"] == results_rows.CEILING:
        line = tables.CEILING_LINE
    if gone["comparison"]:
        table, line = "table 4", (f"equal {gone['budget']}", results_rows.row_label("ablation", gone["row"]))
        short = {"zero-shot", "linear-probe-100"} & {task} or (metric in ("R@10", "RSUM") and task == "image_to_text")
        group = "retrieval" if metric.startswith("R") else "classification"
        own = f"{results.LABELS[dataset]} {measure}" if metric == "R@10" else measure
        return {(table, *line, group, own)} if short else set()
    return {(table, *line, results.LABELS[dataset], measure), (table, *line, "all three", measure)}


@pytest.mark.parametrize("seeds", [1, 2])
def test_deleting_any_row_changes_exactly_the_cells_it_bears_on(seeds, monkeypatch):
    """One run, ceilings, sizes and one line of the ablation: each row once taken away (every twelfth of two seeds')."""
    everything, paper = tidy_results(seeds), results.published()
    main = (everything["comparison"] == "") & everything["pretraining_data"].isin(["", "M"])
    ablation = (everything[["comparison", "budget", "row"]] == ["ablation", "steps", "mvs"]).all(axis=1)
    main &= everything["model"] != "CLIP"
    whole = everything[main & (everything["task"] != "collision") | ablation].reset_index(drop=True)

    monkeypatch.setattr(tables, "published", lambda: paper)
    monkeypatch.setattr(tables, "BUDGETS", ("steps",))

    def cells(frame):
        drawn = {name: draw(frame) for name, draw in TABLES.items()}
        return {(name, *line, *column): text for name, table in drawn.items()
                for column, texts in table.cells.items() for line, text in texts.items()}
    before = cells(whole)
    for i, gone in whole.iloc[::1 if seeds == 1 else 12].iterrows():
        after = cells(whole.drop(i))
        changed = {key for key in before if after[key] != before[key]}
        assert changed == affected(gone) & set(before), gone[["run", "row", "dataset", "task", "metric"]].to_dict()
        assert seeds > 1 or all(after[key].startswith("–") for key in changed)


def test_differences_table_shows_points_interval_and_adjusted_p():
    base = COMMON | {"run": "a", "dataset": "all", "task": "zero-shot", "metric": "auroc", "reference": "m",
                     "row": "m_c", "comparison": "label growth", "budget": "steps", "value": 0.045, "low": 0.02,
                     "high": 0.07, "seeds": "0 1 2", "p": 0.002, "p_holm": 0.012}
    lower = base | {"task": "image_to_text", "metric": "RSUM", "value": -0.25, "low": -0.3, "high": -0.2,
                    "p": 0.1, "p_holm": 0.2, "note": "x"}
    full = tidy(base, lower)
    table = tables.differences_table(full, "label growth")
    assert list(table.cells.index) == [("equal steps", "M,C", "M")]
    assert table.cells.iloc[0].tolist() == ["+4.5 [+2.0, +7.0], p 0.012", "–", "-25.0 [-30.0, -20.0], p 0.2"]
    assert "2 cells" in table.text()
    with pytest.raises(InputError, match="no differences of 'remedies'"):
        tables.differences_table(full, "remedies")


def test_a_rank_is_printed_as_it_is_and_a_chance_that_is_not_one_half_is_told():
    cells = tidy(row(dataset="mimic-cxr", task="image_to_text", metric="median rank", value=31.0, low=25.0, high=40.5,
                     chance=450.0),
                 row(dataset="vindr-cxr", task="pairs", metric="accuracy", value=0.7, low=0.6, high=0.8))
    table = tables.sharper_table(cells).markdown()
    assert "31.0 [25.0, 40.5]" in table
    assert "resnet-small (ResNet-50)" in table  # what was measured, not only what the paper has
    assert "70.0 [60.0, 80.0]" in table
    assert "- chance is 50 %, but: MIMIC-CXR median rank 450.0\n" in f"{table}\n"
