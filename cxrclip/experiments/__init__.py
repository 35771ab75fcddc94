"""Experiments: what is trained on what, finished runs, and the comparisons among them."""

from cxrclip.experiments.experiment import *  # noqa: F403
