"""Figures are tested through the data their artists hold: what is drawn is what the frame says."""

from __future__ import annotations

import json
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from cxrclip.errors import InputError
from cxrclip.results import figures

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def tidy(**columns) -> pd.DataFrame:
    n = max(len(value) for value in columns.values() if isinstance(value, list))
    common = {"comparison": "", "dataset": "rsna", "task": "zero-shot", "metric": "auroc", "chance": 0.5}
    return pd.DataFrame(common | columns, index=range(n))


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_training_curves_draw_each_term_and_validation_where_it_was_read(axes):
    steps = np.arange(1, 9)
    validation = np.where(steps % 4 == 0, 2.0, np.nan)
    log = pd.DataFrame({"step": steps, "total": 9.0 / steps, "mvs": 4.0 / steps, "valid_total": validation})
    figures.training_curves(log, axes, ["total", "mvs", "valid_total"])
    assert legend(axes) == ["total", "MVS", "total, validation"]
    raw, _, _, _, valid = axes.lines
    np.testing.assert_array_equal(raw.get_xydata(), np.stack([steps, 9.0 / steps], 1))
    np.testing.assert_array_equal(valid.get_xydata(), [[4, 2.0], [8, 2.0]])
    assert axes.get_ylabel() == "loss (nats)"
    with pytest.raises(InputError, match="no column 'tcl'"):
        figures.training_curves(log, axes, columns=["tcl"])


def test_training_panels_draw_the_terms_that_are_trained_and_the_chance_level():
    log = pd.DataFrame({"step": [1, 2], "mvs": [4.0, 3.0], "icl": 0.0, "tcl": [2.0, 1.0], "valid_mvs": [np.nan, 3.5]})
    figure, axes = plt.subplots(1, 2, sharey=True)
    figures.training_panels({"CXR-CLIP": log, "CLIP": log.assign(tcl=0.0)}, axes, chance=3.9)
    assert [axis.get_title() for axis in axes] == ["CXR-CLIP", "CLIP"]
    assert [legend(axis) for axis in axes] == [["MVS", "TCL", "MVS, validation"], ["MVS", "MVS, validation"]]
    assert [list(axis.lines[-1].get_ydata()) for axis in axes] == [[3.9, 3.9]] * 2
    plt.close(figure)


def test_similarity_matrix_is_symmetric_around_zero_and_boxes_the_pairs(axes):
    matrix = np.array([[0.9, -0.2, 0.1], [0.0, 0.5, 0.3]])
    figures.similarity_matrix(matrix, axes, rows=["a", "b"], columns=["x", "y", "z"])
    image = axes.images[0]
    np.testing.assert_array_equal(image.get_array(), matrix)
    assert image.get_clim() == (-0.9, 0.9)
    assert [patch.get_xy() for patch in axes.patches] == [(-0.5, -0.5), (0.5, 0.5)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_forest_draws_values_intervals_and_chance(axes):
    frame = tidy(dataset=["rsna", "siim", "rsna"], run=["M", "M", "M,C"], value=[0.7, 0.8, 0.6], low=[0.65, 0.7, 0.5],
                 high=[0.8, 0.85, np.nan])
    figures.auroc_forest(frame, axes)
    first, second = axes.containers
    np.testing.assert_allclose(first.lines[0].get_xdata(), [0.7, 0.8])
    ends = first.lines[2][0].get_segments()
    np.testing.assert_allclose([[end[0][0], end[1][0]] for end in ends], [[0.65, 0.8], [0.7, 0.85]])
    np.testing.assert_allclose(second.lines[0].get_xdata(), [0.6])
    assert set(legend(axes)) == {"M", "M,C", "chance"}
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in dashed] == [[0.5, 0.5]] * 2


