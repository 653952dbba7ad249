"""Comparing two models: the judge, what its verdicts amount to, and how far to believe it
(evaluation.ipynb)."""
