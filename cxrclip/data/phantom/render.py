"""From a chest to films: Beer-Lambert along every ray, then what a detector and a display make of it.

Solids are stacks of ellipses, so the length of a ray inside each is exact and cheap; the air of a lung is its cavity
minus the union of what lies in it. Thin things are points splatted onto a finer grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cxrclip.data.phantom.anatomy import Body, Case
from cxrclip.data.phantom.lesions import build_chest
from cxrclip.data.phantom.organs import LEFT, RIGHT, SOFT, Blob, Chest, Dust, Stack, Y, posed
from cxrclip.errors import InputError

VIEWS = ("PA", "AP", "LATERAL")
FIELD_MM = 372.0  # side of the square film
TOP_MM = -52.0  # height of its upper edge
CENTRE_MM = 120.0  # height of the central ray


@dataclass(frozen=True)
class Scanner:
    """How an institution's films look.

    contrast: slope of the display curve.  gamma: above 1 darkens mid-tones.  noise: quantum noise in the lungs.
    scatter: fraction of the primary beam.  detail: 0 none to 1 strong edge enhancement.  blur: mm.  window: percentiles
    of the body shown black and white.  zoom, wander: mean magnification and mm of random misplacement.  border: most mm
    of collimation at each edge.  marker: lead letter, "L" at the patient's left, "R" at the right or "".  tilt: degrees
    of random rotation (standard deviation).
    """

    contrast: float = 1.0
    gamma: float = 0.85
    noise: float = 0.012
    scatter: float = 0.2
    detail: float = 0.5
    blur: float = 0.8
    window: tuple[float, float] = (3.0, 99.5)
    zoom: float = 1.0
    wander: float = 5.0
    border: float = 0.0
    marker: str = "L"
    tilt: float = 1.0


@dataclass(frozen=True)
class Film:
    """One film: pixels (size, size) uint8, bone white; masks by index into the case's findings."""

    view: str
    pixels: np.ndarray
    masks: dict[int, np.ndarray]


@dataclass(frozen=True)
class Beam:
    """A point source and a flat film: u across and v down the film, in mm about the beam's centre.

    side: look along x (lateral) instead of z.  source: mm from film to source.  film: where the film lies on
    the ray axis.  u, v: film coordinates of pixel centres, scaled so that the mid-plane has size 1.
    scale: of the body's width, height, depth against the reference.
    """

    side: bool
    source: float
    film: float
    u: np.ndarray
    v: np.ndarray
    scale: tuple[float, float, float]
    turn: float  # mm a point moves sideways for each mm it lies in front: a rotated patient
    tip: float  # mm it moves down for each mm in front: a beam that is not level

    def magnify(self, depth: np.ndarray | float) -> np.ndarray | float:
        """Size on the film of a thing at `depth` on the ray axis, relative to the mid-plane."""
        return (self.source - abs(self.film)) / (self.source - abs(self.film - depth))


def aim(view: str, body: Body, scanner: Scanner, size: int, rng: np.random.Generator) -> Beam:
    """PA: film at the chest, source 1.83 m behind. AP: film at the back, source 1.05 m. Lateral: left side to film."""
    film, source = {"PA": (130.0, 1830.0), "AP": (-135.0, 1050.0), "LATERAL": (170.0, 1830.0)}[view]
    pitch = FIELD_MM / scanner.zoom / size
    du, dv = rng.uniform(-1, 1, 2) * scanner.wander
    centre = np.arange(size, dtype=np.float32) + 0.5
    u = (centre - size / 2) * pitch + (du + 6 if view == "LATERAL" else du)
    v = centre * pitch + TOP_MM + (FIELD_MM - FIELD_MM / scanner.zoom) / 2 - CENTRE_MM + dv
    turn, tip = rng.normal(0, 1, 2) * ({"PA": (0.02, 0.02), "AP": (0.06, 0.03), "LATERAL": (0.02, 0.01)}[view])
    tip -= 0.07 * (view == "AP")  # supine films are mostly lordotic: what lies in front is thrown up
    return Beam(view == "LATERAL", source, film, u.astype(np.float32), v.astype(np.float32),
                (body.width, body.height, body.depth), float(turn), float(tip))


