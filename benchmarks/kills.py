"""Faults of every kind at random moments: what a preparation and a whole book look like when they go on afterwards.

A trial starts a command, disturbs it, starts it again without disturbance, and compares all files with those of a
command that nobody disturbed: byte for byte, but for times and the seconds of steps. Nothing may be left behind, and a
command that ends by itself says why in one line. The commands: `cxrclip data` on 300 films of a table, and
`cxrclip reproduce` on a mix of a few phantom studies with two runs and two notebooks.

    python benchmarks/kills.py [--kills 20]    # make fuzz: writes benchmarks/kills.md; some minutes. A full and a
                                               # read-only disk are mounted, which needs Linux and root
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import psutil
import yaml
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "book")]

from conftest import TINY  # noqa: E402
from test_reproduce import COMMAND, DRAW, write_notebook  # noqa: E402

from cxrclip.data.images import encode_gray  # noqa: E402

FILMS, STEPS = 300, 120
ONCE = 600  # seconds after which a command hangs
LEFT = (".draft", ".old", ".partial")


@dataclass(frozen=True)
class Job:
    """A command, and the folder that it makes."""

    name: str
    command: list[str]
    made: Path

    def start(self) -> subprocess.Popen:
        """As a terminal would start it."""
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                start_new_session=True, cwd=self.made.parent)


def data_job(place: Path) -> Job:
    """Three hundred films and their table."""
    films = place / "films"
    films.mkdir(parents=True)
    lines = ["file,who,label"]
    for i in range(FILMS):
        noise = np.random.default_rng(i).integers(0, 256, (256, 256), dtype=np.uint8)
        (films / f"{i}.png").write_bytes(encode_gray(noise, "png"))
        lines.append(f"{i}.png,p{i},Edema")
    (films / "t.csv").write_text("\n".join(lines) + "\n")
    options = [f"--option={name}" for name in ("file=t.csv", "image=file", "patient=who", "labels=label")]
    command = [sys.executable, "-m", "cxrclip.cli", "data", "--source", "table", "--root", str(films), "--out",
               str(place / "disk" / "out"), *options]
    return Job("cxrclip data", command, place / "disk")


def book_job(place: Path) -> Job:
    """A tiny mix, two runs, two notebooks."""
    mix = place / "tiny.yaml"
    mix.write_text(yaml.safe_dump(TINY, sort_keys=False))
    write_notebook(place / "pages" / "00_draw.ipynb", DRAW)
    write_notebook(place / "pages" / "01_tell.ipynb", "print(seed)")
    arguments = [str(part) for part in (mix, place / "disk" / "build", place / "pages", STEPS, 3e-3)]
    return Job("cxrclip reproduce", [sys.executable, "-c", textwrap.dedent(COMMAND), *arguments], place / "disk")


# ---- what is compared ------------------------------------------------------------------------------------------------


def content(path: Path) -> str:
    """A digest of what a file says, without times."""
    if path.name == "run.json":
        return _digest({name: value for name, value in json.loads(path.read_text()).items() if name != "seconds"})
    if path.name == "log.jsonl":
        return _digest([{name: value for name, value in json.loads(line).items() if name != "seconds"}
                        for line in path.read_text().splitlines()])
    if path.suffix == ".npz":
        return _digest({name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
                        for name, array in np.load(path).items()})
    if path.suffix == ".ipynb":
        return _digest([(cell.source, cell.get("outputs")) for cell in nbformat.read(path, 4).cells])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """Path -> digest of all files but locks and the Arrow copies of `datasets`."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): content(path) for path in paths
            if ".cache" not in path.parts and path.name != "lost+found"}


# ---- disturbances: each gives the fault of the disturbed command, "" where it behaved -----------------------------


def kill(job: Job, moment: float, number: int) -> str:
    """SIGKILL to the command at a moment; its workers must end by themselves."""
    call = job.start()
    children = _after(call, moment)
    call.kill()
    call.communicate()
    return f"{len(alive)} processes live on" if (alive := psutil.wait_procs(children, timeout=10)[1]) else ""


def interrupt(job: Job, moment: float, number: int) -> str:
    """Ctrl-C: exit code 130 and one line, at once."""
    call = job.start()
    children = _after(call, moment)
    if call.poll() is None:
        os.killpg(call.pid, signal.SIGINT)
    _, complaint = call.communicate(timeout=ONCE)
    alive = psutil.wait_procs(children, timeout=10)[1]
    if call.returncode == 0 or (call.returncode == -signal.SIGINT and not complaint):  # ended, or Python was starting
        return ""
    return f"{len(alive)} processes live on" if alive else _one_line(complaint)


def lose_worker(job: Job, moment: float, number: int) -> str:
    """SIGKILL to one of the processes that the command started: it ends with one line, or does without."""
    call = job.start()
    if children := [child for child in _after(call, moment) if _works(child)]:
        random.Random(number).choice(children).kill()
    _, complaint = call.communicate(timeout=ONCE)
    return "" if call.returncode == 0 else _one_line(complaint)


def full_disk(job: Job, moment: float, number: int) -> str:
    """A disk with a few MiB at the start."""
    return _on_a_disk(job, f"size={1 + number}m")


