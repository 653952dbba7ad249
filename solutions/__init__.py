"""Solutions of the exercises, one file a notebook: `python -m solutions.<notebook>`."""
