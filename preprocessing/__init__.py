"""Making the data set: asking a teacher for tasks, filtering them, and checking what is left
(preprocess.ipynb)."""
