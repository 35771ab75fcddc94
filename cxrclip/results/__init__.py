"""Results: tidy rows, statistics, tables, figures and verdicts. The notebooks take the names below from here."""

from cxrclip.results.rows import (
    ABOUT,
    CLASSIFICATION_SETS,
    COLUMNS,
    FAMILY,
    LABELS,
    RETRIEVAL_SETS,
    STATUS,
    merge_results,
    published,
    write_results,
)
from cxrclip.results.statistics import (
    auroc_rows,
    ceiling_rows,
    mean_auroc_rows,
    over_seeds,
    retrieval_rows,
    rsum_rows,
    size_rows,
    with_sums,
)

__all__ = ["ABOUT", "CLASSIFICATION_SETS", "COLUMNS", "FAMILY", "LABELS", "RETRIEVAL_SETS", "STATUS", "auroc_rows",
           "ceiling_rows", "mean_auroc_rows", "merge_results", "over_seeds", "published", "retrieval_rows", "rsum_rows",
           "size_rows", "with_sums", "write_results"]
