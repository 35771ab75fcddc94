"""cxrclip.data.sources.intake: several processes, killed and gone on with, give one and the same folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cxrclip.data.sources.intake import Film, Intake, Study

from cxrclip import studies
from cxrclip.data.images import encode_gray, read_gray, resize_shorter, store_films
from cxrclip.data.sources import intake, pool
from cxrclip.errors import InputError
from cxrclip.studies import ResumableStudies, resumable_studies, validate

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(intake, "SHARD", 8)
    monkeypatch.setattr(intake, "BATCH", 3)


@pytest.fixture
def root(tmp_path):
    """Sixty films, two of them damaged and one missing."""
    folder = tmp_path / "release"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        pixels = rng.integers(0, 256, (40 + i % 3, 30), dtype=np.uint8)
        (folder / f"{i}.png").write_bytes(encode_gray(pixels, "png"))
    for i in (5, 33):
        (folder / f"{i}.png").write_bytes(b"\x89PNG damaged")
    (folder / "20.png").unlink()
    return folder


def release(root, n=60):
    """Forty studies: every other one has two films. Studies 13 and 22 keep one film; none of study 3 is good."""
    taken = Intake("here", root, "list.csv", {"release": "none"})
    films = iter(range(n))
    for row in range(1, 2 * n // 3 + 1):
        names = [next(films) for _ in range(2 if row % 2 == 0 else 1)]
        pair = [Film(root / f"{i}.png", "PA") for i in names]
        taken.studies.append(Study(row, f"s{row}", f"p{row // 2}", pair, "train", f"Text {row}."))
    return taken


def prepare(root, out, **options):
    options = {"image_size": 16, "max_rejected": 0.2, "progress": False, "workers": 1} | options
    return release(root).write(out, {}, **options)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def left_over(folder):
    return [path.name for path in folder.glob(".*")]


def decoded(monkeypatch):
    """The films which are really read from now on, by name."""
    read = []
    monkeypatch.setattr(
        intake, "store_films", lambda films, size, real=intake.store_films: read.extend(
            path.name for path, _ in films) or real(films, size))  # fmt: skip
    return read


@pytest.fixture
def whole(root, tmp_path):
    table = prepare(root, tmp_path / "whole")
    assert (table["studies"].sum(), table["images"].sum(), table["rejected"].sum()) == (39, 57, 3)
    return content(tmp_path / "whole")


def test_rows_are_those_of_a_plain_loop(root, tmp_path, whole):
    validate(tmp_path / "whole")
    assert sorted(whole) == ["dataset.json", "rejected.csv", *(f"studies-{i:05d}.parquet" for i in range(5))]
    rows = [row for i in range(5) for row in pq.read_table(tmp_path / "whole" / f"studies-{i:05d}.parquet").to_pylist()]
    good = iter(rows)
    for study in release(root).studies:
        stored = []
        for film in study.films:
            try:
                stored.append(encode_gray(resize_shorter(read_gray(film.path, "film"), 16)))
            except InputError:
                continue
        if stored:
            row = next(good)
            assert row["study_id"] == study.study_id
            assert [image["bytes"] for image in row["images"]] == stored
    assert not list(good)


def test_the_number_of_processes_changes_no_byte(root, tmp_path, whole):
    prepare(root, tmp_path / "three", workers=3)
    assert content(tmp_path / "three") == whole
    assert not left_over(tmp_path)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_intake import intake, prepare, ResumableStudies
intake.SHARD, intake.BATCH = 8, 3
real = ResumableStudies.add
def add(self, number, *rest):
    if number == 2:
        (self.partial / "studies-00002.part").write_bytes(b"half of a sha")
        (self.partial / "studies-00003.parquet").write_bytes(b"without a note")
        print("ready", flush=True)
        time.sleep(600)
    real(self, number, *rest)
ResumableStudies.add = add
prepare(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
"""


def test_a_killed_preparation_goes_on_from_its_finished_shards(root, tmp_path, whole, monkeypatch):
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", KILLED, str(root), str(tmp_path / "out"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(InputError, match="another process is preparing it"):
            prepare(root, tmp_path / "out")
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == [".out.partial"]
    read = decoded(monkeypatch)
    prepare(root, tmp_path / "out")
    assert read == [f"{i}.png" for i in range(24, 60)]  # 16 studies with 24 films were done
    assert content(tmp_path / "out") == whole
    assert not left_over(tmp_path)


def interrupted(root, out, monkeypatch, error, **options):
    """Stop before the third shard is written."""
    real = ResumableStudies.add

    def add(self, number, *rest):
        if number == 2:
            raise error
        real(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableStudies, "add", add)
        with pytest.raises(type(error)):
            prepare(root, out, **options)


def test_what_changed_in_between_is_read_again(root, tmp_path, monkeypatch):
    interrupted(root, tmp_path / "out", monkeypatch, KeyboardInterrupt())
    (root / "5.png").write_bytes(encode_gray(np.arange(900, dtype=np.uint8).reshape(30, 30), "png"))  # mended
    prepare(root, tmp_path / "fresh")
    read = decoded(monkeypatch)
    prepare(root, tmp_path / "out")
    assert read == [f"{i}.png" for i in (*range(12), *range(24, 60))]  # the first shard again, and the rest
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    interrupted(root, tmp_path / "out", monkeypatch, KeyboardInterrupt())
    del read[:]
    prepare(root, tmp_path / "out", image_size=20)  # another parameter: nothing can be used
    assert len(read) == 60


