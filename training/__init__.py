"""Tuning the base model: machine, chat template, label mask, loss, adapter, answers
(train.ipynb)."""
