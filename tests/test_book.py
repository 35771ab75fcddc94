"""What every committed notebook promises, and that set-up files agree with each other."""

from __future__ import annotations

import ast
import json
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
import yaml

import cxrclip
from cxrclip import cli

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
MAX_IGNORED = 20  # cells whose output nbval does not compare, in the whole book: keep it small
OWN_PARAMETERS = {"12_official_weights": ["weights", "tokenizer", "openi", "limit", "precision"],
                  "13_your_own_archive": ["archive"], "14_safe_adoption": ["minutes"],
                  "06_classification": ["film"]}  # beside the shared
PAGES = ("README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "DATA.md", "notebooks/index.md",
         "notebooks/glossary.md", "notebooks/explorer.md", "notebooks/reading.md", "notebooks/references.md")
HEAD = ("**You learn**", "**It needs**", "**It takes**", "**It makes**")


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def source(path):
    return "\n".join("".join(cell.source) for cell in cells(path, "code"))


def test_the_notebooks_are_there():
    assert len(NOTEBOOKS) >= 16


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_head_tells_what_needs_takes_and_makes(self, path):
        head = cells(path, "markdown")[0].source
        assert head.startswith(f"# {path.name[:2]} ")
        assert all(word in head for word in HEAD)

    def test_one_cell_of_parameters_with_the_shared_names(self, path):
        tagged = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1
        names = [node.target.id for node in ast.parse(tagged[0].source).body]  # annotated: papermill checks the types
        shared = ["profile", "mix", "seed", "build", "data", "device"]
        assert names == shared + OWN_PARAMETERS.get(path.stem, [])

    def test_every_cell_was_run_in_order_without_error(self, path):
        code = [cell for cell in cells(path, "code") if cell.source.strip()]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
        assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]

    def test_every_name_of_the_library_exists(self, path):
        tree, modules = ast.parse(source(path)), {}
        for node in ast.walk(tree):
            for alias in node.names if isinstance(node, ast.ImportFrom) and node.module.startswith("cxrclip") else ():
                modules[alias.asname or alias.name] = pkgutil.resolve_name(f"{node.module}.{alias.name}")
        assert modules
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                owner = modules[node.value.id]
                assert hasattr(owner, node.attr) or not isinstance(owner, ModuleType), f"{node.value.id}.{node.attr}"

    def test_functions_have_at_most_five_lines(self, path):
        for node in ast.walk(ast.parse(source(path))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 5, f"{node.name}: make it a library function"

    def test_figures_have_captions_and_pages_have_exercises(self, path):
        text = "\n".join(cell.source for cell in cells(path, "markdown"))
        assert "## Exercises" in text
        assert "## What we saw" in text or path.name.startswith("00")
        if any("image/png" in output.get("data", {}) for cell in cells(path, "code") for output in cell.outputs):
            assert "*What to see.*" in text

    def test_no_path_of_a_machine(self, path):
        assert not re.search(r"/(?:home|root|tmp|Users|work)/", path.read_text(encoding="utf-8"))


def test_few_cells_are_ignored():
    ignored = [path.stem for path in NOTEBOOKS for cell in cells(path, "code")
               if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert len(ignored) <= MAX_IGNORED, ignored
    skipped = [path.stem for path in NOTEBOOKS for cell in cells(path, "code")
               if "nbval-skip" in cell.metadata.get("tags", [])]
    assert not skipped


def test_citation_files_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    zenodo, meta = (json.loads((ROOT / name).read_text()) for name in (".zenodo.json", "codemeta.json"))
    assert {citation["title"]} == {zenodo["title"], meta["name"]}
    assert zenodo["license"] == citation["license"] == meta["license"].rsplit("/", 1)[1]
    assert {author["name"] for author in citation["authors"]} == {one["name"] for one in zenodo["creators"]} == {
        one["name"] for one in meta["author"]}
    assert meta["version"] == cxrclip.__version__
    paper = citation["references"][0]
    assert meta["referencePublication"][0]["name"] == paper["title"]
    assert zenodo["related_identifiers"][0]["identifier"] == paper["identifiers"][0]["value"]


def test_the_colab_cell_names_files_of_the_repository_and_pins_the_lock():
    text = (ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8")
    lines = [line for line in json.loads(text)["cells"] if "On Google Colab" in "".join(line["source"])]
    (cell,) = re.findall(r"```text\n(!git clone.*?)```", "".join(lines[0]["source"]), re.DOTALL)
    installs = [line.split()[2:] for line in cell.splitlines() if line.startswith("!pip")]
    assert all("--no-deps" in words for words in installs)
    assert [words[-2:] for words in installs] == [["-r", "requirements.lock"], ["-e", "."]]
    assert (ROOT / "requirements.lock").is_file()


def test_environment_yml_is_python_pip_and_the_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda == ["python=3.11", "pip", {"pip": ["-r requirements.lock", "-e ."]}]


def test_the_lock_pins_exactly_what_pyproject_asks_for():
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), f"{line}: not an exact pin"
            pins[requirement.name.lower().replace("_", "-")] = str(requirement.specifier)[2:]
    text = (ROOT / "pyproject.toml").read_text()
    asked = [Requirement(item) for item in re.findall(r'"([A-Za-z0-9._-]+>=[^"]+)"', text) if "setuptools" not in item]
    assert len(asked) > 15
    for requirement in asked:
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_the_installed_versions_are_those_of_the_lock():
    from importlib.metadata import version

    for name in ("torch", "transformers", "datasets", "numpy", "opencv-python-headless"):
        lines = (ROOT / "requirements.lock").read_text().splitlines()
        line = next(line for line in lines if line.startswith(f"{name}=="))
        assert version(name).split("+")[0] == line.split("==")[1].split(" ")[0]


def prose(page):
    """The Markdown of a page or of a notebook."""
    if (path := ROOT / page).suffix == ".md":
        return path.read_text("utf-8")
    return "\n".join(cell.source for cell in cells(path, "markdown"))


def commands_in(page):
    """Lines of a page's blocks of commands; what a backslash carries on is one line."""
    blocks = [block for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", prose(page), re.S | re.M)
              if language in ("", "sh")]
    return "\n".join(blocks).replace("\\\n", " ").splitlines()


def make_targets_in(page):
    """Targets that a page tells its reader to make, in running text or in a block of commands."""
    return {target for text in (prose(page), *(f"`{line}" for line in commands_in(page)))
            for target in re.findall(r"`make\s+([a-z-]+)", text)}


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md", "CONTRIBUTING.md", "DATA.md", *NOTEBOOKS],
                         ids=lambda page: Path(page).stem)
def test_commands_can_be_pasted(page):
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    assert make_targets_in(page) <= targets, make_targets_in(page) - targets
    assert not [line for line in commands_in(page) if line.endswith("\\") or "\\ " in line]  # two: the line ends early
    named = set(re.findall(r"\bcxrclip(?:\.cli)? ([a-z-]+)", "\n".join(commands_in(page))))
    assert named <= (known := {command.name for command in cli.app.registered_commands}), named - known


def test_readme_names_the_main_targets():
    assert {"reproduce", "test", "data", "augment-texts", "export"} <= make_targets_in("README.md")


def test_readme_stays_short_and_says_what_it_is_not_for():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert any("not for diagnosis" in line.lower() for line in lines[:20])


def test_readme_maps_every_notebook_and_every_file_of_the_paper():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in [*NOTEBOOKS, *(ROOT / "cxrclip").glob("[a-z]*.py")]:
        name = path.relative_to(ROOT).as_posix()
        assert f"]({name})" in text or path.stem == "cli", f"README.md: no line for {name}"


@pytest.mark.parametrize("page", ["README.md", "notebooks/index.md"])
def test_first_pages_have_the_block_of_verdicts_that_make_tables_fills(page):
    assert len(re.findall(r"<!-- verdicts -->\n- \*\*.*?<!-- /verdicts -->", (ROOT / page).read_text(), re.S)) == 1


def test_notebooks_are_numbered_without_gaps():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{number:02d}_" for number in range(len(NOTEBOOKS))]


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    broken = [link for link in links if not re.match(r"[a-z]+:|#", link)
              and not (path.parent / link.split("#")[0]).exists()]
    assert not broken


def test_words_of_the_glossary_are_in_alphabetical_order():
    lines = (ROOT / "notebooks" / "glossary.md").read_text(encoding="utf-8").splitlines()
    words = [line.split("|")[1].strip().lower() for line in lines if line.startswith("| ")][1:]
    order = [re.sub(r"[^a-z0-9]", "", word.split(",")[0]) for word in words]
    assert len(words) > 40
    assert order == sorted(order)
