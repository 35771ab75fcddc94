"""The committed results are of one version, that of the code beside them, or are marked as older."""

from __future__ import annotations

import pytest

from cxrclip.book import render
from cxrclip.errors import InputError
from cxrclip.experiments import cache
from cxrclip.results import rows as results_rows

STATUS = '{{"versions": "{}", "stale": {}, "reason": "test"}}'


def test_the_committed_results_are_of_one_version_and_marked_if_it_is_an_older_one():
    render.check_standard(results_rows.read_results(render.ROOT / render.RESULTS), render.status(render.ROOT))


@pytest.mark.parametrize(("versions", "stale", "fault"), [
    (["training=0", "training=1"], "true", "more than one version"),
    (["training=0", "training=0"], "false", "not of this code"),
    ([cache.versions_text()] * 2, "true", "stale"),
    (["training=2", "training=2"], "true", "status.json says"),
])
def test_mixed_unmarked_and_wrongly_marked_results_are_refused(tmp_path, versions, stale, fault):
    frame = results_rows.read_results(render.ROOT / render.RESULTS / "sizes.csv").head(2).assign(versions=versions)
    said = "training=0" if versions[0] == "training=2" else versions[0]
    path = tmp_path / render.RESULTS / "status.json"
    path.parent.mkdir(parents=True)
    path.write_text(STATUS.format(said, stale))
    with pytest.raises(InputError, match=fault):
        render.check_standard(frame, render.status(tmp_path))
