"""The command line: `cxrclip reproduce`, `cxrclip data`, `cxrclip export` and more; `cxrclip --help` lists them.

What is heavy is imported inside the commands, so that help comes at once. A fault of the input is one line on stderr
and exit code 2, Ctrl-C one line and exit code 130.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrclip.errors import InputError

if TYPE_CHECKING:
    from cxrclip.experiments import Workbench

app = typer.Typer(help="CXR-CLIP as an executable paper.", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False, rich_markup_mode=None)
# Packages of an extra -> its name, for what to install where one is missing.
EXTRAS = {"pydicom": "data", "torchxrayvision": "data", "papermill": "book", "nbformat": "book", "matplotlib": "book",
          "seaborn": "book", "IPython": "book"}


class Split(StrEnum):
    """Whose reports are translated."""

    train, valid, test, all = "train", "valid", "test", "all"


Profile = Annotated[str, typer.Option(help="how large: quick, standard or paper")]
Mix = Annotated[str, typer.Option(help="which data: phantom, real-sample, paper, or the path of a YAML file")]
Seed = Annotated[int, typer.Option(help="first seed of the runs; the standard profile adds two or four more")]
Build = Annotated[Path, typer.Option(help="folder of prepared data, runs and results")]
Data = Annotated[str, typer.Option(help="folder of downloaded data sets, for mixes that read some")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Root = Annotated[Path | None, typer.Option(help="folder of the project; by default the one the package lies in")]


def command(name: str) -> Callable[[Callable], Callable]:
    """Register a function as a command whose faults are one line and an exit code."""
    def register(function: Callable) -> Callable:
        @app.command(name)
        @functools.wraps(function)
        def guarded(*args: object, **kwargs: object) -> None:
            try:
                function(*args, **kwargs)
            except KeyboardInterrupt as error:
                typer.echo("\ninterrupted: the same command goes on where it stopped", err=True)
                raise typer.Exit(130) from error
            except Exception as error:
                if (message := _message(error)) is None:
                    raise  # a fault of the library: its traceback is wanted
                typer.echo(f"error: {message}", err=True)
                raise typer.Exit(2) from error
        return guarded
    return register


def _message(error: Exception) -> str | None:
    """The one line to print for an error of the user's, of the disk or of a run; None for any other."""
    workers = sys.modules.get("cxrclip.data.workers")  # not imported yet: then it has raised nothing
    if isinstance(error, InputError) or (workers is not None and isinstance(error, workers.WorkFailed)):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").split(".")[0])):
        return f"the package {error.name} is not installed: pip install 'cxrclip[{extra}]'"
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).splitlines()[0]
        return (f"{error.filename or 'a file'}: {reason}: free some space or choose a folder that can be read and "
                "written")
    return None


def _bench(build: Path, data: str, device: str) -> Workbench:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from cxrclip.experiments import Workbench
    return Workbench(build, data, device)


def _clone(root: Path | None) -> Path:
    """The folder of the repository: what was given, else where the package lies."""
    root = root or Path(__file__).parents[1]
    if not (root / "pyproject.toml").is_file():
        raise InputError(f"{root} is no clone of the repository: run this in one, or name it with --root")
    return root


@command("reproduce")
def reproduce(profile: Profile = "quick", mix: Mix = "phantom", seed: Seed = 0, build: Build = Path("build"),
              data: Data = "", device: Device = "auto",
              redraw: Annotated[bool, typer.Option("--redraw", help="execute every notebook again")] = False) -> None:
    """Prepare the data, make every missing run, execute the notebooks, and print what was measured."""
    bench = _bench(build, data, device)
    from cxrclip.book.reproduce import reproduce
    reproduce(profile, mix, seed, bench, redraw=redraw)


@command("pretrain")
def pretrain(profile: Profile = "quick", mix: Mix = "phantom", seed: Seed = 0, build: Build = Path("build"),
             data: Data = "", device: Device = "auto") -> None:
    """Prepare the data, make every missing run, and stop; on several GPUs under `accelerate launch -m cxrclip.cli`."""
    bench = _bench(build, data, device)
    from cxrclip.book.reproduce import pretrain_all
    pretrain_all(profile, mix, seed, bench)


@command("dry-run")
def dry_run(profile: Profile = "paper", mix: Mix = "phantom", seed: Seed = 0, build: Build = Path("build"),
            data: Data = "", device: Device = "auto") -> None:
    """Try the real networks with random weights on a few studies, and say what a real run costs."""
    bench = _bench(build, data, device)
    from cxrclip.book.dry_run import dry_run
    dry_run(profile, mix, seed, bench)


@command("notebooks")
def notebooks(build: Build = Path("build"), device: Device = "auto") -> None:
    """Execute the committed notebooks in place (quick profile, phantom world)."""
    _clone(None)
    bench = _bench(build, "", device)
    from cxrclip.book.reproduce import in_place
    in_place(bench)