def test_main_points_are_filled_where_measured_and_hollow_where_published(axes):
    frame = tidy(value=[0.7, 0.8, 0.75, 0.9], low=[0.6, 0.75, np.nan, np.nan], high=[0.75, 0.9, np.nan, np.nan],
                 status=["", "", "recalled", "recalled"])
    frame = frame.assign(measure="RSNA", line=["M", "M,C", "M,C", "never measured"])
    figures.main_points(frame, axes)
    assert [float(container.lines[0].get_xdata()[0]) for container in axes.containers] == pytest.approx([70, 80])
    (hollow,) = [line for line in axes.lines if line.get_fillstyle() == "none" and len(line.get_xdata())
                 and line.get_color() != figures.CHANCE]
    assert hollow.get_xdata() == pytest.approx([75])
    assert hollow.get_ydata() == axes.containers[1].lines[0].get_ydata(), "beside the measured point of its row"
    assert legend(axes) == ["published, on real films", "M", "M,C"]


def test_forest_refuses_two_rows_on_one_point_and_mixed_metrics(axes):
    frame = tidy(run=["M", "M"], value=[0.7, 0.8], low=[0.6, 0.7], high=[0.8, 0.9])
    with pytest.raises(InputError, match="several rows for rsna, M"):
        figures.auroc_forest(frame, axes)
    with pytest.raises(InputError, match="one metric"):
        figures.auroc_forest(frame.assign(run=["M", "C"], metric=["auroc", "accuracy"]), axes)


def test_recall_curve_counts_ranks_up_to_k(axes):
    ranks = pd.DataFrame({"rank": [1.0, 1.5, 4.0, 10.0], "n_candidates": 10, "direction": "image_to_text"})
    figures.recall_curve(ranks, axes)
    curve, chance = axes.lines
    expected = {1: 25.0, 2: 50.0, 3: 50.0, 4: 75.0, 10: 100.0}
    drawn = dict(curve.get_xydata())
    assert {k: drawn[k] for k in expected} == expected
    np.testing.assert_allclose(chance.get_ydata(), 10.0 * chance.get_xdata())


def test_label_efficiency_draws_ways_with_labels_as_lines_and_without_as_a_level(axes):
    rows = pd.DataFrame({"run": ["zero-shot", "probe", "probe"], "labels": [0, 100, 10], "value": [0.8, 0.9, 0.7],
                         "low": [0.7, 0.8, 0.6], "high": [0.9, 1.0, 0.8]})
    figures.label_efficiency(rows, axes)
    level, curve, chance = axes.lines
    assert set(level.get_ydata()) == {80.0}
    np.testing.assert_allclose(curve.get_xydata(), [[10, 70.0], [100, 90.0]])
    assert set(chance.get_ydata()) == {50.0}


def test_reliability_is_drawn_in_percent_beside_the_diagonal(axes):
    table = pd.DataFrame({"predicted": [0.2, 0.7], "observed": [0.1, 0.9], "low": [0.0, 0.8], "high": [0.3, 1.0]})
    figures.reliability({"probe": table}, axes)
    diagonal, line = axes.lines[:2]
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 100]
    np.testing.assert_allclose(line.get_xydata(), [[20, 10], [70, 90]])


def test_risk_coverage_is_drawn_in_percent(axes):
    figures.risk_coverage({"probe": pd.DataFrame({"coverage": [0.5, 1.0], "risk": [0.0, 0.25]})}, axes)
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[50, 0], [100, 25]])


def test_curves_over_the_scale_keep_their_values(axes):
    figures.over_scale(np.array([1.0, 10.0]), {"a": [0.2, 0.4]}, axes, "MVS (nats)", {"chance": 3.0})
    curve, level, _ = axes.lines
    np.testing.assert_allclose(curve.get_xydata(), [[1, 0.2], [10, 0.4]])
    assert set(level.get_ydata()) == {3.0}


