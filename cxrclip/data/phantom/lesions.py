"""Findings as anatomy: each changes the shape of the chest, adds tissue to it, or both."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import numpy as np

from cxrclip.data.phantom import organs
from cxrclip.data.phantom.anatomy import DEVICE_KINDS, Case, Finding
from cxrclip.data.phantom.organs import BONE, LEFT, LUNG, METAL, RIGHT, SIGN, SOFT, Blob, Chest, Dust, Shape, Y

ZONE_Y = {"upper": (40.0, 74.0), "mid": (98.0, 136.0), "lower": (158.0, 190.0)}


def finding_sides(finding: Finding, rng: np.random.Generator) -> list[int]:
    """Side indices; a finding without a side takes one at random."""
    return {"right": [RIGHT], "left": [LEFT], "both": [RIGHT, LEFT], None: [int(rng.integers(2))]}[finding.side]


Grades = tuple[float, float, float]  # for mild, moderate and severe
# Of the shape: what a finding multiplies, what it adds in mm, and the organ whose own size it is.
TIMES: Mapping[str, Mapping[str, Grades]] = {
    "Cardiomegaly": {"heart": (1.16, 1.32, 1.52)},
    "Enlarged Cardiomediastinum": {"mediastinum": (1.18, 1.38, 1.7)},
    "Aortic Enlargement": {"aorta": (1.2, 1.45, 1.75), "knob": (1.25, 1.5, 1.8)},
    "Edema": {"upper_vessels": (1.06, 1.15, 1.25), "vessels": (1.04, 1.1, 1.17)},
    "Emphysema": {"heart": (0.98, 0.94, 0.87), "dome_depth": (0.93, 0.8, 0.6), "lung_mu": (0.92, 0.78, 0.56),
                  "vessels": (0.94, 0.82, 0.64)},
}  # fmt: skip
PLUS: Mapping[str, Mapping[str, Grades]] = {
    "Emphysema": {"barrel": (3, 9, 20), "sink": (3, 8, 16), "dome": (4, 11, 22)},
}
OWNED = {"Cardiomegaly": "heart", "Enlarged Cardiomediastinum": "mediastinum", "Aortic Enlargement": "aorta"}
# On its side: mm the diaphragm rises, and mm the mediastinum comes nearer.
RISE: Mapping[str, Grades] = {"Atelectasis": (8, 20, 36), "Tuberculosis": (0, 6, 14), "Fibrosis": (8, 18, 30)}
PULL: Mapping[str, Grades] = {"Atelectasis": (0, 6, 16), "Tuberculosis": (0, 4, 9), "Fibrosis": (0, 2, 4),
                              "Pneumothorax": (0, -4, -18), "Pleural Effusion": (0, 0, -10)}  # fmt: skip


def _reshape(shape: Shape, f: Finding, i: int, rng: np.random.Generator) -> None:
    """Apply finding number i to the shape of the chest."""
    grade, sides = f.severity - 1, finding_sides(f, rng)
    for table, change in ((TIMES, operator.mul), (PLUS, operator.add)):
        for name, grades in table.get(f.name, {}).items():
            old, by = getattr(shape, name), grades[grade]
            setattr(shape, name, [change(v, by) for v in old] if isinstance(old, list) else change(old, by))
    if f.name in OWNED:
        shape.owners[OWNED[f.name]] = i
    for s in sides:
        shape.dome[s] -= RISE[f.name][grade] if f.name in RISE else 0
    if f.name in PULL:
        shape.shift += float(np.mean([SIGN[s] for s in sides])) * PULL[f.name][grade]
    if f.name in ("Pneumothorax", "Pleural Effusion", "Pleural Thickening"):
        _open_pleura(shape, f, i, sides)


def _open_pleura(shape: Shape, f: Finding, i: int, sides: list[int]) -> None:
    """Put air, fluid or fibrous tissue between chest wall and lung: mm of gap at each height."""
    grade = f.severity - 1
    for s in sides:
        if f.name == "Pneumothorax":
            g = (14, 32, 70)[grade]
            shape.lung_mu[s] *= (1.1, 1.35, 2.0)[grade]  # what collapses grows denser
            gap, mu = organs.along((-10, g), (40, g), (150, 0.75 * g), (260, 0.5 * g)), 0.0
        elif f.name == "Pleural Effusion":
            floor = 252 + shape.dome[s] - 206
            top, rise = floor - (34, 76, 150)[grade], (44, 52, 64)[grade]
            gap, mu = 150 * np.clip((Y - top) / rise, 0, 1) ** 1.8, SOFT
        else:
            t = (9, 15, 24)[grade]
            y0, y1 = {"upper": (-20, 62), "mid": (70, 150), "lower": (140, 240), None: (30, 230)}[f.zone]
            gap, mu = organs.along((y0 - 25, 0), (y0, t), (y1, t), (y1 + 25, 0)), SOFT * 1.1
        shape.gaps[s].append((gap.astype(np.float32), mu, i))


def spot(side: int, zone: str | None, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """A point well inside the lung of that side and zone."""
    zone = zone or ("upper", "mid", "lower")[int(rng.integers(3))]
    y = rng.uniform(*ZONE_Y[zone])
    if zone == "lower":
        y += shape.dome[side] - 206
    out = np.interp(y, Y, organs.THORAX.cavity_out)
    x, z = rng.uniform(0, 1, 2)
    if zone == "lower":  # beside the heart, towards the back
        return np.array([SIGN[side] * (0.55 + 0.22 * x) * out, y, -62 + 42 * z])
    return np.array([SIGN[side] * (0.48 + 0.24 * x) * out, y, (-45 + 65 * z) * (0.5 if zone == "upper" else 1)])


def cluster(centre: np.ndarray, radius: float, peak: float, n: int, owner: int, rng: np.random.Generator,
            grain: float = 0.42) -> list[Blob]:
    """An irregular opacity of n clouds; `peak` is about the optical depth through its middle."""
    offset = rng.normal(0, 0.4, (n, 3)) * radius * np.array([1, 1, 0.9])
    sigma = grain * radius * rng.uniform(0.7, 1.3, (n, 3))
    share = peak / (n * np.sqrt(2 * np.pi)) * (0.16 + grain**2) / grain**2
    return [Blob(tuple(centre + o), tuple(s), float(share / s[2]), owner) for o, s in zip(offset, sigma, strict=True)]


def strokes(centres: np.ndarray, length: float, radius: float, mu: float, owner: int, rng: np.random.Generator,
            flat: float = 1.0) -> Dust:
    """Short curved lines in all directions: septa, reticulation, streaks. flat < 1 keeps them horizontal."""
    n, m = len(centres), 12
    way = rng.normal(0, 1, (n, 1, 3)) * np.array([1, flat, 1])
    way *= length * rng.uniform(0.6, 1.3, (n, 1, 1)) / np.linalg.norm(way, axis=2, keepdims=True)
    bend = rng.normal(0, 0.12 * length, (n, 1, 3))
    t = np.linspace(-0.5, 0.5, m)[None, :, None]
    xyz = centres[:, None] + way * t + bend * (t**2 - 0.08)
    mass = np.full(n * m, mu * np.pi * radius**2 * length / m, np.float32)
    return Dust(xyz.reshape(-1, 3).astype(np.float32), mass, radius / 2, owner, in_lung=True)


def _opacity(chest: Chest, shape: Shape, f: Finding, i: int, rng: np.random.Generator) -> None:
    """Consolidation (dense, lobar), pneumonia (patchy), infiltration (faint, streaky)."""
    grade = f.severity - 1
    radius, peak, n, patches, lines, grain = {
        "Consolidation": ((24, 36, 50), (0.6, 1.1, 1.8), 10, 1, (0, 0, 0), 0.42),
        "Pneumonia": ((22, 30, 40), (0.5, 0.8, 1.2), 12, 3, (6, 10, 14), 0.30),
        "Infiltration": ((28, 40, 52), (0.55, 0.85, 1.15), 26, 1, (26, 48, 76), 0.20),
    }[f.name]
    for s in finding_sides(f, rng):
        centre = spot(s, f.zone, shape, rng)
        for k in range(patches):
            c = centre + (rng.normal(0, 0.8, 3) * radius[grade] * np.array([0.7, 0.8, 0.6]) if k else 0)
            share = 0.65 if k else 1.0
            chest.blobs += cluster(c, share * radius[grade], share * peak[grade], n, i, rng, grain)
        if lines[grade]:
            at = centre + rng.normal(0, 0.6, (lines[grade], 3)) * radius[grade]
            chest.dust.append(strokes(at, 26, 1.5, SOFT, i, rng))


def _edema(chest: Chest, shape: Shape, f: Finding, i: int, rng: np.random.Generator) -> None:
    """Perihilar bat-wing haze, then Kerley B lines at the lateral bases."""
    grade = f.severity - 1
    for s in (RIGHT, LEFT):
        for dx, y, r in ((56, 112, 42), (74, 146, 42), (68, 78, 34)):
            chest.blobs += cluster(np.array([SIGN[s] * dx, y, -18]), r, (0.12, 0.28, 0.6)[grade], 8, i, rng, 0.36)
        n = (5, 9, 13)[grade]
        y = np.linspace(165, 222, n) + shape.dome[s] - 206
        x = np.interp(y, Y, organs.THORAX.cavity_out) - rng.uniform(9, 13, n)
        at = np.stack([SIGN[s] * x, y, rng.uniform(-30, 20, n)], axis=1)
        chest.dust.append(strokes(at, 17, 1.5, SOFT, i, rng, flat=0.08))


def _atelectasis(chest: Chest, shape: Shape, f: Finding, i: int, rng: np.random.Generator) -> None:
    """Plates of collapsed lung; when severe a dense wedge against the mediastinum."""
    grade = f.severity - 1
    for s in finding_sides(f, rng):
        c = spot(s, f.zone or "lower", shape, rng)
        for k in range(f.severity):
            tilt = rng.uniform(-0.25, 0.1) * SIGN[s]
            x = np.linspace(-1, 1, 9) * rng.uniform(26, 36)
            path = np.stack([c[0] + x, c[1] - 13 * k + tilt * x + 3 * np.cos(x / 25), np.full(9, c[2])], axis=1)
            plate = organs.tube(path, 3.4 + grade, SOFT * 0.55, i, in_lung=True)
            depth = np.tile(np.linspace(-24, 24, 7, dtype=np.float32), len(plate.xyz))
            xyz = np.repeat(plate.xyz, 7, axis=0) + np.stack([0 * depth, 0.1 * depth, depth], axis=1)
            chest.dust.append(Dust(xyz, np.repeat(plate.mass, 7) * 0.7, plate.blur, i, in_lung=True))
        if grade:
            wedge = np.array([SIGN[s] * 42, c[1] + 4, -42])
            chest.blobs += cluster(wedge, (26, 38)[grade - 1], (0.45, 1.1)[grade - 1], 8, i, rng)


def _nodules(chest: Chest, shape: Shape, f: Finding, i: int, rng: np.random.Generator) -> None:
    """Nodules of 21 to 30 mm (dense, so that 64 pixels show them) and masses of 34 to 70 mm, lobulated."""
    grade = f.severity - 1
    r = {"Nodule": (10.5, 13, 15), "Mass": (17, 25, 35)}[f.name][grade]
    for s in finding_sides(f, rng):
        c = spot(s, f.zone, shape, rng)
        mu = (SOFT - LUNG) * (2.8 if f.name == "Nodule" else 1.0)
        chest.blobs.append(Blob(tuple(c), (r, r * 0.95, r), mu, i, soft=False))
        for o in rng.normal(0, 0.45, (3, 3)) * r:
            chest.blobs.append(Blob(tuple(c + o), (0.55 * r,) * 3, mu * 0.4, i, soft=False))
        if f.name == "Mass":
            chest.dust.append(strokes(c + rng.normal(0, 0.8, (14, 3)) * r, 0.7 * r, 1.3, SOFT, i, rng))


def _tuberculosis(chest: Chest, shape: Shape, f: Finding, i: int, rng: np.random.Generator) -> None:
    """Upper-zone patches, a thick-walled cavity, streaks drawn to the hilum."""
    grade = f.severity - 1
    for s in finding_sides(f, rng):
        c = spot(s, f.zone or "upper", shape, rng)
        chest.blobs += cluster(c, (22, 30, 38)[grade], (0.5, 0.85, 1.3)[grade], 26, i, rng, 0.2)
        if grade:
            r = (13, 19)[grade - 1]
            mu = (SOFT - LUNG) * 0.9
            hole = c + rng.normal(0, 5, 3)
            chest.blobs.append(Blob(tuple(hole), (1.1 * r, r, r), mu, i, soft=False))
            inner = hole + rng.uniform(-2, 2, 3)
            chest.blobs.append(Blob(tuple(inner), (r - 4, r - 5, r - 4), -mu - 0.9 * SOFT, i, soft=False))
        hilum = np.array([SIGN[s] * 44, 112, -14])
        for _ in range((4, 7, 10)[grade]):
            end = c + rng.normal(0, 14, 3)
            path = organs.curve(hilum, (hilum + end) / 2 + rng.normal(0, 8, 3), end)
            chest.dust.append(organs.tube(path, 1.5, SOFT, i, in_lung=True))


def _fibrosis(chest: Chest, shape: Shape, f: Finding, i: int, rng: np.random.Generator) -> None:
    """A net of thickened septa at the bases and the periphery over a slight haze."""
    grade = f.severity - 1
    for s in finding_sides(f, rng):
        n = (70, 140, 230)[grade]
        y = (214 - 110 * rng.beta(1.1, 2.0, n)) + shape.dome[s] - 206
        out = np.interp(y, Y, organs.THORAX.cavity_out)
        angle = rng.uniform(-2.6, 1.2, n)
        rim = 1 - 0.45 * rng.beta(1, 1.6, n)
        x = 70 + (out - 74) * rim * np.abs(np.cos(angle))
        at = np.stack([SIGN[s] * x, y, -8 + 80 * rim * np.sin(angle)], axis=1)
        chest.dust.append(strokes(at, 16, 1.5, SOFT * (1.0, 1.2, 1.4)[grade], i, rng))
        base = np.array([SIGN[s] * 84, 178 + shape.dome[s] - 206, -36])
        chest.blobs += cluster(base, 38, (0.14, 0.26, 0.42)[grade], 12, i, rng, 0.34)


def _calcification(chest: Chest, shape: Shape, f: Finding, i: int, rng: np.random.Generator) -> None:
    """Granulomas in a lung; without a side, plaques along the aortic arch."""
    grade = f.severity - 1
    if f.side is None:
        k, s = shape.knob, shape.shift
        turn = np.linspace(-1.9, 1.2, 30)
        x = 18 + 6 * k + s + (15 * k + 3) * np.cos(turn)
        arc = np.stack([x, 64 + 17 * k * np.sin(turn), -30 + 8 * turn], axis=1)
        chest.dust.append(organs.tube(arc, (2.8, 3.8, 4.8)[grade], BONE * 3, i))
        return
    for s in finding_sides(f, rng):
        c = spot(s, f.zone, shape, rng)
        for o in rng.normal(0, 15, ((5, 8, 12)[grade], 3)):
            r = rng.uniform(6, 7) + grade
            chest.blobs.append(Blob(tuple(c + o), (r, r, r), BONE * 2.4, i, soft=False))


def _hernia(chest: Chest, shape: Shape, f: Finding, i: int, rng: np.random.Generator) -> None:
    """A pouch of stomach behind the heart with air above a fluid level."""
    r = (32, 44, 58)[f.severity - 1]
    c = (rng.uniform(2, 14), 206 + shape.sink - 0.62 * r, -34)
    chest.middle.append(organs.ball(c, (1.15 * r, r, 0.8 * r), 0.003, i))
    top = (c[1] - 0.1 * r) > Y
    shrink = organs.ball(c, (1.02 * r, 0.88 * r, 0.7 * r))
    chest.solids.append(organs.stack(shrink.x0 * top, shrink.x1 * top, shrink.z0, shrink.z1, -SOFT * 0.55, i))


def _fracture(chest: Chest, shape: Shape, f: Finding, i: int, rng: np.random.Generator, ribs: np.ndarray,
              collars: np.ndarray) -> None:
    """Break a bone: a gap, the outer fragment displaced, callus around. Edits the centre lines in place."""
    grade = f.severity - 1
    for s in finding_sides(f, rng):
        if f.kind == "clavicle":
            path, at = collars[s], int(rng.integers(44, 62))
        else:
            k = {"upper": 3, "mid": 5, "lower": 7, None: 5}[f.zone] + int(rng.integers(2))
            path, at = ribs[s, k], int(rng.integers(24, 36))
        path[at:] += np.array([0, (6, 11, 17)[grade], (0, -2, -4)[grade]], np.float32)
        broken = path[max(at - 9, 0):at + 10].copy()
        chest.dust.append(organs.bone(broken, 6, 4, 0.03, i))
        r = (13, 16, 19)[grade]
        middle = (path[at - 1] + path[at]) / 2
        chest.blobs.append(Blob(tuple(middle), (1.35 * r, 0.75 * r, r), BONE * 2.2, i, soft=False, free=True))


def _device(chest: Chest, shape: Shape, f: Finding, i: int, rng: np.random.Generator) -> None:
    """Lines, tubes and wires where they are placed in practice. Severity only makes them thicker."""
    s = SIGN[finding_sides(f, rng)[0]]
    thick = (0.9, 1.0, 1.15)[f.severity - 1]
    kind = f.kind or DEVICE_KINDS[int(rng.integers(len(DEVICE_KINDS)))]

    def wire(path: np.ndarray, radius: float, mu: float = METAL) -> None:
        chest.dust.append(organs.tube(path, radius * thick, mu, i))

    if kind == "endotracheal tube":
        path = organs.curve((3, -92, 0), (2, -30, -8), (3 + 0.5 * shape.shift, rng.uniform(38, 60), -22))
        wire(path, 4.6, 0.03)
        wire(path + np.array([3.5, 0, 2], np.float32), 1.9)
    elif kind == "central line":
        tip = rng.uniform(108, 132)
        neck = [(s * 46, -86, 8), (s * 36, -20, 6), (s * 20 - 4, 30, 12)]
        wire(organs.curve(*neck, (-21, 74, 8), (-23, tip, 6)), 2.0, 0.8 * METAL)
    elif kind == "pacemaker":
        chest.blobs.append(Blob((s * 98, 48, 72), (24 * thick, 19 * thick, 5), METAL, i, soft=False, free=True))
        vein = [(s * 84, 46, 72), (s * 62, 14, 50), (s * 24 - 6, 34, 14), (-22, 72, 8)]
        apex = (44 * shape.heart, 208 + shape.sink, 54)
        wire(organs.curve(*vein, (-26, 130, 14), (2, 186, 44), apex, n=60), 1.5)
        wire(organs.curve(*vein, (-24, 130, 18), (-22, 156, 34), (-34, 146, 46), n=50), 1.5)
    elif kind == "nasogastric tube":
        gullet = [(-2, -92, -16), (0, 20, -34), (3, 110, -44), (8, 190, -40)]
        wire(organs.curve(*gullet, (22, 226, -14), (62, 262, 12), (74, 300, 24), n=60), 1.9, 0.7 * METAL)
    else:
        turn = np.linspace(0, 2 * np.pi, 30)
        for y in np.linspace(48, 166, 6):
            z = np.interp(y, Y, organs.THORAX.cavity_front) + 9
            wire(np.stack([9 * np.cos(turn), y + 4.5 * np.sin(turn), z + 7 * np.cos(turn)], axis=1), 1.6)


LESIONS = {
    "Consolidation": _opacity, "Pneumonia": _opacity, "Infiltration": _opacity, "Edema": _edema,
    "Atelectasis": _atelectasis, "Nodule": _nodules, "Mass": _nodules, "Tuberculosis": _tuberculosis,
    "Fibrosis": _fibrosis, "Calcification": _calcification, "Hernia": _hernia, "Support Devices": _device,
}  # fmt: skip


def build_chest(case: Case, supine: bool) -> Chest:
    """The chest of a case, erect (PA and lateral films) or supine (AP); `posed` adds what a view moves.

    Each finding draws from its own random stream: adding one leaves everything else where it was.
    """
    shape = organs.base_shape(case.body, supine)
    for i, f in enumerate(case.findings):
        _reshape(shape, f, i, np.random.default_rng([case.seed, 10 + i]))
    chest = organs.healthy(case, shape)
    ribs, collars = organs.rib_paths(shape.barrel).copy(), organs.clavicles().copy()
    for i, f in enumerate(case.findings):
        rng = np.random.default_rng([case.seed, 10 + i])  # the same stream: its first draw is the side, if left open
        if f.name == "Fracture":
            _fracture(chest, shape, f, i, rng, ribs, collars)
        elif f.name in LESIONS:
            LESIONS[f.name](chest, shape, f, i, rng)
    chest.dust += [organs.bone(ribs, 5.5, 3.0, organs.RIB_CORTEX), organs.bone(collars, 5.5, 5.5, 0.085)]
    rng = np.random.default_rng([case.seed, 1])
    for s in (RIGHT, LEFT):
        for part in organs.vessel_tree(s, shape, rng):
            full, now = (np.interp(part.xyz[:, 1], Y, np.maximum(side[s].x1 - side[s].x0, 0))
                         for side in (chest.cavity, chest.lung))
            part.xyz[:, 0] *= (now / np.maximum(full, 1)).astype(np.float32)  # with a lung that fell from the wall
            chest.dust.append(part)
    return chest
