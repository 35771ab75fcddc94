"""Results: tidy rows, statistics, tables, figures and verdicts."""

from cxrclip.results.rows import *  # noqa: F403
