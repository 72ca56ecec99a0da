"""Which metrics of an evaluation can choose a run's best checkpoint, and which way is better."""

from rlhfv_jax.checkpoint import BEST

# The last part of a benchmark's metric: eval/NAME/.../PART.
HIGHER = frozenset(
    (
        *("accuracy", "accuracy_plus", "precision", "recall", "f1", "mean_f1", "score", "cover", "amber_score"),
        *("perception", "cognition"),
        *("obj_rec", "correct_rate", "object_correct_rate"),
    )
)
LOWER = frozenset(
    (
        *("resp", "mention", "CHAIRs", "CHAIRs_refine", "CHAIRi", "chair", "hal", "cog"),
        *("h_a", "h_s", "mean_delta", "cut", "empty"),
    )
)


def higher_is_better(metric: str) -> bool | None:
    """Of a metric as metrics.jsonl names it; None where more of it is neither better nor worse, or not known to be.

    >>> higher_is_better("eval/pope/mean_f1"), higher_is_better("eval/object_halbench/resp")
    (True, False)
    """
    if metric in BEST:
        return BEST[metric]
    part = metric.rsplit("/", 1)[-1]
    return part in HIGHER if part in HIGHER | LOWER else None
