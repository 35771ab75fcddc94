"""Experiments: what is trained on what, finished runs, and the comparisons among them."""

from cxrclip.experiments.experiment import *  # noqa: F403
from cxrclip.experiments.schedule import finished_run, missing_runs, run_all  # noqa: F401
