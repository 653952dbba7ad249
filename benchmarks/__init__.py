"""Measurements behind the figures in the pages: each is a program, `python -m benchmarks.<name>`,
with a reference beside ours."""
