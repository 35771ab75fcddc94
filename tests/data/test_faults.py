"""End to end, in processes of their own: each fault of the input is one clear line, and nothing is half-written."""

import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from cxrclip.data.images import encode_gray
from cxrclip.data.shards import write_studies
from cxrclip.studies import open_studies

PREPARE = """
    import sys
    from cxrclip.errors import InputError
    from cxrclip.data.sources import SOURCES

    try:
        SOURCES["table"]("films", "out/t", file="t.csv", image="file", patient="who", labels="label", progress=False)
    except InputError as error:
        sys.exit(str(error))
"""

OPEN = """
    import sys
    from cxrclip.errors import InputError
    from cxrclip.studies import open_studies

    try:
        open_studies("whole")
    except InputError as error:
        sys.exit(str(error))
"""
FULL = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""


@pytest.fixture
def release(tmp_path):
    """Forty films and their table, prepared from the folder above."""
    (tmp_path / "films").mkdir()
    rows = ["file,label,who"]
    for i in range(40):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64), dtype=np.uint8)
        (tmp_path / "films" / f"{i}.png").write_bytes(encode_gray(noise, "png"))
        rows.append(f"{i}.png,Edema,p{i}")
    (tmp_path / "films" / "t.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def run(folder, code=PREPARE, before=""):
    """Run code in a new process in `folder`: exit code and what it printed."""
    script = textwrap.dedent(before) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


def one_line(folder, message, **options):
    """The run fails with one line that matches, and leaves nothing of the output folder behind."""
    code, said = run(folder, **options)
    assert code != 0
    assert re.search(message, said), said
    assert said.count("\n") == 1
    assert not (folder / "out" / "t").exists()
    assert not (folder / "out").is_dir() or list((folder / "out").iterdir()) == []


def test_too_many_bad_films(release):
    for i, data in enumerate([b"", b"no film", (release / "films" / "9.png").read_bytes()[:99]]):
        (release / "films" / f"{i}.png").write_bytes(data)
    one_line(release, r"3 of 40 rows are unusable.*t\.csv, row 1, column image: 0\.png: .*empty.*; .*row 3")


def test_a_missing_column(release):
    table = release / "films" / "t.csv"
    table.write_text(table.read_text().replace("label", "etiquette", 1))
    one_line(release, r"t\.csv: no column 'label'; its columns are 'file', 'etiquette', 'who'")


def test_a_full_disk(release):
    """A limit on the size of any file stands for the full disk: the same error, from the system itself."""
    one_line(release, r"out/t: cannot be written \(.*\): free space or choose another folder", before=FULL)


def test_a_full_disk_while_the_table_is_opened(release):
    noise = encode_gray(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8), "png")
    image = {"bytes": noise, "path": None}
    row = {"study_id": "a", "patient_id": "a", "source": "x", "split": "train", "images": [image], "views": ["PA"]}
    folder = write_studies([row], release / "whole")
    code, said = run(release, OPEN, before=FULL)
    assert code != 0
    assert re.fullmatch(r"whole: cannot be opened \(.*\); free disk space or prepare it again\n", said), said
    assert open_studies(folder)[0]["images"][0]["bytes"] == noise


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder(release):
    (release / "out").mkdir()
    (release / "out").chmod(0o555)
    one_line(release, r"out/t: cannot be written \(Permission denied\)")


def test_a_killed_process_leaves_no_folder_and_the_next_run_is_whole(release):
    before = """
        import os
        from cxrclip.data import shards
        shards.replace_folder = lambda *_: os._exit(9)
    """
    assert run(release, before=before) == (9, "")
    assert not (release / "out" / "t").exists()
    assert run(release) == (0, "")
    assert (release / "out" / "t" / "dataset.json").is_file()