def interval(stack: Stack, beam: Beam) -> tuple[np.ndarray, np.ndarray]:
    """Where each ray enters and leaves a stack, (H, W) each; equal where it misses. Reference mm."""
    sx, sy, sz = beam.scale
    x, z = (stack.x0, stack.x1), (stack.z0, stack.z1)
    across, along = (z, x) if beam.side else (x, z)
    solid = (stack.x1 > stack.x0) & (stack.z1 > stack.z0)
    middle = float((along[0] + along[1])[solid].mean() / 2) if solid.any() else 0.0
    tip = beam.tip * middle
    m = beam.magnify(middle * (sx if beam.side else sz))
    u = beam.u / (-m * sz if beam.side else m * sx)
    # linear interpolation of four profiles at the height of each row of the film
    at = np.clip((CENTRE_MM - tip + beam.v / (m * sy) - Y[0]) / (Y[1] - Y[0]), 0, len(Y) - 1.001)
    k = at.astype(np.int64)
    f = (at - k).astype(np.float32)
    table = np.stack([across[1] - across[0], across[0] + across[1], along[1] - along[0], along[0] + along[1]]) / 2
    table[::2] *= solid
    half, centre, deep, mid = (table[:, k] * (1 - f) + table[:, k + 1] * f)[..., None]
    root = np.sqrt(np.maximum(1 - ((u - (centre + beam.turn * mid)) / np.maximum(half, 1e-3)) ** 2, 0)) * deep
    return mid - root, mid + root


