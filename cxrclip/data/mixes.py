"""A mix says which study folder plays which role of the paper.

The roles are M, C and C14 for pretraining and the test sets of Tables 2 and 3. A role is filled by a phantom
institution, by a public data set in its download layout, by a study folder that exists already, or by another
role's folder. A role with no data carries the reason, and that reason is what its table cells print. A source may
name such a reason, too (`missing`): it holds where the download is not there, so that one mix serves whoever has some
of the data sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from datasets import Dataset

from cxrclip import studies
from cxrclip.data.files import locked
from cxrclip.data.phantom import world
from cxrclip.data.sources import SOURCES
from cxrclip.errors import InputError
from cxrclip.prompts import PromptBank

SOURCES_VERSION = 1  # raised by hand when a source gives other studies of the same files
FILLINGS = ("phantom", "source", "folder", "role", "missing")
TASKS = ("zero-shot", "linear-probe", "retrieval")
_KEYS = {"phantom", "sizes", "source", "root", "needs", "options", "folder", "role", "missing", "max_negatives",
         "tasks", "prompts", "split", "seen"}


@dataclass(frozen=True)
class Role:
    """One line of a mix: a data set of the paper and what fills it here.

    `filling` is one of FILLINGS and `value` its argument: an institution, a source, a path, a role or a reason.
    `seen`: test role -> share of its test studies that a pretraining role also holds under ledger D2 (rules.py).
    `reason` says what a source lacks where its `root`, or a file below it that it `needs`, is not there; without a
    reason that is a fault.
    """

    name: str
    filling: str
    value: str
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    root: str = ""
    options: Mapping = field(default_factory=dict)
    max_negatives: int | None = None
    tasks: tuple[str, ...] = ()
    prompts: str = ""
    split: str = "test"
    seen: Mapping[str, float] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Mix:
    """The roles of one mix file, in its order."""

    name: str
    about: str
    pretraining: Mapping[str, Role]
    tests: Mapping[str, Role]

    @property
    def roles(self) -> dict[str, Role]:
        """All roles by name, pretraining first."""
        return {**self.pretraining, **self.tests}


def mix_path(name: str) -> Path:
    """Find a mix by name (in cxrclip/data/mix) or by path; InputError lists the known names."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"mix file {path} does not exist: give a path to a YAML file or a mix name")
        return path
    folder = Path(__file__).parent / "mix"
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        raise InputError(f"unknown mix {name!r}: choose one of {', '.join(known)} or give the path of a YAML file")
    return known[name]


def load_mix(name: str) -> Mix:
    """Read and check a mix file. InputError names the file and the key at fault."""
    path = mix_path(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())}): mend the file") from error
    if not isinstance(content, dict) or not isinstance(content.get("pretraining"), dict):
        raise InputError(f"{path}: a mix needs a 'pretraining' and a 'tests' section, as cxrclip/data/mix/phantom.yaml")
    sections = {use: {role: _read_role(path, role, spec) for role, spec in (content.get(use) or {}).items()}
                for use in ("pretraining", "tests")}
    mix = Mix(path.stem, str(content.get("about", "")).strip(), **sections)
    for role in mix.roles.values():
        if role.filling == "role" and mix.roles.get(role.value, role).filling in ("role", "missing"):
            raise InputError(f"{path}: role {role.name}: 'role: {role.value}' must name a role with data of its own")
    return mix


def _read_role(path: Path, name: str, spec: object) -> Role:
    if not isinstance(spec, dict):
        raise InputError(f"{path}: role {name}: expected settings, found {spec!r}")
    if unknown := sorted(set(spec) - _KEYS):
        raise InputError(f"{path}: role {name}: unknown key {unknown[0]!r}: known are {', '.join(sorted(_KEYS))}")
    fillings = [key for key in FILLINGS if key in spec and not (key == "missing" and "source" in spec)]
    if len(fillings) != 1:
        raise InputError(f"{path}: role {name}: give exactly one of {', '.join(FILLINGS)}, found {fillings or 'none'}")
    filling, value = fillings[0], str(spec[fillings[0]])
    known = {"phantom": world.INSTITUTIONS, "source": SOURCES}.get(filling)
    if known is not None and value not in known:
        raise InputError(f"{path}: role {name}: unknown {filling} {value!r}: choose one of {', '.join(known)}")
    tasks = tuple(spec.get("tasks", ()))
    if bad := [task for task in tasks if task not in TASKS]:
        raise InputError(f"{path}: role {name}: unknown task {bad[0]!r}: choose from {', '.join(TASKS)}")
    return Role(name, filling, value, spec.get("sizes", {}), str(spec.get("root", "")), spec.get("options", {}),
                spec.get("max_negatives"), tasks, str(spec.get("prompts", name)), str(spec.get("split", "test")),
                spec.get("seen", {}), tuple(spec.get("needs", ())),
                str(spec.get("missing", "")) if filling == "source" else "")


@dataclass(frozen=True)
class Prepared:
    """A mix whose data stand on disk: study folders by role, and the reasons of the roles without."""

    mix: Mix
    folders: Mapping[str, Path]
    missing: Mapping[str, str]

    def studies(self, role: str, split: str) -> Dataset:
        """The studies of one role and split, as an HF dataset."""
        return studies.open_studies(self.folders[role], split)

    def fingerprints(self, roles: tuple[str, ...]) -> dict[str, str]:
        """Content fingerprint of each role's folder, cut to 16 characters."""
        return {role: studies.fingerprint(self.folders[role])[:16] for role in roles}