def test_growth_draws_measured_points_and_the_models_line():
    _, axes = plt.subplots()
    frame = pd.DataFrame({"x": [1, 2], "value": [10.0, 20], "low": [8.0, 19], "high": [11.0, 30], "model": [9.0, 18]})
    figures.growth({"20 tokens": frame}, axes, "batch", "CPU ms a step")
    model = next(line for line in axes.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(model.get_xydata(), [[1, 9], [2, 18]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    assert axes.get_yscale() == "log"


def test_pointing_has_a_line_a_finding_and_chance_without_interval():
    _, axes = plt.subplots()
    table = pd.DataFrame({"hits": [0.1, 0.8], "low": [0.1, 0.6], "high": [0.1, 0.9]}, index=["chance", "model"])
    figures.pointing({"Mass": table, "Edema": table / 2}, axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Mass", "Edema"]
    chance, model = axes.containers
    np.testing.assert_allclose(np.asarray(model[0].get_xdata(), float), [80, 40])
    assert chance[2] == ()
    assert len(model[2]) == 1


def test_where_it_looks_shows_falls_alone_and_the_outline():
    _, axes = plt.subplots()
    mask = np.zeros((8, 8), bool)
    mask[2:5, 2:5] = True
    figures.where_it_looks(np.zeros((8, 8), np.uint8), np.array([[-1.0, 2], [0, 1]]), mask, axes, "model")
    film, fall = axes.images
    assert fall.get_array().min() == 0
    assert film.get_extent() == fall.get_extent()


def test_two_rings_hold_images_outside_and_texts_inside():
    figure = plt.figure()
    axes = figure.add_subplot(projection="polar")
    degrees = np.array([[0.0, 90.0], [180.0, 270.0]])
    figures.on_two_rings(degrees, axes, "title", towards=degrees + 5)
    images, _, texts, _ = axes.collections
    np.testing.assert_allclose(images.get_offsets(), [[0, 1], [np.pi / 2, 1]])
    np.testing.assert_allclose(texts.get_offsets(), [[np.pi, 0.75], [1.5 * np.pi, 0.75]])
    assert len(axes.texts) == 4, "an arrow a point"


def test_recall_panels_share_one_legend_above_them():
    ranks = pd.DataFrame({"rank": [1.0, 2.0], "n_candidates": 10, "direction": "image_to_text"})
    figure, axes = plt.subplots(1, 3, layout="constrained")
    figures.recall_panels({"Open-I": ranks, "MIMIC-CXR": ranks}, axes)
    assert [axis.get_title() for axis in axes] == ["Open-I", "MIMIC-CXR", ""]
    assert [axis.get_legend() for axis in axes] == [None] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["image_to_text", "chance (one right answer)"]
    assert [axis.get_ylabel() for axis in axes[:2]] == ["R@k (%)", ""]
    plt.close(figure)


def both_axes(rows, x, y, **columns) -> pd.DataFrame:
    """Rows with a classification value x and a retrieval value y, 0.05 wide to each side."""
    parts = [tidy(row=rows, value=values, low=[v - 0.05 for v in values], high=[v + 0.05 for v in values],
                  dataset="all", task=task, metric=metric, reference="",
                  **{"class": "all", "budget": "steps", **columns})
             for values, (_, task, metric) in ((x, figures.CLASSIFICATION), (y, figures.RETRIEVAL))]
    return pd.concat(parts, ignore_index=True)


def points(axes) -> list[list[float]]:
    return [xy.tolist() for container in axes.containers for xy in container.lines[0].get_xydata()]


def test_pareto_draws_a_line_a_budget_in_the_order_of_the_rows(axes):
    frame = pd.concat([both_axes(["M", "M + 50% C", "M,C"], [0.6, 0.65, 0.7], [0.3, 0.25, 0.2]),
                       both_axes(["M", "A"], [0.6, 0.8], [0.3, 0.4], budget="epochs")])
    figures.pareto(frame, axes)
    drawn = [line.get_xydata() for line in axes.lines
             if line.get_marker() in figures.MARKERS and line.get_linestyle() != "None"]
    np.testing.assert_allclose(np.concatenate(drawn), [[60, 30], [65, 25], [70, 20], [60, 30], [80, 40]])
    assert [text.get_text() for text in axes.texts] == ["M", "M,C", "M", "A"]
    assert legend(axes) == ["equal steps", "equal epochs"]
    ends = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([[end[0][0], end[1][0]] for end in ends], [[55, 65], [60, 70], [65, 75]])
    assert "AUROC" in axes.get_xlabel()
    assert "RSUM" in axes.get_ylabel()
    with pytest.raises(InputError, match="epochs, A lacks"):
        figures.pareto(frame.iloc[:-1], axes)


def test_remedies_cross_at_the_papers_recipe(axes):
    frame = both_axes(["reports_75", "m_c_c14"], [0.72, 0.74], [0.2, 0.13])
    figures.remedies_plot(frame, axes)
    np.testing.assert_allclose(points(axes), [[72, 20], [74, 13]])
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [dashed[0].get_xdata()[0], dashed[1].get_ydata()[0]] == [74, 13]
    with pytest.raises(InputError, match="no row 'm_c_c14'"):
        figures.remedies_plot(frame[frame["row"] != "m_c_c14"], axes)


def test_nine_remedies_look_all_different(axes):
    rows = [f"remedy {i}" for i in range(8)] + ["m_c_c14"]
    figures.remedies_plot(both_axes(rows, [0.7] * 9, [0.2] * 9), axes)
    looks = [(line.get_color(), line.get_marker(), line.get_markerfacecolor())
             for line in (container.lines[0] for container in axes.containers)]
    assert len(set(looks)) == 9


def test_ablation_forest_draws_points_of_difference(axes):
    frame = pd.DataFrame({"comparison": "ablation", "row": ["clip", "mvs", "clip"],
                          "budget": ["steps", "steps", "compute"], "metric": "RSUM", "reference": "tcl",
                          "value": [-0.3, -0.1, 0.05], "low": [-0.4, -0.2, -0.05],
                          "high": [-0.2, 0.0, 0.15]})
    figures.ablation_forest(frame, axes)
    np.testing.assert_allclose([x for x, _ in points(axes)], [-30, -10, 5])
    assert legend(axes) == ["no difference", "equal steps", "equal compute"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["CLIP", "+ MVS"]
    assert "difference to + TCL (" in axes.get_xlabel()
    with pytest.raises(InputError, match="several rows"):
        figures.ablation_forest(pd.concat([frame, frame]), axes)


def test_weights_are_read_from_the_rows_and_sorted(axes):
    frame = both_axes(["icl_1", "icl_0.3", "tcl_0.5"], [0.5] * 3, [0.1, 0.3, 0.2])
    figures.weights_curve(frame, axes)
    np.testing.assert_allclose(points(axes), [[0.295, 30], [0.995, 10], [0.505, 20]])     # side by side, not covered
    dotted = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert dotted == [0.995, 0.505]
    with pytest.raises(InputError, match="'full' has no weight"):
        figures.weights_curve(frame.replace("tcl_0.5", "full"), axes)


def test_coarse_text_is_drawn_in_the_order_of_the_rows(axes):
    frame = tidy(row=["M", "M,C"], value=[0.75, 0.6], low=[0.7, 0.5], high=[0.8, 0.7], budget="steps",
                 **{"class": "side"})
    figures.coarse_text(frame, axes)
    np.testing.assert_allclose(points(axes), [[0, 75], [1, 60]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["M", "M,C"]
    assert legend(axes) == ["side, chance", "side"]
    with pytest.raises(InputError, match="one budget"):
        figures.coarse_text(frame.assign(budget=["steps", "epochs"]), axes)


def test_kinds_of_texts_have_a_point_for_each_set(axes):
    frame = tidy(row=["m", "m", "m_c_c14"], dataset=["mimic-cxr", "chexpert5x200", "mimic-cxr"], value=[0.2, 0.3, 0.9],
                 low=[0.1, 0.2, 0.8], high=[0.3, 0.4, 1.0], comparison="remedies")
    figures.text_kinds(frame, axes)
    assert sorted(x for x, _ in points(axes)) == pytest.approx([20, 30, 90])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["M alone", "M,C,C14"]
    assert legend(axes) == ["one half", "MIMIC-CXR", "CheXpert5x200"]
    with pytest.raises(InputError, match="several rows for m, MIMIC-CXR"):
        figures.text_kinds(pd.concat([frame, frame], ignore_index=True), axes)


def test_collisions_stand_beside_the_real_tables(axes):
    frame = pd.DataFrame({"dataset": ["C14", "C14", "M"], "class": ["label set", "label set", "longest section"],
                          "origin": ["published", "measured", "measured"], "value": [0.3, 0.25, 0.002],
                          "low": np.nan, "high": np.nan})
    figures.collisions(frame, axes)
    np.testing.assert_allclose(points(axes), [[0.3, 0.12], [0.25, -0.12], [0.002, 0.88]])
    assert axes.get_xscale() == "log"
    assert legend(axes) == ["real public table", "phantom"]


def test_dots_stand_beside_each_other_and_zero_has_none_on_a_logarithmic_axis(axes):
    figures.dots(pd.DataFrame({"here": [0.1, 0.0], "there": [0.2, 0.4]}, index=["a", "b"]), axes, "share", log=True)
    (here, there) = axes.lines
    np.testing.assert_allclose(here.get_xdata(), [0.1, np.nan])
    np.testing.assert_allclose(there.get_ydata(), [0.075, 1.075])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert (axes.get_xscale(), axes.get_xlabel(), legend(axes)) == ("log", "share", ["here", "there"])


def test_films_keep_a_fixed_gray_range_and_spare_axes_are_off():
    figure, axes = plt.subplots(1, 3)
    films = [np.full((8, 8), value, np.uint8) for value in (50, 60)]
    figures.contact_sheet(films, ["a", "b"], axes)
    assert [axis.images[0].get_clim() for axis in axes[:2]] == [(0, 255)] * 2
    assert [axis.get_title() for axis in axes] == ["a", "b", ""]
    assert not axes[2].axison
    with pytest.raises(InputError, match="2 films, 1 titles"):
        figures.contact_sheet(films, ["a"], axes)
    plt.close(figure)


def test_a_films_title_is_wrapped_between_words():
    figure, axes = plt.subplots(1, 6, figsize=(8, 1.6))
    figures.film(np.zeros((8, 8), np.uint8), axes[0], "Enlarged Cardiomediastinum")
    assert axes[0].get_title() == "Enlarged\nCardiomediastinum"
    plt.close(figure)


def test_overlay_tints_the_mask_and_names_findings_not_seen(axes):
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:5] = True
    figures.finding_overlay(np.zeros((8, 8), np.uint8), {"Edema": mask, "Hernia": np.zeros((8, 8), bool)}, axes)
    np.testing.assert_array_equal(axes.images[1].get_array()[..., 3] > 0, mask)
    assert legend(axes) == ["Edema", "Hernia (not in this view)"]


def test_retrieval_example_shows_every_report_and_marks_the_own():
    figure, axes = plt.subplots(1, 2)
    reports = pd.DataFrame({"rank": [1, 2, 7], "score": [0.9, 0.8, 0.1], "own": [False, False, True],
                            "text": ["Clear lungs.", "", "Large left pleural effusion. " * 60]})
    figures.retrieval_example(np.zeros((8, 8), np.uint8), reports, axes)
    texts = [text.get_text() for text in axes[1].texts]
    assert texts[0] == "rank 1   cosine 0.90"
    assert texts[3] == "(empty report)"
    assert texts[4].startswith("rank 7")
    assert "own report" in texts[4]
    assert texts[5].endswith("…")
    boxes = [patch.get_bbox() for patch in axes[1].patches]
    assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))
    assert boxes[-1].y0 >= 0
    plt.close(figure)


def test_co_occurrence_shows_the_matrix(axes):
    matrix = pd.DataFrame([[100.0, 20.0], [30.0, 100.0]], ["Edema", "Mass"], ["Edema", "Mass"])
    figures.co_occurrence(matrix, axes)
    assert [text.get_text() for text in axes.texts] == ["100", "20", "30", "100"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Edema", "Mass"]


def test_roc_of_perfect_scores_and_of_one_outcome(axes):
    frame = pd.DataFrame({"class": ["Edema"] * 4 + ["Hernia"] * 2, "score": [1, 2, 3, 4, 1, 2],
                          "target": [False, False, True, True, False, False]})
    figures.roc_curves(frame, axes)
    np.testing.assert_array_equal(axes.lines[0].get_xydata()[-2:], [[0, 1], [1, 1]])
    assert legend(axes) == ["Edema (2 positive)", "Hernia (one outcome only)", "chance"]


def test_counts_bars_carry_their_numbers(axes):
    counts = pd.DataFrame({"name": ["Edema", "Mass", "Edema"], "count": [1200, 3, 7], "source": ["M", "M", "C"]})
    figures.counts_bars(counts, axes, by="source")
    assert [bar.get_width() for bar in axes.patches] == [1200, 3, 7]
    assert [text.get_text() for text in axes.texts] == ["1,200", "3", "7"]
    assert legend(axes) == ["M", "C"]


def test_bars_that_stand_alone_are_centred_at_their_names(axes):
    figures.counts_bars(pd.DataFrame({"name": ["Edema", "Mass"], "count": [1, 2], "by": ["M", "C"]}), axes, by="by")
    assert [bar.get_y() + bar.get_height() / 2 for bar in axes.patches] == [0, 1]


def test_many_curves_never_look_the_same():
    looks = figures._looks(range(21))
    assert len({(colour, style) for _, _, colour, _, style in looks}) == 21
    assert len({offset for _, offset, _, _, _ in looks}) == 21


ORIGIN = {"data": "d0", "key": "e0", "versions": {"torch": "2"}, "commit": "c0", "command": "make reproduce"}


def test_saved_figures_are_the_same_bytes_and_carry_their_origin(tmp_path):
    def draw(folder):
        figure, axes = plt.subplots(figsize=(2, 2))
        axes.plot([0, 1], [1, 0])
        paths = figures.save_figure(figure, folder / "curve.v2", ORIGIN, "A line that falls")
        plt.close(figure)
        return paths
    first, second = draw(tmp_path / "a"), draw(tmp_path / "b")
    assert [path.name for path in first] == ["curve.v2.png", "curve.v2.svg", "curve.v2.json"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert json.loads(first[2].read_text()) == ORIGIN | {"alt": "A line that falls"}
    assert all(b"A line that falls" in path.read_bytes() for path in first)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in first)


def test_a_figure_without_origin_alt_text_or_folder_is_refused(tmp_path):
    figure = plt.figure()
    with pytest.raises(InputError, match="lacks versions, commit, command"):
        figures.save_figure(figure, tmp_path / "f", {"data": "", "key": ""}, "text")
    with pytest.raises(InputError, match="no alt text"):
        figures.save_figure(figure, tmp_path / "f", ORIGIN, " ")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        figures.save_figure(figure, tmp_path / "file" / "f", ORIGIN, "text")
    plt.close(figure)


def test_empty_frames_and_lacking_columns_are_refused(axes):
    with pytest.raises(InputError, match="no rows to draw"):
        figures.counts_bars(pd.DataFrame({"name": [], "count": []}), axes)
    with pytest.raises(InputError, match="no column 'target'"):
        figures.roc_curves(pd.DataFrame({"score": [1], "class": ["a"]}), axes)


def test_ledger_forest_keeps_the_ledgers_order_and_names_single_sets():
    rows = [("official", "all", -0.1), ("D3", "openi", 0.05), ("B3", "all", -0.02)]
    frame = pd.DataFrame([{"comparison": "ledger", "row": row, "budget": "evaluation" if row == "D3" else "steps",
                           "dataset": dataset, "task": "image_to_text", "metric": "RSUM",
                           "reference": f"{row}'s reference", "value": value, "low": value - 0.03,
                           "high": value + 0.03} for row, dataset, value in rows])
    axes = figures.ledger_forest(frame, plt.figure().subplots())
    assert [label.get_text() for label in axes.get_yticklabels()] == ["B3", "D3 (Open-I)", "official"]
    assert {text.get_text() for text in axes.get_legend().get_texts()} >= {"equal steps", "one run, scored both ways"}
    assert "difference to the intended" in axes.get_xlabel()
    with pytest.raises(InputError, match="no rows to draw"):
        figures.ledger_forest(frame.assign(task="zero-shot"), plt.figure().subplots())
