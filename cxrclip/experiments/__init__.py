"""Experiments: what is trained on what, finished runs, and the comparisons among them."""

from cxrclip.experiments.evaluate import evaluate, prompts_of
from cxrclip.experiments.experiment import IMAGE_ENCODERS, PROFILES, Experiment
from cxrclip.experiments.schedule import run_all
from cxrclip.experiments.train import (
    batches_for,
    finished_run,
    growing_mixtures,
    model_config,
    pretrain,
    pretraining_studies,
    runnable,
    seen_studies,
    tokenizer_for,
    total_steps,
    used_studies,
)
from cxrclip.experiments.workbench import Run, Workbench

__all__ = [
    "IMAGE_ENCODERS", "PROFILES", "Experiment", "Run", "Workbench", "batches_for", "evaluate",
    "finished_run", "growing_mixtures", "model_config", "pretrain", "pretraining_studies", "prompts_of", "run_all",
    "runnable", "seen_studies", "tokenizer_for", "total_steps", "used_studies",
]