def overlap(base: tuple[np.ndarray, np.ndarray], cuts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Length of the union of the cuts inside the base interval, ray by ray.

    With starts and ends each sorted, a gap follows the k-th end exactly where the next start lies beyond it.
    """
    low, high = base
    starts = _sorted([np.minimum(np.maximum(a, low), high) for a, _ in cuts])
    ends = _sorted([np.minimum(np.maximum(b, low), high) for _, b in cuts])
    length = ends[-1] - starts[0]
    for end, start in zip(ends[:-1], starts[1:], strict=True):
        length -= np.maximum(start - end, 0)
    return length


def _sorted(maps: list[np.ndarray]) -> list[np.ndarray]:
    """Sort a few maps pixel by pixel; such a bubble network is many times faster than np.sort along a short axis."""
    for end in range(len(maps) - 1, 0, -1):
        for k in range(end):
            maps[k], maps[k + 1] = np.minimum(maps[k], maps[k + 1]), np.maximum(maps[k], maps[k + 1])
    return maps


class Projection:
    """Optical depth of a chest on a film, and the share of each finding in it."""

    def __init__(self, chest: Chest, beam: Beam, findings: int) -> None:
        self.beam, self.size = beam, (size := len(beam.v))
        self.total = np.zeros((size, size), np.float32)
        self.shares = [np.zeros((size, size), np.float32) for _ in range(findings)]
        self.step = beam.scale[0] if beam.side else beam.scale[2]  # reference mm -> mm along the ray
        self.air = self._solids(chest)
        self._blobs(chest.blobs)
        self._dust(chest.dust)

    def add(self, depth: np.ndarray, owner: int | None) -> None:
        """Add optical depth (H, W), and to the share of the finding that it belongs to."""
        self.total += depth
        if owner is not None:
            self.shares[owner] += np.abs(depth)

    def _solids(self, chest: Chest) -> np.ndarray:
        """Soft tissue with the lungs carved out; returns mm of lung on each ray."""
        beam, step = self.beam, self.step
        skins = [interval(s, beam) for s in chest.skin]
        everywhere = (np.float32(-1e4), np.float32(1e4))
        self.add(SOFT * step * overlap(everywhere, skins), None)
        middle = [interval(s, beam) for s in chest.middle]
        rows = CENTRE_MM + beam.v / beam.scale[1]
        solids = [*middle, *(interval(s, beam) for s in chest.solids)]
        for s, (a, b) in zip([*chest.middle, *chest.solids], solids, strict=True):
            mu = s.mu if np.isscalar(s.mu) else np.interp(rows, Y, s.mu).astype(np.float32)[:, None]
            self.add(step * mu * (b - a), s.owner)
        air = np.zeros_like(self.total)
        for side in (RIGHT, LEFT):
            cuts = [*middle, interval(chest.dome[side], beam)]
            lung = self._free(chest.lung[side], cuts)
            self.total -= (SOFT - chest.shape.lung_mu[side]) * lung
            if any(mu == 0 for _, mu, _ in chest.pleura[side]):  # the visceral pleura shows: its outer 1.5 mm
                x0, x1, z0, z1 = (getattr(chest.lung[side], name) for name in ("x0", "x1", "z0", "z1"))
                self.total += SOFT * (lung - self._free(Stack(x0 + 1.5, x1 - 1.5, z0 + 1.5, z1 - 1.5), cuts))
            if chest.pleura[side]:
                space = np.maximum(self._free(chest.cavity[side], cuts) - lung, 0)
                for fill, mu, owner in chest.pleura[side]:
                    part = space * np.interp(rows, Y, fill).astype(np.float32)[:, None]
                    self.total -= (SOFT - np.float32(mu)) * part
                    self.shares[owner] += SOFT * part
            for owner in chest.lung_owner:
                self.shares[owner] += SOFT * lung
            air += lung
        return air

    def _free(self, stack: Stack, cuts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """mm of each ray inside the stack and outside the cuts; only the stack's own window is worked on."""
        low, high = interval(stack, self.beam)
        rows, cols = np.nonzero((high > low).any(1))[0], np.nonzero((high > low).any(0))[0]
        free = np.zeros_like(self.total)
        if len(rows):
            w = np.s_[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1]
            low, high = low[w], high[w]
            free[w] = np.float32(self.step) * (high - low - overlap((low, high), [(a[w], b[w]) for a, b in cuts]))
        return np.maximum(free, 0)

    def _place(self, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Film coordinates in mm of points (n, 3) in reference mm."""
        sx, sy, sz = self.beam.scale
        across, along = (2, 0) if self.beam.side else (0, 2)
        depth = xyz[:, along]
        m = self.beam.magnify(depth * (sx if self.beam.side else sz))
        u = (xyz[:, across] + self.beam.turn * depth) * (-sz if self.beam.side else sx)
        return u * m, (xyz[:, 1] - CENTRE_MM + self.beam.tip * depth) * sy * m

    def _blobs(self, blobs: list[Blob]) -> None:
        """Clouds (Gaussian) and balls, seen only where there is lung unless free."""
        confined = np.minimum(self.air / 30, 1)
        u, v = self._place(np.array([b.centre for b in blobs], np.float32).reshape(-1, 3))
        for b, cu, cv in zip(blobs, u, v, strict=True):
            ru, rv, deep = (b.radii[2], b.radii[1], b.radii[0]) if self.beam.side else b.radii
            du, dv = ((self.beam.u - cu) / np.float32(ru)) ** 2, ((self.beam.v - cv) / np.float32(rv)) ** 2
            if b.soft:
                depth = np.float32(b.mu * deep * np.sqrt(2 * np.pi)) * np.exp(-dv / 2)[:, None] * np.exp(-du / 2)[None]
            else:
                depth = np.float32(2 * b.mu * deep) * np.sqrt(np.maximum(1 - dv[:, None] - du[None], 0))
            self.add(depth if b.free else depth * confined, b.owner)

    def _dust(self, dust: list[Dust]) -> None:
        """Splat points on a grid twice as fine, blur each class of calibre once, average down."""
        pitch = float(self.beam.u[1] - self.beam.u[0]) / 2
        confined = np.minimum(self.air / 30, 1)
        groups: dict[tuple, list[Dust]] = {}
        for d in dust:
            calibre = round(float(np.log2(max(d.blur, 0.8))))
            groups.setdefault((d.owner is None, d.owner or 0, d.in_lung, calibre), []).append(d)
        for (_, _, in_lung, calibre), members in groups.items():
            u, v = self._place(np.concatenate([d.xyz for d in members]))
            n = 2 * self.size
            col = ((u - self.beam.u[0]) / pitch + 1).astype(np.int64)
            row = ((v - self.beam.v[0]) / pitch + 1).astype(np.int64)
            keep = (col >= 0) & (col < n) & (row >= 0) & (row < n)
            mass = np.concatenate([d.mass for d in members])
            fine = np.bincount((row * n + col)[keep], mass[keep], n * n).astype(np.float32).reshape(n, n) / pitch**2
            sigma = max(2.0**calibre / pitch, 0.6)
            fine = cv2.GaussianBlur(fine, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
            depth = cv2.resize(fine, (self.size, self.size), interpolation=cv2.INTER_AREA)
            self.add(depth * confined if in_lung else depth, members[0].owner)

    def rotate(self, degrees: float) -> None:
        """Turn the patient in the plane of the film."""
        if not degrees:
            return
        middle = (self.size - 1) / 2
        turn = cv2.getRotationMatrix2D((middle, middle), degrees, 1.0)
        self.total, *self.shares = (
            cv2.warpAffine(m, turn, m.shape, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for m in (self.total, *self.shares)
        )


def expose(depth: np.ndarray, scanner: Scanner, view: str, mm: float, rng: np.random.Generator) -> np.ndarray:
    """Optical depth -> displayed gray (H, W) uint8: scatter, noise, log response, window, display curve."""
    poor = 1.6 if view == "AP" else 1.0
    light = np.exp(-np.maximum(depth, 0))
    inside = np.minimum(light, 0.08)
    small = cv2.resize(inside, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    haze = cv2.resize(cv2.GaussianBlur(small, (0, 0), 30 / mm / 4), depth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    light = light + scanner.scatter * poor * haze
    grain = rng.standard_normal(depth.shape, dtype=np.float32)
    light = light + scanner.noise * poor * np.sqrt(light * 0.05) * grain
    signal = -np.log(np.maximum(light, 1e-4))
    if scanner.blur:
        signal = cv2.GaussianBlur(signal, (0, 0), scanner.blur * (1.3 if view == "AP" else 1) / mm)
    signal = enhance(signal, scanner.detail, mm)
    low, high = np.percentile(signal[signal > 0.7] if (signal > 0.7).any() else signal, scanner.window)
    gray = (signal - low) / max(high - low, 1e-3)
    gray = 0.5 + (gray - 0.5) * scanner.contrast
    return np.clip(gray, 0, 1) ** np.float32(scanner.gamma)


LETTERS = {"L": [[(0, 0), (0, 10), (6, 10)]], "R": [[(0, 10), (0, 0), (6, 1), (6, 4), (0, 5), (6, 10)]]}


def finish(gray: np.ndarray, scanner: Scanner, view: str, mm: float, rng: np.random.Generator) -> np.ndarray:
    """Collimation and the lead letter of the side."""
    size = len(gray)
    edge = (rng.uniform(0, 1, 4) * scanner.border / mm).astype(int)
    place = rng.uniform(0, 1, 2) * 12 + 14
    frame = np.zeros_like(gray)
    frame[edge[0]:size - edge[1], edge[2]:size - edge[3]] = 1
    for line in LETTERS.get(scanner.marker, ()):
        at_left = scanner.marker == "R" or view == "LATERAL"
        corner = np.array([place[0] if at_left else size * mm - place[0] - 8, place[1]])
        points = ((corner + 1.3 * np.array(line)) / mm * 16).astype(np.int32)
        lead = np.zeros(gray.shape, np.uint8)
        cv2.polylines(lead, [points], False, 255, max(round(2.2 / mm), 1), cv2.LINE_AA, shift=4)
        gray = np.maximum(gray, lead * np.float32(0.95 / 255))
    return gray * frame


def enhance(signal: np.ndarray, detail: float, mm: float) -> np.ndarray:
    """What digital radiography does to fit a chest on a screen: compress the coarse, keep the fine."""
    small = cv2.resize(signal, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 22 / mm / 4)
    coarse = cv2.resize(small, signal.shape[::-1], interpolation=cv2.INTER_LINEAR)
    fine = signal - cv2.GaussianBlur(signal, (0, 0), 5 / mm)
    return signal - 0.3 * detail * coarse + 0.8 * detail * fine


def render_study(case: Case, views: Sequence[str], scanner: Scanner, size: int = 128,
                 masks: bool = False) -> list[Film]:  # fmt: skip
    """Render the films of a case.

    views: of "PA", "AP", "LATERAL".  size: pixels of the square film.  masks: also where each finding shows.
    A pure function: randomness comes from `case.seed` and the view alone. Patient's right is image left; in the
    lateral the patient faces left. Raises InputError for an unknown view.
    """
    films, chests = [], {}
    for view in views:
        if view not in VIEWS:
            raise InputError(f"unknown view {view!r}: use one of {', '.join(VIEWS)}")
        rng = np.random.default_rng([case.seed, 2, VIEWS.index(view)])
        beam = aim(view, case.body, scanner, size, rng)
        if (supine := view == "AP") not in chests:
            chests[supine] = build_chest(case, supine)
        shadow = Projection(posed(chests[supine], case, view), beam, len(case.findings))
        mm = float(beam.u[1] - beam.u[0])
        shadow.rotate(float(rng.normal(0, scanner.tilt)))
        gray = finish(expose(shadow.total, scanner, view, mm, rng), scanner, view, mm, rng)
        # a finding shows where it casts a quarter of its deepest shadow, and wherever it is as dense as a rib
        shown = {i: part > np.clip(0.25 * part.max(), 0.02, 0.12) for i, part in enumerate(shadow.shares) if masks}
        films.append(Film(view, (gray * 255 + 0.5).astype(np.uint8), shown))
    return films
