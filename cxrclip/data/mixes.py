"""A mix says which study folder plays which role of the paper.

The roles are M, C and C14 for pretraining and the test sets of Tables 2 and 3. A role is filled by a phantom
institution, by a public data set in its download layout, by an existing study folder, or by another role's folder. A
role with no data carries the reason, which the tables print. A source may name such a reason, too (`missing`): it
holds where the download is not there, so that one mix serves whoever has some of the data sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from datasets import Dataset
from pydantic import BaseModel, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from cxrclip import studies
from cxrclip.data.files import digest, making, write_text
from cxrclip.data.phantom import world
from cxrclip.data.settings import checked, read_settings
from cxrclip.data.sources import SOURCES
from cxrclip.errors import InputError
from cxrclip.prompts import PromptBank

SOURCES_VERSION = 2  # raised by hand when a source gives other studies of the same files
Filling = Literal["phantom", "source", "folder", "role", "missing"]
Split = Literal["train", "valid", "test"]
Count = Annotated[int, Field(strict=True, ge=0)]
FILLINGS: tuple[str, ...] = get_args(Filling)


@checked_dataclass(frozen=True)
class Role:
    """One role of a mix: a data set of the paper, and what fills it. Values are checked when a role is made.

    filling, value: one of FILLINGS and its argument: an institution, a source, a path, a role or a reason.
    sizes: profile -> split -> studies, for a phantom.  options: of a source.  max_negatives: of a prompt.
    root, needs: where a source lies below the folder of downloads, and the files below it that it needs.
    reason: what a source lacks where they are not there; without a reason, that is a fault.
    tasks, prompts: what a test role is evaluated on, and the zero-shot task whose texts it uses.
    seen: test role -> share of its test studies that a pretraining role also holds under ledger D2.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w .+-]*$")]
    filling: Filling
    value: str
    sizes: Mapping[str, Mapping[Split, Count]] = field(default_factory=dict)
    root: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    max_negatives: Annotated[int, Field(strict=True, ge=1)] | None = None
    tasks: tuple[Literal["zero-shot", "linear-probe", "retrieval"], ...] = ()
    prompts: str = ""
    split: Split = "test"
    seen: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    reason: str = ""

    def needed(self, data: str) -> tuple[Path, ...]:
        """What must be below `data` to read a source: its root, then the files that it needs. Nothing for others."""
        root = Path(data or ".") / self.root
        return (root, *(root / name for name in self.needs)) if self.filling == "source" else ()


KEYS = {item.name for item in fields(Role)} - {"name", "filling", "value", "reason"} | {*FILLINGS}  # of a mix file


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

    def origin(self, role: Role) -> Role:
        """The role whose data a role uses: itself, or the one it names."""
        return self.roles[role.value] if role.filling == "role" else role


class _File(BaseModel, extra="forbid"):
    """The sections of a mix file; roles are checked one by one."""

    about: str = ""
    pretraining: dict[str, Any]
    tests: dict[str, Any] | None = None


