"""Measured tables are read back as numbers, so that no page types them again."""

import pytest

from cxrclip.book.render import benchmark
from cxrclip.errors import InputError

TABLE = """# Benchmarks

| batch | other |
| --- | --- |
| 1 | 2 |

| batch | CPU ms | error | MiB | error |
| --- | --- | --- | --- | --- |
| 1,024 | 253 (213 to 264) | -2% | 36 | +19% |
"""


def test_cells_become_numbers(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "results.md").write_text(TABLE)
    (row,) = benchmark(["batch", "CPU ms"], tmp_path).to_dict("records")
    assert row == {"batch": 1024, "CPU ms": 253, "CPU ms low": 213, "CPU ms high": 264, "CPU ms, error": -0.02,
                   "MiB": 36, "MiB, error": pytest.approx(0.19)}
    with pytest.raises(InputError, match="no table with the columns studies"):
        benchmark(["studies"], tmp_path)


def test_the_committed_tables_are_found():
    assert len(benchmark(["batch", "tokens"])) == 9
    assert len(benchmark(["studies"])) == 3


def test_what_page_15_says_of_the_measured_growth():
    step = benchmark(["batch", "tokens"])
    ms = step.pivot(index="tokens", columns="batch", values="CPU ms a step")
    for batch in (24, 48):
        assert (ms[2 * batch] / ms[batch]).between(1.6, 2).all(), "twice the batch"
    longer = ms.loc[80] / ms.loc[20]
    assert 1.35 < longer.min() <= longer.max() < 1.65, "four times the text takes about half as long again"
    assert (1 / (1 + step["MiB at its highest, model's error"])).max() < 1.6, "plan for 60 % more"
    studies = benchmark(["studies"])
    assert studies["CPU ms a batch of 48"].max() < 1.1 * studies["CPU ms a batch of 48"].min(), "no slower"
