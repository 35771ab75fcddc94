"""The healthy chest: solids, vessels and bones of one body, in millimetres.

x runs to the patient's left, y down from the lung apex, z forward from the mid-coronal plane. Sizes are those of a
reference adult; `Body` scales them when they are projected. Attenuation is in 1/mm near 70 keV effective: water
0.19/cm (NIST XCOM), aerated lung about a quarter of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace

import numpy as np

from cxrclip.data.phantom.anatomy import Body, Case, settings

SOFT, LUNG, BONE, METAL = 0.019, 0.0045, 0.024, 0.28
RIGHT, LEFT = 0, 1
SIGN = (-1.0, 1.0)
Y = np.arange(-90, 352, 2, dtype=np.float32)  # heights of the horizontal slices


@dataclass(frozen=True)
class Stack:
    """A solid whose horizontal slices are ellipses: from x0 to x1 and z0 to z1 at each height of `Y`.

    Empty where x1 <= x0.  mu: attenuation it adds per mm, one value or one a slice.  owner: its finding.
    """

    x0: np.ndarray
    x1: np.ndarray
    z0: np.ndarray
    z1: np.ndarray
    mu: float | np.ndarray = 0.0
    owner: int | None = None


@dataclass(frozen=True)
class Blob:
    """An ellipsoid (soft: a Gaussian cloud of that standard deviation) inside the lungs unless `free`."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    mu: float
    owner: int | None = None
    soft: bool = True
    free: bool = False


@dataclass(frozen=True)
class Dust:
    """Thin things as points: xyz (n, 3), mass (n,) in 1/mm x mm^3, spread `blur` mm; in_lung: only seen there."""

    xyz: np.ndarray
    mass: np.ndarray
    blur: float
    owner: int | None = None
    in_lung: bool = False


