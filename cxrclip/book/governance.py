"""What must not get into a repository: ids of credentialed data sets, real report text, real films.

`cxrclip scan` searches the committed notebooks, figures, results and pages. A finding names file and place, and never
repeats what stands there. The scanner knows the shapes of the ids, the reports of Open-I (which torchxrayvision
carries), and the ways in which films get in: files of images or study tables, and pictures of notebooks that ran on
other data than the phantom. It cannot tell a real film from a phantom inside a picture, nor know other reports.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from cxrclip.errors import InputError

FOLDERS = ("notebooks", "figures", "results")
MIN_WORDS = 8  # shorter sentences are nobody's: "The heart is normal in size."
IDS = {
    "a subject number as in MIMIC-CXR": r"(?<![\w.])p?1\d{7}(?!\w|\.\d)",
    "a study number as in MIMIC-CXR": r"(?<![\w.])s?5\d{7}(?!\w|\.\d)",
    "a film name as in MIMIC-CXR": r"(?<!\w)[0-9a-f]{8}(?:-[0-9a-f]{8}){4}(?!\w)",
    "the head of a MIMIC-CXR report": r"FINAL REPORT\s+(?:EXAMINATION|INDICATION|HISTORY|REASON|CHEST)",
    "a patient as in CheXpert": r"(?<![a-z])patient\d{5}(?!\d)",
    "a film name as in VinDr-CXR": r"(?<![\w/+])[0-9a-f]{32}(?![\w/+=])",
    "a patient as in RSNA": r"(?<!\w)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?!\w)",
    "a film name as in SIIM": r"(?<![\w.])1\.2\.276\.0\.7230010[.\d]+",
}
"""Numbers of eight digits that start with 1 or 5 and are no ids need thousands separators to pass."""
_FILMS = (".dcm", ".dicom", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".parquet", ".arrow")
Sentences = dict[tuple[str, ...], list[tuple[str, ...]]]  # the first MIN_WORDS words -> sentences, as words
Fault = tuple[str, str]  # place, what
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+")


class Finding(NamedTuple):
    """One thing that must not be there."""

    file: str
    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.what}"


def committed(root: str | Path) -> list[Path]:
    """The files under version control below `root`.

    Raises:
        InputError: `root` is no git repository.
    """
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode:
        raise InputError(f"{root}: not a git repository; give the folder of the project")
    return [Path(root) / name for name in listed.stdout.split("\0") if name]


def scan(root: str | Path, files: Iterable[Path] | None = None, sentences: Collection[str] = ()) -> list[Finding]:
    """Search files for what must not be published.

    Args:
        root: the project; files are named relative to it.
        files: what to search; None takes the committed files. Ids and texts are searched in `FOLDERS` and in
            the pages (*.md), films among all files.
        sentences: real sentences that must not occur (see `open_i_sentences`), in any case and punctuation.

    Raises:
        InputError: `root` is no git repository, or a notebook is no JSON.
    """
    root, known = Path(root), _by_start(sentences)
    findings: list[Finding] = []
    for path in committed(root) if files is None else files:
        name = path.relative_to(root)
        if path.suffix.lower() in _FILMS and name.parts[0] != "tests":
            findings.append(Finding(str(name), "the file itself", "a film or a study table"))
        elif name.parts[0] in FOLDERS or path.suffix == ".md":
            faults = _of_notebook(path, known) if path.suffix == ".ipynb" else _of_file(path, known)
            findings += [Finding(str(name), place, fault) for place, fault in faults]
    return findings


def _of_notebook(path: Path, known: Sentences) -> Iterator[Fault]:
    """Faults of sources and outputs; pictures must come from the phantom, and be drawn."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a notebook ({error!r}); restore it") from error
    pictures, mixes = False, []
    for number, cell in enumerate(cells, 1):
        source = _joined(cell["source"])
        yield from ((f"cell {number}", fault) for fault in _of_text(source, known))
        if "parameters" in cell.get("metadata", {}).get("tags", ()):
            mixes += re.findall(r"^mix(?:: str)? = [\"'](.*)[\"']", source, re.M)
        for output in cell.get("outputs", ()):
            texts = [_joined(output.get("text", "")) + _joined(output.get("traceback", ""))]
            for kind, data in output.get("data", {}).items():
                if not kind.startswith("image/") or kind == "image/svg+xml":
                    texts.append(_joined(data))
                elif kind == "image/png":
                    pictures = True
                else:
                    yield f"cell {number}, output", f"{kind}: a photograph's format; figures are PNG or SVG"
            yield from ((f"cell {number}, output", fault) for text in texts for fault in _of_text(text, known))
    if pictures and mixes != ["phantom"]:
        yield "its pictures", f"pictures of a run with mix {mixes or 'unknown'}"


def _joined(text: Any) -> str:
    return "".join(text) if isinstance(text, list) else text if isinstance(text, str) else json.dumps(text)


def _of_file(path: Path, known: Sentences) -> Iterator[Fault]:
    """Faults of a text or picture; a figure must say that it was drawn from the phantom."""
    data = path.read_bytes()
    try:
        yield from (("text", fault) for fault in _of_text(data.decode("utf-8"), known))
    except UnicodeDecodeError:
        if fault := _of_picture(data):
            yield "picture", fault
    if path.parent.name == "figures" and path.suffix in (".png", ".svg"):
        facts = path.with_suffix(".json")
        if not facts.is_file():
            yield "its pictures", f"no {facts.name} that says where it comes from"
        elif (mix := json.loads(facts.read_text(encoding="utf-8")).get("mix", "phantom")) != "phantom":
            yield "its pictures", f"drawn from mix {mix!r}"


def _of_picture(data: bytes) -> str:
    """Matplotlib draws PNG in colour; films are gray (or JPEG)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return "" if image.mode in ("RGB", "RGBA", "P") else f"a gray picture ({image.mode}), as films are"
    except (OSError, SyntaxError):
        return "no text, and no picture that can be read"


def _of_text(text: str, known: Sentences) -> Iterator[str]:
    """Ids, and the first known sentence, told by its length alone."""
    yield from (what for what, pattern in IDS.items() if re.search(pattern, text))
    spoken = words(text) if known else ()
    for i in range(len(spoken) - MIN_WORDS + 1):
        for sentence in known.get(spoken[i : i + MIN_WORDS], ()):
            if spoken[i : i + len(sentence)] == sentence:
                yield f"a sentence of a real report ({len(sentence)} words)"
                return


def words(text: str) -> tuple[str, ...]:
    """Lower-case words without punctuation; line breaks as JSON writes them count as spaces."""
    return tuple(re.findall(r"[a-z0-9]+", text.lower().replace("\\n", " ")))


@cache
def open_i_sentences() -> frozenset[str]:
    """The long sentences of the real Open-I reports which the phantom cannot say.

    Raises:
        InputError: torchxrayvision is not installed.
    """
    from cxrclip.data.sources import public

    lexicon = (Path(__file__).parents[1] / "data" / "phantom" / "reports.yaml").read_text(encoding="utf-8")
    phantom = " ".join(words(lexicon))
    reports = public.open_i()
    texts = [*reports["findings"], *reports["impression"]]
    real = {" ".join(words(sentence)) for text in texts for sentence in _SENTENCE_ENDS.split(text)}
    return frozenset(text for text in real if len(text.split()) >= MIN_WORDS and text not in phantom)


def _by_start(sentences: Collection[str]) -> Sentences:
    known: Sentences = {}
    for sentence in map(words, sentences):
        if len(sentence) >= MIN_WORDS:
            known.setdefault(sentence[:MIN_WORDS], []).append(sentence)
    return known
