"""Programs that draw the pages' figures and put measured numbers into the pages: `python -m
assets.<name>`."""
