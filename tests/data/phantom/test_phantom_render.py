"""The phantom's films: repeatable, consistent between views, and true to the findings put in."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from cxrclip.data.phantom.anatomy import DEVICE_KINDS, FINDINGS, Case, Finding, sample_body
from cxrclip.data.phantom.lesions import build_chest
from cxrclip.data.phantom.organs import LEFT, RIGHT, Y, stack
from cxrclip.data.phantom.render import Beam, Scanner, interval, overlap, render_study
from cxrclip.errors import InputError

STILL = Scanner(noise=0.0, tilt=0.0, wander=0.0, marker="")
BOTH = ("PA", "LATERAL")
EVERY = [
    *(Finding(name, "right", "lower") for name in FINDINGS if name not in ("Support Devices", "Calcification")),
    Finding("Calcification", "right", "mid"),
    Finding("Calcification"),
    Finding("Fracture", "left", kind="clavicle"),
    *(Finding("Support Devices", "right", kind=kind) for kind in DEVICE_KINDS),
]


def case_of(*findings: Finding, seed: int = 7) -> Case:
    return Case(sample_body(np.random.default_rng(seed)), findings, seed)


@cache
def film(case: Case, view: str = "PA", scanner: Scanner = STILL, size: int = 128):
    return render_study(case, [view], scanner, size, masks=True)[0]


def name_of(finding: Finding) -> str:
    return f"{finding.name} {finding.kind or finding.side or ''}".strip()


def centre(mask: np.ndarray) -> tuple[float, float]:
    rows, cols = np.nonzero(mask)
    return float(rows.mean()), float(cols.mean())


# --- the geometry ----------------------------------------------------------------------------------------


def test_overlap_is_the_length_of_the_union_ray_by_ray() -> None:
    """Against counting millimetre steps along each ray."""
    rng = np.random.default_rng(0)
    low, high = np.full((1, 40), -50.0, np.float32), np.full((1, 40), 70.0, np.float32)
    cuts = []
    for _ in range(5):
        a, b = np.sort(rng.integers(-80, 100, (2, 1, 40)), axis=0).astype(np.float32)
        cuts.append((a, np.where(rng.random((1, 40)) < 0.3, a, b)))  # some rays miss: an empty interval
    steps = np.arange(-50, 70) + 0.5
    covered = np.any([(a < steps[:, None]) & (steps[:, None] < b) for a, b in cuts], axis=0)
    np.testing.assert_allclose(overlap((low, high), cuts)[0], covered.sum(0), atol=1e-4)


@pytest.mark.parametrize("side", [False, True])
def test_interval_of_a_ball_is_its_chord(side: bool) -> None:
    r, y0 = 60.0, 120.0
    root = np.sqrt(np.clip(r**2 - (Y - y0) ** 2, 0, None))
    pixels = np.linspace(-70, 70, 29, dtype=np.float32)
    beam = Beam(side, 1e7, 0.0, pixels, pixels, (1.0, 1.0, 1.0), 0.0, 0.0)
    low, high = interval(stack(-root, root, -root, root), beam)
    chord = 2 * np.sqrt(np.clip(r**2 - pixels[:, None] ** 2 - pixels[None] ** 2, 0, None))
    inner = chord > 40
    np.testing.assert_allclose((high - low)[inner], chord[inner], atol=1.0)
    assert (high >= low).all()
    assert ((high - low)[np.hypot(pixels[:, None], pixels[None]) > 64] == 0).all()


# --- films ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 128])
def test_shape_type_and_range(size: int) -> None:
    films = render_study(case_of(Finding("Edema", "both")), ("PA", "AP", "LATERAL"), Scanner(), size, masks=True)
    assert [f.view for f in films] == ["PA", "AP", "LATERAL"]
    for f in films:
        assert f.pixels.shape == (size, size)
        assert f.pixels.dtype == np.uint8
        assert f.pixels.std() > 40
        assert f.masks[0].shape == (size, size)
        assert f.masks[0].dtype == bool


def test_repeatable_and_independent_of_order() -> None:
    a, b = case_of(Finding("Pneumonia", "left", "lower")), case_of(Finding("Fibrosis", "both"), seed=8)
    first = render_study(a, BOTH, Scanner())
    render_study(b, BOTH, Scanner())
    again = render_study(a, ("LATERAL", "AP", "PA"), Scanner())
    assert np.array_equal(first[0].pixels, again[2].pixels)
    assert np.array_equal(first[1].pixels, again[0].pixels)
    assert not np.array_equal(film(a).pixels, film(replace(a, seed=99)).pixels)


def test_unknown_view_is_refused() -> None:
    with pytest.raises(InputError, match="OBLIQUE"):
        render_study(case_of(), ["OBLIQUE"], STILL)


def test_impossible_findings_are_refused() -> None:
    for wrong in ({"name": "Scurvy"}, {"name": "Mass", "side": "middle"}, {"name": "Mass", "severity": 4}):
        with pytest.raises(InputError):
            Finding(**wrong)
    with pytest.raises(InputError):
        Finding("Mass", kind="pacemaker")


def test_a_normal_chest_reads_as_one() -> None:
    """Lungs dark, heart and abdomen bright, heart to the patient's left, right dome the higher."""
    for seed in range(6):
        pixels = film(case_of(seed=seed)).pixels.astype(float)
        right, left = pixels[40:70, 30:46].mean(), pixels[40:70, 84:98].mean()
        middle, belly = pixels[60:80, 58:68].mean(), pixels[112:124, 40:90].mean()
        assert max(right, left) + 60 < min(middle, belly)
        assert pixels[74:82, 74:84].mean() > pixels[74:82, 42:52].mean() + 20


