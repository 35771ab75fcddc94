"""cxrclip.data.sources.prepare: several processes, killed and gone on with, give one and the same folder."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import decoders
import numpy as np
import pyarrow.parquet as pq
import pytest

from cxrclip import studies
from cxrclip.data.images import encode_gray, read_gray, resize_shorter
from cxrclip.data.shards import ResumableStudies, resumable_studies
from cxrclip.data.sources import prepare as driver
from cxrclip.data.sources.prepare import Film, Intake, Study
from cxrclip.errors import InputError
from cxrclip.studies import validate

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(driver, "SHARD", 8)


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


def release(root, n=60, progress=False):
    """Forty studies: every other one has two films. Studies 13 and 22 keep one film; none of study 3 is good."""
    taken = Intake("here", root, "list.csv", progress=progress, facts={"release": "none"})
    films = iter(range(n))
    for row in range(1, 2 * n // 3 + 1):
        names = [next(films) for _ in range(2 if row % 2 == 0 else 1)]
        pair = [Film(root / f"{i}.png", "PA") for i in names]
        taken.studies.append(Study(f"s{row}", f"p{row // 2}", pair, "train", f"Text {row}.", row=row))
    return taken


def prepare(root, out, progress=False, **options):
    options = {"image_size": 16, "max_rejected": 0.2, "workers": 1} | options
    return release(root, progress=progress).write(out, **options)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def left_over(folder):
    return [path.name for path in folder.glob(".*")]


@pytest.fixture
def decoded(tmp_path_factory, monkeypatch):
    """The films which were read since the last call, by name."""
    log = tmp_path_factory.mktemp("log") / "films.txt"
    monkeypatch.setattr(driver, "store_film", partial(decoders.logged, log))

    def names():
        read = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return read

    return names


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
sys.path.insert(0, sys.argv[4])
from test_intake import driver, prepare, ResumableStudies
driver.SHARD = 8
real = ResumableStudies.add
def add(self, number, *rest):
    if number == 2:
        (self.table / "studies-00002.part").write_bytes(b"half of a sha")
        (self.table / "studies-00003.parquet").write_bytes(b"without a note")
        print("ready", flush=True)
        time.sleep(600)
    real(self, number, *rest)
ResumableStudies.add = add
prepare(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
"""


def test_a_killed_preparation_goes_on_from_its_finished_shards(root, tmp_path, whole, decoded):
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "TQDM_DISABLE": "1"}
    folders = (root, tmp_path / "out", Path(__file__).parent, PROJECT / "tests")
    command = [sys.executable, "-c", KILLED, *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(InputError, match="another process is preparing it"):
            prepare(root, tmp_path / "out")
        process.kill()
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == [".out.partial"]
    decoded()
    prepare(root, tmp_path / "out")
    assert decoded() == [f"{i}.png" for i in range(24, 60)]  # 16 studies with 24 films were done
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


def test_what_changed_in_between_is_read_again(root, tmp_path, monkeypatch, decoded):
    interrupted(root, tmp_path / "out", monkeypatch, KeyboardInterrupt())
    (root / "5.png").write_bytes(encode_gray(np.arange(900, dtype=np.uint8).reshape(30, 30), "png"))  # mended
    prepare(root, tmp_path / "fresh")
    decoded()
    prepare(root, tmp_path / "out")
    assert decoded() == [f"{i}.png" for i in (*range(12), *range(24, 60))]  # the first shard again, and the rest
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    interrupted(root, tmp_path / "out", monkeypatch, KeyboardInterrupt())
    decoded()
    prepare(root, tmp_path / "out", image_size=20)  # another parameter: nothing can be used
    assert len(decoded()) == 60


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


def test_a_full_disk_keeps_the_finished_shards(root, tmp_path, monkeypatch, whole, decoded):
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
    decoded()
    prepare(root, tmp_path / "out")
    assert len(decoded()) == 36
    assert content(tmp_path / "out") == whole


def test_too_many_bad_films_stop_and_a_larger_share_goes_on(root, tmp_path, whole, decoded):
    with pytest.raises(InputError, match=r"2 of 40 rows are unusable.*1 finished shards wait"):
        prepare(root, tmp_path / "out", max_rejected=0.03)
    assert not (tmp_path / "out").exists()
    decoded()
    prepare(root, tmp_path / "out", max_rejected=0.2)
    assert decoded()[0] == "12.png"
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
    with pytest.raises(InputError, match="holds other files"):
        prepare(root, tmp_path / "other")


def test_fewer_shards_than_before_leave_none_behind(root, tmp_path, monkeypatch):
    interrupted(root, tmp_path / "out", monkeypatch, KeyboardInterrupt())
    options = {"image_size": 16, "max_rejected": 0.2, "workers": 1}
    release(root, 9).write(tmp_path / "out", **options)
    release(root, 9).write(tmp_path / "fresh", **options)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_the_bar_counts_films_and_what_was_done_before(root, tmp_path, monkeypatch, capsys):
    interrupted(root, tmp_path / "out", monkeypatch, KeyboardInterrupt())
    prepare(root, tmp_path / "out", progress=True)
    said = capsys.readouterr().err
    assert "going on after 24 of 60 films" in said
    assert "60/60" in said
    assert "39 studies" not in said  # of the 40 studies found, 3 rows were set aside
    assert "40 studies of list.csv found; 3 rejected" in said


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        (decoders.aborting, "2.png: a decoder crashed (exit code -6) on this file"),
        (decoders.panicking, "2.png: a decoder failed (Panic) on this file"),
        (decoders.hanging, "2.png: a decoder took longer than 1 s on this file"),
    ],
)
def test_a_decoder_that_aborts_panics_or_hangs_costs_one_film_of_four(root, tmp_path, monkeypatch, decoder, reason):
    monkeypatch.setattr(driver, "store_film", decoder)
    monkeypatch.setattr(driver, "DECODING_SECONDS", 1)
    taken = Intake("here", root, "list.csv", progress=False)
    for i in range(4):
        taken.studies.append(Study(f"s{i}", f"p{i}", [Film(root / f"{i}.png", "PA")], "train", f"Text {i}.", row=i + 1))
    table = taken.write(tmp_path / "out", image_size=16, max_rejected=0.5)
    assert (table["studies"].sum(), table["rejected"].sum()) == (3, 1)
    assert [row["study_id"] for row in studies.open_studies(tmp_path / "out")] == ["s0", "s1", "s3"]
    assert reason in (tmp_path / "out" / "rejected.csv").read_text()
    assert not left_over(tmp_path)


def test_two_tables_of_one_name_do_not_mix(tmp_path):
    with resumable_studies(tmp_path / "a") as table:
        with pytest.raises(InputError, match="another process is preparing it"), resumable_studies(tmp_path / "a"):
            pass
        assert not table.has(0, "key")
    assert not left_over(tmp_path)