@command("data")
def data(source: Annotated[str, typer.Option(help="mimic-cxr, chexpert, chestxray14, rsna, openi, table, ...")],
         root: Annotated[Path, typer.Option(help="folder of the download")],
         out: Annotated[Path, typer.Option(help="study folder to write")],
         allow_partial: Annotated[bool, typer.Option("--allow-partial", help="go on where counts are not those of the "
                                                     "release")] = False,
         option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="a parameter of the source, its "
                                                          "value in YAML; may be repeated")] = None) -> None:
    """Turn a public data set, as it lies on disk, into a checked study folder."""
    from cxrclip.data import sources
    typer.echo(sources.prepare_from_text(source, root, out, allow_partial, option or []))


@command("augment-texts")
def augment_texts(studies: Annotated[Path, typer.Option(help="study folder with reports")],
                  out: Annotated[Path | None, typer.Option(help="new study folder [default: STUDIES-aug]")] = None,
                  there: Annotated[str, typer.Option(help="model from English: name or folder [default: "
                                                     "opus-mt-en-it]")] = "",
                  back: Annotated[str, typer.Option(help="model to English [default: opus-mt-it-en]")] = "",
                  there_prefix: Annotated[str, typer.Option(help="text before each sentence, as T5 wants it")] = "",
                  back_prefix: Annotated[str, typer.Option(help="the same on the way back")] = "",
                  models: Annotated[Path, typer.Option(help="where model folders lie")] = Path("models"),
                  split: Annotated[Split, typer.Option(help="whose reports")] = Split.train,
                  device: Device = "auto") -> None:
    """Write a study folder with back-translated report sections beside the original ones."""
    from cxrclip.data.augment import BACK, THERE, augment_with_models
    out = out or studies.with_name(f"{studies.name}-aug")
    counts = augment_with_models(studies, out, there or THERE, back or BACK, there_prefix=there_prefix,
                                 back_prefix=back_prefix, models=models, device=device,
                                 split=None if split is Split.all else split.value)
    typer.echo(f"{out}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}")


@command("tables")
def tables(root: Root = None) -> None:
    """Write tables, verdicts and the pages' parts from the committed results alone."""
    root = _clone(root)
    from cxrclip.book import render
    typer.echo("\n".join(render.write_tables(root)))


@command("keep")
def keep(build: Build = Path("build"), root: Root = None) -> None:
    """Put the results of the finished standard runs in the place of the committed ones, one CSV a comparison."""
    root = _clone(root)
    from cxrclip.book import render
    from cxrclip.book.reproduce import finished_results
    rows = finished_results("standard", "phantom", 0, _bench(build, "", "auto"))
    typer.echo("\n".join(render.keep_results(rows, root)))


@command("check-run")
def check_run(build: Annotated[Path, typer.Option(help="folder for data and the new run; not one that has it")],
              run: Annotated[str, typer.Option(help="key of a committed run [default: one at random]")] = "",
              device: Device = "auto", root: Root = None) -> None:
    """Train one committed run again and compare it with its committed numbers; exit code 1 if they do not agree."""
    root = _clone(root)
    from cxrclip.book import render
    from cxrclip.book.check_run import SHARE, check_run
    table, agree = check_run(run, render.standard_results(root), _bench(build, "", device))
    typer.echo(table.round(3).to_string(index=False))
    typer.echo(f"{table['inside'].mean():.0%} of {len(table)} numbers lie inside the committed intervals, {SHARE:.0%} "
               f"are asked for: {'the runs agree' if agree else 'the runs do NOT agree'}")
    raise typer.Exit(0 if agree else 1)


@command("figures")
def figures(root: Root = None) -> None:
    """Draw the committed figures from the committed results alone."""
    root = _clone(root)
    from cxrclip.book import render
    typer.echo("\n".join(render.write_figures(root)))


@command("explorer")
def explorer() -> None:
    """Write the data of the explorer page: films, texts and the embeddings of the book's model."""
    _clone(None)
    from cxrclip.book import explorer
    typer.echo(explorer.write())


@command("export")
def export(run: Annotated[Path, typer.Option(help="folder of a finished run: BUILD/runs/KEY")],
           out: Annotated[Path, typer.Option(help="new folder for the model")], data: Data = "") -> None:
    """Write a trained model as plain transformers reads it, with its card."""
    from cxrclip.hub.export import export
    typer.echo(f"wrote {export(run, out, data)}: its README.md tells how to use it")


@command("scan")
def scan(root: Annotated[Path, typer.Argument(help="folder of the project")] = Path()) -> None:
    """Look for ids, report text and films that must not be committed; exit code 1 if there are any."""
    from cxrclip.book import governance
    findings = governance.scan(root, sentences=governance.open_i_sentences())
    for finding in findings:
        typer.echo(str(finding))
    typer.echo(f"governance: {len(findings)} findings")
    raise typer.Exit(1 if findings else 0)


def main() -> None:
    """The entry point of `cxrclip` and of `python -m cxrclip.cli`."""
    app(prog_name="cxrclip")


if __name__ == "__main__":
    main()
