"""Results: tidy rows, statistics, tables, figures and verdicts."""

from cxrclip.results.rows import (
    ABOUT,
    CEILING,
    CLASSIFICATION_SETS,
    COLUMNS,
    FAMILY,
    KEY,
    KS,
    LABELS,
    NUMBERS,
    RETRIEVAL_SETS,
    SPLITS,
    STAMPS,
    STATUS,
    merge_results,
    published,
    read_results,
    tidy_frame,
    write_by_comparison,
    write_results,
)
from cxrclip.results.statistics import (
    accuracy_rows,
    auroc_rows,
    ceiling_rows,
    chance_recall,
    difference_rows,
    differences,
    mean_auroc_rows,
    over_seeds,
    retrieval_rows,
    rsum_rows,
    share_rows,
    size_rows,
    with_sums,
)

__all__ = ["ABOUT", "CEILING", "CLASSIFICATION_SETS", "COLUMNS", "FAMILY", "KEY", "KS", "LABELS", "NUMBERS",
           "RETRIEVAL_SETS", "SPLITS", "STAMPS", "STATUS", "accuracy_rows", "auroc_rows", "ceiling_rows",
           "chance_recall", "difference_rows", "differences", "mean_auroc_rows", "merge_results", "over_seeds",
           "published", "read_results", "retrieval_rows", "rsum_rows", "share_rows", "size_rows", "tidy_frame",
           "with_sums", "write_by_comparison", "write_results"]
