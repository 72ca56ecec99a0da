"""The paper in miniature: a drawn world whose ground truth is exact, and an oracle in the annotators' place."""