# --- findings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finding", EVERY, ids=name_of)
@pytest.mark.parametrize("view", BOTH)
def test_each_finding_changes_the_film_most_inside_its_mask(finding: Finding, view: str) -> None:
    severe = replace(finding, severity=3)
    normal, ill = film(case_of(), view), film(case_of(severe), view)
    change = np.abs(ill.pixels.astype(float) - normal.pixels)
    mask = ill.masks[0]
    assert 8 < mask.sum() < 0.6 * mask.size
    if view == "LATERAL" and finding.kind == "clavicle":
        return  # both shoulders hide it, as they do on a real film
    assert change[mask].mean() > 1.5 * change[~mask].mean()
    assert change[mask].max() > 12


@pytest.mark.parametrize("finding", EVERY, ids=name_of)
def test_severity_shows(finding: Finding) -> None:
    normal = film(case_of()).pixels.astype(float)
    change = [np.abs(film(case_of(replace(finding, severity=k))).pixels - normal).sum() for k in (1, 2, 3)]
    assert change[0] < change[1] < change[2]


@pytest.mark.parametrize("name", ["Pleural Effusion", "Pneumothorax", "Consolidation", "Mass", "Tuberculosis"])
def test_the_patients_right_is_image_left(name: str) -> None:
    for view in ("PA", "AP"):
        assert centre(film(case_of(Finding(name, "right", "mid")), view).masks[0])[1] < 60
        assert centre(film(case_of(Finding(name, "left", "mid")), view).masks[0])[1] > 68


@pytest.mark.parametrize("name", ["Consolidation", "Nodule", "Mass", "Infiltration"])
def test_zone_is_the_same_height_in_both_views(name: str) -> None:
    rows = {}
    for zone in ("upper", "mid", "lower"):
        films = render_study(case_of(Finding(name, "right", zone)), BOTH, STILL, 128, masks=True)
        rows[zone] = [centre(f.masks[0])[0] for f in films]
        assert abs(rows[zone][0] - rows[zone][1]) < 8
    assert rows["upper"][0] + 8 < rows["mid"][0] < rows["lower"][0] - 8


def cardiothoracic_ratio(view: str, severity: int, seed: int) -> float:
    """Widest row of the heart against the width of both lungs, from masks: emphysema marks the lungs."""
    case = case_of(Finding("Cardiomegaly", severity=severity), Finding("Emphysema", severity=1), seed=seed)
    heart, lungs = film(case, view).masks.values()
    cols = np.nonzero(lungs.any(0))[0]
    return heart.sum(1).max() / (cols[-1] - cols[0])


def test_cardiomegaly_raises_the_cardiothoracic_ratio() -> None:
    for seed in range(4):
        mild, moderate, severe = (cardiothoracic_ratio("PA", k, seed) for k in (1, 2, 3))
        assert 0.35 < mild < moderate < severe < 0.85
        assert cardiothoracic_ratio("AP", 1, seed) > mild


def test_ap_is_more_than_a_scaled_pa() -> None:
    """No zoom and shift of the PA film comes near the AP film of the same patient."""
    case = case_of()
    pa, ap = (film(case, view).pixels.astype(np.float32) for view in ("PA", "AP"))
    best = np.inf
    for zoom in np.linspace(0.9, 1.12, 12):
        moved = cv2.warpAffine(pa, cv2.getRotationMatrix2D((63.5, 63.5), 0, zoom), pa.shape)
        for shift in range(-10, 11, 2):
            error = np.abs(np.roll(moved, shift, axis=0) - ap)[20:108, 20:108].mean()
            best = min(best, error)
    assert best > 8


def test_findings_do_not_disturb_each_other() -> None:
    """A second finding leaves the first where it was."""
    nodule = Finding("Nodule", "left", "upper", 3)
    alone = film(case_of(nodule)).masks[0]
    together = film(case_of(nodule, Finding("Pleural Effusion", "right", None, 1))).masks[0]
    assert (alone & together).sum() > 0.8 * alone.sum()


def test_pneumothorax_pushes_and_atelectasis_pulls_the_mediastinum() -> None:
    def shift(name: str) -> float:
        return build_chest(case_of(Finding(name, "left", severity=3)), supine=False).shape.shift

    assert shift("Pneumothorax") < -5
    assert shift("Atelectasis") > 5
    chest = build_chest(case_of(Finding("Atelectasis", "left", severity=3)), supine=False)
    assert chest.shape.dome[LEFT] < chest.shape.dome[RIGHT]


def test_a_side_left_open_is_one_side() -> None:
    """The raised dome and the plates of an atelectasis lie on the same side."""
    for seed in range(6):
        case = case_of(Finding("Atelectasis", zone="lower", severity=3), seed=seed)
        dome = build_chest(case, supine=False).shape.dome
        on_right = centre(film(case).masks[0])[1] < 64
        assert on_right == (dome[RIGHT] < dome[LEFT])


def test_scanners_differ_and_stay_legible() -> None:
    case = case_of()
    plain = film(case, scanner=Scanner())
    other = film(case, scanner=Scanner(gamma=1.2, noise=0.05, border=30, marker="R"))
    assert np.abs(plain.pixels.astype(float) - other.pixels).mean() > 10
    assert plain.pixels.std() > 40 < other.pixels.std()