def read_only(job: Job, moment: float, number: int) -> str:
    """A disk that cannot be written."""
    return _on_a_disk(job, "ro")


def start_twice(job: Job, moment: float, number: int) -> str:
    """The same command beside itself: one may refuse, in one line, and nothing is made twice."""
    calls = [job.start()]
    time.sleep(moment / 4)
    calls.append(job.start())
    faults = [_one_line(call.communicate(timeout=ONCE)[1]) for call in calls if call.wait(ONCE) is not None
              and call.returncode]
    return next(filter(None, faults), "")


def _after(call: subprocess.Popen, moment: float) -> list[psutil.Process]:
    """Wait, then list the processes below the command."""
    try:
        call.wait(moment)
        return []
    except subprocess.TimeoutExpired:
        return psutil.Process(call.pid).children(recursive=True)


def _works(process: psutil.Process) -> bool:
    try:
        return "resource_tracker" not in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _on_a_disk(job: Job, options: str) -> str:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(job.made)], check=True)
    try:
        call = job.start()
        _, complaint = call.communicate(timeout=ONCE)
        time.sleep(0.2)
    finally:
        subprocess.run(["umount", "-l", str(job.made)], check=True)
    return "" if call.returncode == 0 else _one_line(complaint)


def _one_line(complaint: str) -> str:
    """"" for bars and one line at the end, else what is wrong with a message."""
    lines = [line for line in complaint.replace("\r", "\n").splitlines() if line.strip()]
    if "Traceback" in complaint or "leaked" in complaint:
        return f"a traceback: {lines[-1][:120]}" if lines else "?"
    return "" if lines and lines[-1].startswith(("error: ", "interrupted: ")) else f"no message: {lines[-1:]}"


DISTURBANCES: dict[str, Callable[[Job, float, int], str]] = {
    "killed": kill, "Ctrl-C": interrupt, "a worker killed": lose_worker, "full disk": full_disk,
    "read-only disk": read_only, "started twice": start_twice}


# ---- trials ----------------------------------------------------------------------------------------------------------


@contextmanager
def place_of(job: Callable[[Path], Job]) -> Iterator[Job]:
    """The job in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        yield job(Path(name))


def undisturbed(job: Job) -> float:
    """Run it in an empty folder; seconds."""
    begun = time.monotonic()
    call = job.start()
    _, complaint = call.communicate(timeout=ONCE)
    if call.returncode:
        raise RuntimeError(complaint)
    return time.monotonic() - begun


def trial(job: Job, disturb: Callable[[Job, float, int], str], moment: float, number: int,
          whole: dict[str, str]) -> str:
    """One disturbance; what is wrong in the end, "" for nothing."""
    shutil.rmtree(job.made)
    job.made.mkdir()
    if fault := disturb(job, moment, number):
        return fault
    try:
        undisturbed(job)
    except RuntimeError as error:
        return f"it does not go on: {str(error).splitlines()[-1][:200]}"
    measured = contents(job.made)
    if left := [path for path in measured if any(part.endswith(LEFT) for part in Path(path).parts)
                or ".draft" in Path(path).name]:
        return f"left behind: {left[0]}"
    differing = [path for path in whole.keys() | measured.keys() if whole.get(path) != measured.get(path)]
    return f"{len(differing)} files differ: {sorted(differing)[0]}" if differing else ""


def trials(make: Callable[[Path], Job], kills: int) -> list[tuple[str, str, int, list[str]]]:
    """Every disturbance of a job: its name, the disturbance, the number of trials, the faults."""
    lines = []
    with place_of(make) as job:
        job.made.mkdir(exist_ok=True)
        seconds = undisturbed(job)
        whole = contents(job.made)
        for name, disturb in DISTURBANCES.items():
            count = kills if name == "killed" else max(kills // 4, 1)
            moments = [random.Random(f"{name} {i}").uniform(0.05, 1.0) * seconds for i in range(count)]
            faults = [fault for number, moment in enumerate(tqdm(moments, f"{job.name}, {name}"))
                      if (fault := trial(job, disturb, moment, number, whole))]
            print(f"{job.name}, {name}: {count} trials, {len(faults)} faults {faults[:5]}", flush=True)
            lines.append((job.name, name, count, faults))
    return lines


def main() -> None:
    """All trials; benchmarks/kills.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--job", choices=["data", "book"], nargs="*", default=["data", "book"])
    options = parser.parse_args()
    lines = [line for job in options.job for line in trials({"data": data_job, "book": book_job}[job], options.kills)]
    head = " ".join(__doc__.split("\n\n")[1].split())
    table = ["# Faults at random moments", "", f"Written by `make fuzz`. {head}", "",
             "| command | disturbed by | trials | faults |", "|---|---|---|---|",
             *(f"| {job} | {name} | {count} | {len(faults)} |" for job, name, count, faults in lines), ""]
    if len(options.job) == 2:
        (ROOT / "benchmarks" / "kills.md").write_text("\n".join(table), encoding="utf-8")
    sys.exit(any(faults for *_, faults in lines))


if __name__ == "__main__":
    main()