def along(*knots: tuple[float, float], smooth: int = 9) -> np.ndarray:
    """A profile over `Y` through (height, value) knots, rounded over `smooth` slices."""
    heights, values = zip(*knots, strict=True)
    line = np.interp(Y, heights, values)
    padded = np.pad(line, smooth // 2, mode="edge")
    return np.convolve(padded, np.ones(smooth) / smooth, mode="valid").astype(np.float32)


def tube(path: np.ndarray, radius: float | np.ndarray, mu: float, owner: int | None = None,
         in_lung: bool = False) -> Dust:
    """A cord along path (n, 3), densely sampled. A disc seen edge-on has standard deviation radius / 2."""
    path = np.asarray(path, np.float32)
    radius = np.broadcast_to(np.asarray(radius, np.float32), len(path))
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    at = np.concatenate([[0.0], np.cumsum(steps)])
    n = max(int(at[-1]), 2)
    s = (np.arange(n) + 0.5) * (at[-1] / n)
    xyz = np.stack([np.interp(s, at, path[:, k]) for k in range(3)], axis=1).astype(np.float32)
    r = np.interp(s, at, radius).astype(np.float32)
    mass = mu * np.pi * r**2 * np.float32(at[-1] / n)
    return Dust(xyz, mass.astype(np.float32), float(np.mean(r) / 2), owner, in_lung)


def curve(*knots: np.ndarray | tuple[float, float, float], n: int = 24) -> np.ndarray:
    """A smooth path (n, 3) through few knots (Catmull-Rom)."""
    p = np.array([knots[0], *knots, knots[-1]], np.float32)
    u = np.linspace(0, len(knots) - 1 - 1e-4, n)
    i = u.astype(int)
    t = (u - i)[:, None]
    a, b, c, d = (p[i + k] for k in range(4))
    path = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    return (0.5 * path).astype(np.float32)


def dust(xyz: np.ndarray, mass: np.ndarray | float, blur: float, *, in_lung: bool = False) -> Dust:
    """Points (..., 3) of equal or given mass."""
    xyz = xyz.reshape(-1, 3).astype(np.float32)
    return Dust(xyz, np.broadcast_to(np.asarray(mass, np.float32).ravel(), len(xyz)), blur, None, in_lung)


@dataclass
class Shape:
    """What findings and posture change before the organs are built. Lists are (right, left)."""

    heart: float
    aorta: float
    knob: float
    mediastinum: float
    sink: float  # mm the heart's underside lies below its place at full inspiration
    dome: list[float]  # height of the top of each hemidiaphragm
    dome_depth: list[float]  # mm from the top to its widest slice: small is flat
    lung_mu: list[float]
    vessels: list[float]
    upper_vessels: float
    shift: float = 0.0  # mm of the mediastinum to the left
    barrel: float = 0.0  # mm the front of the chest moves forward
    gaps: tuple[list, list] = field(default_factory=lambda: ([], []))  # pleura by side: (mm at each height, mu, owner)
    owners: dict[str, int] = field(default_factory=dict)  # organ -> the finding that is the organ's own size


@dataclass
class Chest:
    """Everything the renderer needs; see `build_chest`."""

    shape: Shape
    cavity: list[Stack]  # of each side
    lung: list[Stack]
    pleura: list[list[tuple[np.ndarray, float, int]]]  # per side: rows of `Y` it fills, mu, owner
    dome: list[Stack]
    middle: list[Stack]  # soft organs that take the lungs' place
    solids: list[Stack]  # denser or lighter than the soft tissue they lie in
    blobs: list[Blob]
    dust: list[Dust]
    lung_owner: list[int]
    skin: Sequence[Stack] = ()  # `posed` adds it


THORAX = SimpleNamespace(**{name: along(*profile["knots"], smooth=profile.get("smooth", 9))
                            for name, profile in settings("thorax.yaml").items()})  # fmt: skip
# cortex of a rib from its head to the cartilage: thickest behind, thin at the side
RIB_CORTEX = np.interp(np.linspace(0, 1, 84), [0, 0.12, 0.2, 0.35, 0.55, 0.8, 1],
                       [0.02, 0.04, 0.085, 0.085, 0.05, 0.055, 0.05])  # fmt: skip
RIB_ENDS = np.radians([150, 150, 148, 147, 145, 142, 136, 128, 118, 106, 66, 44]).astype(np.float32)


def stack(x0: np.ndarray, x1: np.ndarray, z0: np.ndarray, z1: np.ndarray, mu: float | np.ndarray = 0.0,
          owner: int | None = None) -> Stack:
    """A `Stack` from profiles over `Y` or single numbers, in mm."""
    mu = float(mu) if np.ndim(mu) == 0 else np.asarray(mu, np.float32)
    return Stack(*(np.broadcast_to(np.asarray(p, np.float32), Y.shape) for p in (x0, x1, z0, z1)), mu, owner)


def ball(centre: tuple[float, float, float], radii: tuple[float, float, float], mu: float = 0.0,
         owner: int | None = None) -> Stack:
    """An ellipsoid as a stack: for organs, which are large against the slices."""
    (x, y, z), (rx, ry, rz) = centre, radii
    root = np.sqrt(np.clip(1 - ((Y - y) / ry) ** 2, 0, 1))
    return stack(x - rx * root, x + rx * root, z - rz * root, z + rz * root, mu, owner)


def base_shape(body: Body, supine: bool) -> Shape:
    """The healthy shape. AP films are taken supine or sitting: less air, higher domes, a wider heart."""
    shallow = float(supine)
    top = 206 + 30 * (body.lung - 1) - 20 * shallow
    return Shape(
        heart=body.heart * (1 + 0.06 * shallow), aorta=body.aorta, knob=body.aorta,
        mediastinum=1 + 0.12 * shallow + 0.25 * (body.habitus - 0.35), sink=top - 206,
        dome=[top, top + body.dome_gap], dome_depth=[112.0, 112.0], lung_mu=[LUNG * (1 + 0.15 * shallow)] * 2,
        vessels=[body.vessels] * 2, upper_vessels=0.8 + 0.25 * shallow,
    )  # fmt: skip


def skin(body: Body, shape: Shape, view: str) -> list[Stack]:
    """Trunk, neck, breasts and arms: hanging in frontal films, raised forward in the lateral."""
    fat = 26 * (body.habitus - 0.35)
    below = np.clip((Y + 40) / 80, 0, 1)
    half = THORAX.torso_half + below * fat * 1.2
    front = THORAX.torso_front + below * (fat + shape.barrel)
    parts = [stack(-half, half, THORAX.torso_back - 0.5 * below * fat, front)]
    for s in SIGN:
        if body.breast:
            drop = 8 * body.breast
            knots = [(96, 0), (130, 0.35), (165, 0.85), (186 + drop, 1), (206 + drop, 0.7), (216 + drop, 0)]
            swell = along(*knots, smooth=5)
            r = (52 + 20 * body.breast) * swell**0.6
            bulge = (10 + 34 * body.breast) * swell
            parts.append(stack(s * 74 - r, s * 74 + r, front - 34 - bulge, front - 16 + bulge))
        if view != "LATERAL":
            x = along((-34, 142), (10, 172), (60, 196), (200, 222), (352, 240)) + fat
            r = along((-40, 0), (-12, 36), (30, 46), (352, 40))
            parts.append(stack(s * x - r, s * x + r, -30 - r, -30 + r))
    if view == "LATERAL":
        back = along((-90, -44), (-40, -80), (20, -104), (60, -70), (76, -10), smooth=15)
        fore = along((-90, 168), (-50, 124), (0, 78), (40, 52), (76, -10), smooth=15)
        wide = along((-90, 120), (-40, 140), (10, 172), (78, 176))
        parts.append(stack(-wide, wide, back, fore))
    return parts


def chest_front(barrel: float) -> np.ndarray:
    """The inner front of the chest, moved forward by `barrel` mm below its top."""
    return THORAX.cavity_front + barrel * np.clip(Y / 60, 0, 1)


def inflated(cavity: Stack, gaps: list, side: int) -> tuple[Stack, list]:
    """The lung inside its cavity and what fills the pleural space: at each height the widest gap wins."""
    if not gaps:
        return cavity, []
    widths = np.stack([g for g, _, _ in gaps])
    widest, winner = widths.max(0), widths.argmax(0)
    inset = widest * 0.66
    x0, x1 = (cavity.x0 + widest, cavity.x1) if side == RIGHT else (cavity.x0, cavity.x1 - widest)
    pleura = [((winner == k).astype(np.float32), mu, owner) for k, (_, mu, owner) in enumerate(gaps)]
    return stack(x0, x1, cavity.z0 + inset, cavity.z1 - inset), pleura


def domes(shape: Shape) -> list[Stack]:
    """Hemidiaphragms: half ellipsoids wider than the chest, so that the angles with the ribs are sharp."""
    out = []
    for sign, top, deep in zip(SIGN, shape.dome, shape.dome_depth, strict=True):
        r = np.sqrt(1 - (1 - np.clip((Y - top) / deep, 0, 1)) ** 2)
        out.append(stack(sign * 70 - 87 * r, sign * 70 + 87 * r, 8 - 112 * r, 8 + 112 * r))
    return out


def heart(shape: Shape) -> Stack:
    """Enlargement goes to the left, backwards and down; the right border follows half as much."""
    big, top = shape.heart, 84
    down = 1 + (shape.sink + 26 * (big - 1)) / 150
    source = np.where(top < Y, top + (Y - top) / down, Y)
    x0, x1, z0, z1 = (np.interp(source, Y, profile).astype(np.float32)
                      for profile in (THORAX.heart_right, THORAX.heart_left, THORAX.heart_back, THORAX.heart_front))
    grow = 1 + (big - 1) * np.clip((Y - top) / 50, 0, 1)
    return stack(x0 * (1 + 0.55 * (grow - 1)) + shape.shift, x1 * grow + shape.shift, z0 * (1 + 0.7 * (grow - 1)), z1,
                 0.0016, shape.owners.get("heart"))


def mediastinum(shape: Shape) -> list[Stack]:
    """Great vessels and fat between the lungs, the arch with its knob, the descending aorta."""
    wide, knob, aorta = shape.mediastinum, shape.knob, shape.aorta
    owner, aorta_owner = shape.owners.get("mediastinum"), shape.owners.get("aorta")
    ease = 1 + (wide - 1) * np.clip(np.minimum((Y + 40) / 60, (165 - Y) / 50), 0, 1)
    shift = shape.shift
    centre = stack(THORAX.mediastinum_right * ease + shift, THORAX.mediastinum_left * ease + shift,
                   THORAX.cavity_back + 20, np.minimum(THORAX.cavity_front - 22, 44), 0.001 * (Y < 150), owner)
    arch = ball((9 + 6 * knob + shift, 66 - 6 * (knob - 1), -24), (17 * knob + 3, 19 * knob, 42 * np.sqrt(knob)),
                0.0015, aorta_owner)
    bend = along((60, 0), (110, 6), (170, 2), (240, -8), (300, -14), smooth=15)
    x = 20 + bend + 22 * (aorta - 1) * np.clip((Y - 50) / 60, 0, 1) + shift * 0.5
    r = np.where((Y > 60) & (Y < 300), 12 * aorta, 0)
    descending = stack(x - r, x + r, THORAX.spine_z + 14 - r, THORAX.spine_z + 14 + r, 0.0015, aorta_owner)
    return [centre, arch, descending]


def trachea(shape: Shape) -> Stack:
    """The windpipe to the carina at T4-T5."""
    x = 2 + 0.8 * shape.shift * np.clip(Y / 80, 0, 1)
    z = along((-90, -2), (-20, -10), (40, -22), (95, -30))
    r = np.where(Y < 94, 9.5, 0)
    return stack(x - r, x + r, z - r, z + r, -SOFT * along((76, 1), (94, 0.5)))


@cache
def hila() -> tuple[tuple[int | None, Dust], ...]:
    """Main bronchi, pulmonary arteries and veins: (side of a vessel, or None, points). The left artery lies higher."""
    fork = (2, 86, -28)
    bronchi = [curve(fork, (-14, 102, -30), (-30, 120, -28)), curve(fork, (18, 102, -30), (36, 113, -32))]
    vessels = [
        (RIGHT, [(-10, 112, -4), (-36, 116, -12), (-48, 136, -22), (-54, 166, -34)], 10.5, 5.5),
        (LEFT, [(14, 102, -6), (38, 103, -20), (52, 122, -34), (58, 152, -42)], 11, 5.5),
        (RIGHT, [(-20, 158, -28), (-58, 168, -36), (-84, 186, -48)], 6, 2.5),
        (LEFT, [(20, 156, -28), (56, 164, -40), (80, 182, -52)], 6, 2.5),
        (RIGHT, [(-22, 130, -12), (-50, 108, -6), (-70, 72, 2)], 5.5, 2.2),
        (LEFT, [(22, 126, -12), (46, 98, -8), (62, 62, 0)], 5.5, 2.2),
    ]
    air = [(None, tube(p, np.linspace(6.5, 4, len(p)), -SOFT * 0.75)) for p in bronchi]
    blood = [(side, tube(curve(*knots), np.linspace(wide, thin, 24), SOFT * 0.75, in_lung=True))
             for side, knots, wide, thin in vessels]  # fmt: skip
    return (*air, *blood)


def hilum(shape: Shape) -> list[Dust]:
    """The hila of one body: shifted with the mediastinum, as full as its vessels."""
    move = np.array([shape.shift, 0, 0], np.float32)
    full = [np.float32(1 if side is None else shape.vessels[side] ** 2) for side, _ in hila()]
    return [replace(d, xyz=d.xyz + move, mass=d.mass * f) for f, (_, d) in zip(full, hila(), strict=True)]


def spine(body: Body, view: str) -> tuple[Stack, Dust]:
    """Vertebral bodies with denser end plates and clear discs; pedicles and spinous processes behind.

    Seen from the front the kyphosis tilts the discs against the ray, which smears them.
    """
    level = (Y + 14) / 22.5
    phase = level - np.floor(level)
    plates = np.exp(-(((phase - 0.06) / 0.07) ** 2)) + np.exp(-(((phase - 0.74) / 0.07) ** 2))
    bone = np.where(phase < 0.8, 0.75 + 0.5 * plates, 0.0)
    waist = 1 - 0.09 * np.sin(np.pi * np.clip(phase / 0.8, 0, 1))
    width = along((-90, 13), (0, 15), (150, 18), (300, 23)) * waist
    depth = along((-90, 10), (0, 12), (150, 16), (300, 19)) * waist
    x = body.spine_curve * np.sin((Y + 20) / 95)
    mu = BONE * 0.55 * bone if view == "LATERAL" else BONE * 0.22 * np.convolve(bone, np.ones(5) / 5, mode="same")
    column = stack(x - width, x + width, THORAX.spine_z - depth, THORAX.spine_z + depth, mu.astype(np.float32))
    y = (-14 + 22.5 * np.arange(-3, 16))[:, None]
    z, cx = np.interp(y, Y, THORAX.spine_z), np.interp(y, Y, x)
    t = np.linspace(0, 1, 12)
    arches = [np.stack([cx + s * (10 + 4 * t), y + 5 + 5 * t, z - 14 - 12 * t], axis=-1) for s in SIGN]
    arches.append(np.stack([cx + 0 * t, y + 10 + 12 * t, z - 24 - 24 * t], axis=-1))
    return column, dust(np.concatenate(arches), BONE * 18, 3.0)


def bone(path: np.ndarray, high: float, deep: float, mu: float | np.ndarray = 0.07, owner: int | None = None) -> Dust:
    """A cortical shell along path (..., n, 3): `high` by `deep` mm half-axes, 1.2 mm thick; four points a ring."""
    path = np.asarray(path, np.float32)
    ring = np.arange(4) * (np.pi / 2) + np.pi / 4
    radial = path * np.array([1, 0, 1], np.float32)
    radial /= np.linalg.norm(radial, axis=-1, keepdims=True) + 1e-6
    up = np.array([0, 1, 0], np.float32)
    offset = high * np.sin(ring)[:, None] * up + deep * np.cos(ring)[:, None] * radial[..., None, :]
    step = np.linalg.norm(np.gradient(path, axis=-2), axis=-1)
    mass = mu * 1.2 * np.pi * (high + deep) / 4 * step
    xyz = (path[..., None, :] + offset).reshape(-1, 3).astype(np.float32)
    return Dust(xyz, np.repeat(mass.reshape(-1), 4).astype(np.float32), 1.6, owner)


@cache
def rib_paths(barrel: float) -> np.ndarray:
    """Centre lines (2 sides, 12 ribs, n, 3): from the vertebra down and round the cage to the cartilage."""
    k = np.arange(12, dtype=np.float32)[:, None]
    angle = 0.12 + (RIB_ENDS[:, None] - 0.12) * np.linspace(0, 1, len(RIB_CORTEX), dtype=np.float32)
    fall = np.minimum(40 + 10 * k, 104)
    y = -9 + 22 * k + fall * (1 - np.cos(angle)) / 2 - 5 * np.sin(2 * angle)
    out, back, fore = (np.interp(y, Y, p) for p in (THORAX.cavity_out, THORAX.cavity_back, chest_front(barrel)))
    # the top rib arches over the apex: the cage there is wider than the lung
    out = np.maximum(out, 62 + 12 * k.clip(max=3))
    fore, back = np.maximum(fore, 14 + 10 * k.clip(max=3)), np.minimum(back, -44 - 10 * k.clip(max=3))
    x = (out + 5) * np.sin(angle) ** 0.9
    z = (fore + back) / 2 - (fore - back + 8) / 2 * np.cos(angle)
    return np.stack([np.stack([s * x, y, z], axis=-1) for s in SIGN]).astype(np.float32)


@cache
def limb_bones(view: str) -> tuple[Dust, ...]:
    """Scapulae and humeral heads. Hands on hips (PA) swing the scapulae off the lungs."""
    swing = {"PA": 34.0, "AP": 0.0, "LATERAL": 10.0}[view]
    rng = np.random.default_rng(0)  # only spreads the points of the blades evenly
    parts = []
    for s in SIGN:
        up = np.array([s * (74 + swing), 4, -108])
        low = np.array([s * (98 + swing), 118, -116 + 0.4 * swing])
        joint = np.array([s * (144 + 0.3 * swing), 12, -62 + 0.5 * swing])
        blade = rng.dirichlet([1, 1, 1], 900) @ np.stack([up, low, joint])
        parts.append(dust(blade, 0.055 * 2.6 * 6200 / 900, 3.5))
        edge = curve(low, (low + joint) / 2 + [s * -8, 0, 0], joint, n=60)
        ridge = np.stack([up, (up + joint) / 2, joint]) + np.array([[s * 4, 22, -6], [0, -8, -10], [s * 16, -22, 6]])
        crest = curve(*ridge, n=60)
        head = joint + np.array([s * 26, 4, 12]) + rng.normal(0, 10, (500, 3))
        parts += [bone(edge, 4, 4), bone(crest, 5, 4), dust(head, 0.02 * 38000 / 500, 4.0)]
    return tuple(parts)


@cache
def clavicles() -> np.ndarray:
    """Centre lines (2, n, 3)."""
    paths = [curve((s * 16, 32, 44), (s * 55, 22, 48), (s * 105, -2, 28), (s * 158, -16, -22), n=110) for s in SIGN]
    return np.stack(paths)


def vessel_tree(side: int, shape: Shape, rng: np.random.Generator) -> list[Dust]:
    """Three generations of three branches from the hilum to the pleura, tapering from 3 mm to 0.5 mm."""
    s, n, m = SIGN[side], 13, 14
    width = np.radians(158) / n
    angle = np.radians(-80) + width * (np.arange(n) + 0.5) + rng.uniform(-0.4, 0.4, n) * width
    depth = rng.permutation(np.linspace(-1, 1, n))
    root = np.stack([np.full(n, 36.0), 120 + 34 * np.sin(angle), -14 - 12 * np.sin(angle) + 10 * depth], axis=1)
    parts, scale = [], shape.vessels[side]
    for reach, radius, spread in ((0.42, (2.7, 2.0), 0.0), (0.70, (1.9, 1.25), 0.26), (0.98, (1.15, 0.5), 0.22)):
        if spread:
            angle = (angle[:, None] + spread * np.array([-1, 0.1, 1]) + rng.normal(0, 0.08, (len(angle), 3))).ravel()
            depth = np.clip(depth[:, None] + rng.normal(0, 0.34, (len(depth), 3)), -1.1, 1.1).ravel()
            root = np.repeat(root, 3, axis=0)
        far = reach * rng.uniform(0.86, 1.08, len(angle))
        up = np.sin(angle)
        tip = np.stack([34 + far * 98 * np.cos(angle), 116 + far * np.where(up < 0, 112, 124) * up,
                        -12 + far * (62 * depth + 10 * up) - 14 * far], axis=1)
        bow = rng.normal(0, 0.06, (len(angle), 1, 3)) * np.linalg.norm(tip - root, axis=1)[:, None, None]
        t = ((np.arange(m) + 0.5) / m)[None, :, None]
        xyz = root[:, None] * (1 - t) + tip[:, None] * t + 4 * t * (1 - t) * bow
        full = scale * np.where(xyz[..., 1] < 110, shape.upper_vessels, 1)
        r = (radius[0] + (radius[1] - radius[0]) * t[..., 0]) * full
        ds = np.linalg.norm(tip - root, axis=1)[:, None] / m
        xyz = xyz * np.array([s, 1, 1]) + np.array([shape.shift, 0, 0])
        parts.append(dust(xyz, SOFT * 2.0 * np.pi * r**2 * ds, 0.55 * sum(radius) / 2, in_lung=True))
        root = tip
    return parts


def healthy(case: Case, shape: Shape) -> Chest:
    """Soft organs, air and hila in the given shape."""
    front = chest_front(shape.barrel)
    outer, inner = THORAX.cavity_out, THORAX.cavity_in
    cavity = [stack(*sides, THORAX.cavity_back, front) for sides in ((-outer, -inner), (inner, outer))]
    inside = [inflated(c, g, s) for s, (c, g) in enumerate(zip(cavity, shape.gaps, strict=True))]
    half = np.where((Y > 22) & (Y < 190), 17, 0)
    sternum = stack(-half, half, front + 9 - 6, front + 9 + 6, BONE * 0.45)
    gas = 10 + 24 * case.body.gas
    bubble = ball((52, shape.dome[LEFT] + 16 + gas * 0.5, 20), (gas * 1.3, gas * 0.62, gas), -SOFT * 0.9)
    return Chest(
        shape, cavity, lung=[lung for lung, _ in inside], pleura=[pleura for _, pleura in inside], dome=domes(shape),
        middle=[heart(shape), *mediastinum(shape)], solids=[trachea(shape), sternum, bubble], blobs=[],
        dust=hilum(shape), lung_owner=[i for i, f in enumerate(case.findings) if f.name == "Emphysema"],
    )  # fmt: skip


def posed(chest: Chest, case: Case, view: str) -> Chest:
    """The same chest with arms, shoulders and spine as a view ("PA", "AP", "LATERAL") shows them."""
    column, arches = spine(case.body, view)
    return replace(chest, skin=skin(case.body, chest.shape, view), solids=[*chest.solids, column],
                   dust=[*chest.dust, arches, *limb_bones(view)])