def test_a_damaged_shard_is_never_taken(root, tmp_path, monkeypatch, whole):
    interrupted(root, tmp_path / "out", monkeypatch, KeyboardInterrupt())
    shard = tmp_path / ".out.partial" / "table" / "studies-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 0xFF
    shard.write_bytes(data)  # as long as before
    with pytest.raises(InputError, match=r"studies-00001\.parquet: damaged; run the same command again"):
        prepare(root, tmp_path / "out")
    prepare(root, tmp_path / "out")
    assert content(tmp_path / "out") == whole


def test_a_full_disk_keeps_the_finished_shards(root, tmp_path, monkeypatch, whole):
    real, written = pq.write_table, []

    def full(table, path, **options):
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(table, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(studies.pq, "write_table", full)
        with pytest.raises(InputError, match=r"No space left on device.*2 finished shards wait in .*\.out\.partial"):
            prepare(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    read = decoded(monkeypatch)
    prepare(root, tmp_path / "out")
    assert len(read) == 36
    assert content(tmp_path / "out") == whole


def test_too_many_bad_films_stop_and_a_larger_share_goes_on(root, tmp_path, whole, monkeypatch):
    with pytest.raises(InputError, match=r"2 of 40 rows are unusable.*1 finished shards wait"):
        prepare(root, tmp_path / "out", max_rejected=0.03)
    assert not (tmp_path / "out").exists()
    read = decoded(monkeypatch)
    prepare(root, tmp_path / "out", max_rejected=0.2)
    assert read[0] == "12.png"
    assert content(tmp_path / "out") == whole


def test_nothing_stays_when_no_shard_was_finished(root, tmp_path):
    with pytest.raises(InputError, match="unusable"):
        prepare(root, tmp_path / "out", max_rejected=0)
    assert not left_over(tmp_path)
    with pytest.raises(InputError, match="workers=0: give at least 1"):
        prepare(root, tmp_path / "out", workers=0)


def test_an_older_folder_stays_until_the_new_one_is_whole(root, tmp_path, monkeypatch, whole):
    prepare(root, tmp_path / "out", image_size=20)
    before = content(tmp_path / "out")
    interrupted(root, tmp_path / "out", monkeypatch, KeyboardInterrupt())
    assert content(tmp_path / "out") == before
    prepare(root, tmp_path / "out")
    assert content(tmp_path / "out") == whole
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files than a study table"):
        prepare(root, tmp_path / "other")


def test_fewer_shards_than_before_leave_none_behind(root, tmp_path, monkeypatch):
    interrupted(root, tmp_path / "out", monkeypatch, KeyboardInterrupt())
    short = release(root, 9)
    options = {"image_size": 16, "max_rejected": 0.2, "progress": False, "workers": 1}
    short.write(tmp_path / "out", {}, **options)
    release(root, 9).write(tmp_path / "fresh", {}, **options)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_the_bar_counts_films_and_what_was_done_before(root, tmp_path, monkeypatch, capsys):
    interrupted(root, tmp_path / "out", monkeypatch, KeyboardInterrupt())
    prepare(root, tmp_path / "out", progress=True)
    said = capsys.readouterr().err
    assert "going on after 24 of 60 films" in said
    assert "60/60" in said
    assert "39 studies" not in said  # of the 40 studies found, 3 rows were set aside
    assert "40 studies of list.csv found; 3 rejected" in said


# ---------------------------------------------------------------------------------------------------------- pool


def doubling():
    """A function which is sent whole to other processes, so that they need not import this module."""

    def doubled(batch):
        if 13 in batch:
            os.kill(os.getpid(), signal.SIGSEGV)
        return [2 * item for item in batch]

    return doubled


def test_an_item_that_kills_its_process_is_named_and_the_rest_goes_on():
    batches = [list(range(i, i + 2)) for i in range(0, 40, 2)]
    with pool.in_order(doubling(), iter(batches), 2, lambda batch: [f"{batch[0]} crashed"]) as results:
        found = [result for batch in results for result in batch]
    assert found == ["13 crashed" if i == 13 else 2 * i for i in range(40)]


def test_batches_are_taken_only_a_few_ahead_of_the_reader():
    taken = []

    def batches():
        for i in range(100):
            taken.append(i)
            yield [i + 100]

    with pool.in_order(doubling(), batches(), 2, list) as results:
        for read, result in enumerate(results, 1):
            assert result == [2 * (read + 99)]
            assert len(taken) - read <= 6
            if read == 10:
                break
    assert len(taken) <= 16


def test_a_crashing_decoder_sets_its_film_aside(root, tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "store_films", crashing_on_seven())
    monkeypatch.setattr(intake, "BATCH", 1)
    table = prepare(root, tmp_path / "out", workers=2)
    assert table["rejected"].sum() == 4
    assert "7.png: a decoder crashed on this file" in (tmp_path / "out" / "rejected.csv").read_text()


def crashing_on_seven():
    def crash_on_seven(films, size):
        if any(path.name == "7.png" for path, _ in films):
            os.kill(os.getpid(), signal.SIGKILL)
        return store_films(films, size)

    return crash_on_seven


def test_processes_end_when_their_parent_was_killed(tmp_path):
    psutil = pytest.importorskip("psutil")
    script = (
        "import os, time, sys\n"
        "from cxrclip.data.sources import pool\n"
        "with pool.in_order(len, ([i] for i in range(9)), 2, list) as results:\n"
        "    next(results)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.kill()
    deadline = time.time() + 20
    while any(child.is_running() and child.status() != "zombie" for child in children) and time.time() < deadline:
        time.sleep(0.2)
    assert not [child for child in children if child.is_running() and child.status() != "zombie"]


def test_two_tables_of_one_name_do_not_mix(tmp_path):
    with resumable_studies(tmp_path / "a") as table:
        with pytest.raises(InputError, match="another process is preparing it"), resumable_studies(tmp_path / "a"):
            pass
        assert not table.has(0, "key")
    assert not left_over(tmp_path)