def with_downloads(mix: Mix, data: str) -> Mix:
    """The mix for the downloads below `data`: a source with a reason whose download is not there is a missing role.

    Raises InputError, naming what was looked for, if no pretraining role with data is left.
    """
    gone = {role.name for role in mix.roles.values() if role.filling == "source" and role.reason
            and not all(path.exists() for path in _wanted(role, data))}

    def found(role: Role) -> Role:
        own = mix.roles[role.value] if role.filling == "role" else role
        return replace(role, filling="missing", value=own.reason) if own.name in gone else role

    here = Mix(mix.name, mix.about, *({name: found(role) for name, role in roles.items()}
                                      for roles in (mix.pretraining, mix.tests)))
    if gone & set(mix.pretraining) and all(role.filling == "missing" for role in here.pretraining.values()):
        wanted = ", ".join(f"{path} ({role.name}: {role.reason})" for role in mix.pretraining.values()
                           if role.name in gone for path in _wanted(role, data))
        raise InputError(f"mix {mix.name}: nothing to pretrain on, there is no {wanted}: set DATA to the folder of the "
                         "downloads (DATA.md says how to get them)")
    return here


def check_mix(mix: Mix, profile: str, data: str) -> None:
    """Fail early, before any work: sizes known for the profile, folders and data roots present."""
    mix = with_downloads(mix, data)
    for role in mix.roles.values():
        where = f"mix {mix.name}, role {role.name}"
        if role.filling == "phantom" and profile not in role.sizes:
            raise InputError(f"{where}: no sizes for profile {profile!r}: add 'sizes: {{{profile}: ...}}' to the mix")
        if role.filling == "folder" and not (Path(role.value) / "dataset.json").is_file():
            raise InputError(f"{where}: {role.value} is no study folder (no dataset.json): prepare it or mend the path")
        for path in _wanted(role, data) if role.filling == "source" else ():
            if not path.exists():
                kind = "folder" if path == _root(role, data) else "file"
                raise InputError(f"{where}: no {kind} {path}: set DATA to the folder that holds it")


def prepare(mix: Mix, profile: str, build: Path, data: str = "", progress: bool = True) -> Prepared:
    """Make every role's study folder below `build`/data, or find it there; validate and check for leakage.

    Folders are found again by a key of the role's settings, of the version of what draws the phantom or reads the
    source, and of the files read, so that nothing stale is ever used.
    """
    check_mix(mix, profile, data)
    mix = with_downloads(mix, data)
    folders, missing = {}, {role.name: role.value for role in mix.roles.values() if role.filling == "missing"}
    for role in mix.roles.values():
        if role.filling in ("phantom", "source", "folder"):
            folders[role.name] = _fill(role, profile, build / "data", data, progress)
    for role in mix.roles.values():
        if role.filling == "role":
            folders[role.name] = folders[role.value]
    _check_once(folders, build / "data")
    return Prepared(mix, folders, missing)


def _fill(role: Role, profile: str, cache: Path, data: str, progress: bool) -> Path:
    """Path of the role's study folder, made when it is not there yet."""
    if role.filling == "folder":
        return Path(role.value)
    if role.filling == "phantom":
        recipe = [role.value, dict(role.sizes[profile]), world.VERSION]
    else:
        recipe = [role.value, dict(role.options), file_digest(_root(role, data)), SOURCES_VERSION]
    folder = cache / f"{role.name}-{digest(recipe)}"
    with locked(folder):
        if not (folder / "dataset.json").is_file():
            if role.filling == "phantom":
                world.generate(role.value, role.sizes[profile], folder, progress=progress)
            else:
                SOURCES[role.value](_root(role, data), folder, progress=progress, **role.options)
    return folder


def _root(role: Role, data: str) -> Path:
    return Path(data or ".") / role.root


def _wanted(role: Role, data: str) -> tuple[Path, ...]:
    """What must be there to read a source: its root, and below it the files that it needs."""
    return _root(role, data), *(_root(role, data) / name for name in role.needs)


def _check_once(folders: Mapping[str, Path], cache: Path) -> None:
    """Validate every folder and look for leakage; remembered, since it reads every image."""
    unique = {str(path): path for path in folders.values()}
    key = digest([studies.fingerprint(path) for path in unique.values()])
    marker = cache / f"checked-{key}"
    if marker.is_file():
        return
    for path in unique.values():
        studies.validate(path)
    studies.check_leakage({name: path for name, path in folders.items() if unique.pop(str(path), None)})
    marker.touch()


def training_studies(mix: Mix, profile: str, published: Mapping[str, int]) -> dict[str, int]:
    """Training studies of each pretraining role with data, before anything is prepared.

    Of a phantom its size at the profile, of a study folder what it holds; a source is not read yet: the `published`
    number of its role. Roles of which none of these is known are left out.
    """
    found = {}
    for name, role in mix.pretraining.items():
        own = mix.roles[role.value] if role.filling == "role" else role
        if own.filling == "folder":
            found[name] = len(studies.open_studies(Path(own.value), "train"))
        elif own.filling == "phantom":
            found[name] = own.sizes[profile]["train"]
        elif own.filling == "source" and name in published:
            found[name] = published[name]
    return found


def training_texts(prepared: Prepared, bank: PromptBank) -> Iterator[str]:
    """Every text the small text encoder may read in pretraining: report sections and prompt sentences."""
    for role in prepared.mix.pretraining:
        if role in prepared.folders:
            table = prepared.studies(role, "train").select_columns(["findings", "impression"])
            for row in table:
                yield from (text for text in row.values() if text)
    yield from bank.sentences()


def digest(content: object) -> str:
    """A short stable hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(root: Path) -> str:
    """Hash of the names, sizes and times of all files below a data root: cheap, and changes when they do."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return digest([(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files])