def mix_path(name: str) -> Path:
    """Find a mix by name (in cxrclip/data/mix) or by path; InputError lists the known names."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"mix file {path} does not exist: give a path to a YAML file or a mix name")
        return path
    known = {path.stem: path for path in sorted(Path(__file__).with_name("mix").glob("*.yaml"))}
    if name not in known:
        raise InputError(f"unknown mix {name!r}: choose one of {', '.join(known)} or give the path of a YAML file")
    return known[name]


def load_mix(name: str) -> Mix:
    """Read and check a mix file. InputError names the file, the role and the key at fault."""
    path = mix_path(name)
    file = checked(_File, read_settings(path), path)
    sections = [{role: _role(role, spec, f"{path}: role {role}") for role, spec in (section or {}).items()}
                for section in (file.pretraining, file.tests)]
    if twice := sorted(set(sections[0]) & set(sections[1])):
        raise InputError(f"{path}: role {twice[0]} is in pretraining and in tests: rename one")
    mix = Mix(path.stem, file.about.strip(), *sections)
    for role in mix.roles.values():
        if role.filling == "role" and mix.roles.get(role.value, role).filling in ("role", "missing"):
            raise InputError(f"{path}: role {role.name}: 'role: {role.value}' must name a role with data of its own")
    return mix


def _role(name: str, spec: object, where: str) -> Role:
    settings = dict(checked(dict[str, Any], spec, where))
    if unknown := sorted(settings.keys() - KEYS):
        raise InputError(f"{where}: unknown key {unknown[0]!r}: known are {', '.join(sorted(KEYS))}")
    reason = settings.pop("missing", "") if "source" in settings else ""
    fillings = [key for key in FILLINGS if key in settings]
    if len(fillings) != 1:
        raise InputError(f"{where}: give exactly one of {', '.join(FILLINGS)}, found {fillings or 'none'}")
    filling, value = fillings[0], settings.pop(fillings[0])
    known = {"phantom": world.INSTITUTIONS, "source": SOURCES}.get(filling)
    if known is not None and str(value) not in known:
        raise InputError(f"{where}: unknown {filling} {value!r}: choose one of {', '.join(known)}")
    settings = {"name": name, "filling": filling, "value": value, "reason": reason, "prompts": name} | settings
    return checked(Role, settings, where)


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
    absent = {role.name for role in mix.roles.values() if role.reason
              and not all(path.exists() for path in role.needed(data))}

    def available(role: Role) -> Role:
        origin = mix.origin(role)
        return replace(role, filling="missing", value=origin.reason) if origin.name in absent else role

    pretraining, tests = ({name: available(role) for name, role in roles.items()}
                          for roles in (mix.pretraining, mix.tests))
    if absent & set(pretraining) and all(role.filling == "missing" for role in pretraining.values()):
        needed = ", ".join(f"{path} ({role.name}: {role.reason})" for role in mix.pretraining.values()
                           if role.name in absent for path in role.needed(data))
        raise InputError(f"mix {mix.name}: nothing to pretrain on, there is no {needed}: set DATA to the folder of the "
                         "downloads (DATA.md says how to get them)")
    return replace(mix, pretraining=pretraining, tests=tests)


def check_mix(mix: Mix, profile: str, data: str) -> Mix:
    """The mix `with_downloads`; fails early, before any work: sizes known for the profile, folders and roots there."""
    mix = with_downloads(mix, data)
    for role in mix.roles.values():
        where = f"mix {mix.name}, role {role.name}"
        if role.filling == "phantom" and profile not in role.sizes:
            raise InputError(f"{where}: no sizes for profile {profile!r}: add 'sizes: {{{profile}: ...}}' to the mix")
        if role.filling == "folder" and not (Path(role.value) / "dataset.json").is_file():
            raise InputError(f"{where}: {role.value} is no study folder (no dataset.json): prepare it or mend the path")
        for number, path in enumerate(role.needed(data)):
            if not path.exists():
                raise InputError(f"{where}: no {'file' if number else 'folder'} {path}: set DATA to the folder that "
                                 "holds it")
        if role.filling == "source":
            _options(role, where)
    bank = PromptBank.load()
    for role in mix.tests.values():
        if role.filling != "missing" and {"zero-shot", "linear-probe"} & {*role.tasks}:
            try:
                bank.zero_shot(role.prompts)  # the classes of both tasks
            except InputError as fault:
                raise InputError(f"mix {mix.name}, role {role.name}, prompts: {fault}") from fault
    return mix


def _options(role: Role, where: str) -> dict[str, Any]:
    """The options of a source in their types; InputError names one of another type. Unknown ones the source refuses."""
    known = SOURCES[role.value].options()
    return {name: checked(known.get(name, Any), value, f"{where}, option {name}")
            for name, value in role.options.items()}


def prepare(mix: Mix, profile: str, build: Path, data: str = "", progress: bool = True) -> Prepared:
    """Make every role's study folder below `build`/data, or find it there; validate and check for leakage.

    Folders are found again by a key of the role's settings, of the version of what draws the phantom or reads the
    source, and of the files read, so that nothing stale is ever used. Raises InputError for all that `check_mix`,
    the sources and the checks of studies.py find.
    """
    mix = check_mix(mix, profile, data)
    missing = {role.name: role.value for role in mix.roles.values() if role.filling == "missing"}
    folders = {role.name: _fill(role, profile, build / "data", data, progress) for role in mix.roles.values()
               if role.filling not in ("role", "missing")}
    folders |= {role.name: folders[role.value] for role in mix.roles.values() if role.filling == "role"}
    _check_once(folders, build / "data")
    return Prepared(mix, folders, missing)


def _fill(role: Role, profile: str, cache: Path, data: str, progress: bool) -> Path:
    """Path of the role's study folder, made when it is not there yet."""
    if role.filling == "folder":
        return Path(role.value)
    if role.filling == "phantom":
        recipe = [role.value, dict(role.sizes[profile]), world.VERSION]
    else:
        root = role.needed(data)[0]
        recipe = [role.value, dict(role.options), _file_digest(root), SOURCES_VERSION]
    folder = cache / f"{role.name}-{digest(recipe)}"
    with making(folder, (folder / "dataset.json").is_file) as missing:
        if missing and role.filling == "phantom":
            world.generate(role.value, role.sizes[profile], folder, progress=progress)
        elif missing:
            SOURCES[role.value](root, folder, progress=progress, **_options(role, f"role {role.name}"))
    return folder


def _file_digest(root: Path) -> str:
    """Hash of the names, sizes and times of all files below a data root: cheap, and changes when they do."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return digest([(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files])


def _check_once(folders: Mapping[str, Path], cache: Path) -> None:
    """Validate every folder and look for leakage; remembered, since it reads every image."""
    unique: dict[Path, str] = {}
    for name, path in folders.items():
        unique.setdefault(path, name)
    marker = cache / f"checked-{digest([studies.fingerprint(path) for path in unique])}"
    if not marker.is_file():
        for path in unique:
            studies.validate(path)
        studies.check_leakage({name: path for path, name in unique.items()})
        write_text(marker, "")


def training_studies(mix: Mix, profile: str, published: Mapping[str, int]) -> dict[str, int]:
    """Training studies of each pretraining role with data, before anything is prepared.

    Of a phantom its size at the profile, of a study folder what it holds; a source is not read yet: the `published`
    number of its role. Roles of which none of these is known are left out.
    """
    counts = {}
    for name, role in mix.pretraining.items():
        origin = mix.origin(role)
        if origin.filling == "folder":
            counts[name] = len(studies.open_studies(Path(origin.value), "train"))
        elif origin.filling == "phantom":
            counts[name] = origin.sizes[profile]["train"]
        elif origin.filling == "source" and name in published:
            counts[name] = published[name]
    return counts


def training_texts(prepared: Prepared, bank: PromptBank) -> Iterator[str]:
    """The original texts that the small text encoder may read in pretraining: report sections and prompt sentences."""
    for role in prepared.mix.pretraining:
        if role in prepared.folders:
            table = prepared.studies(role, "train").select_columns(["findings", "impression"])
            for row in table:
                yield from (text for text in row.values() if text)
    yield from bank.sentences()
