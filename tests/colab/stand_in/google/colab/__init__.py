"""A stand-in for the package that every Colab kernel has loaded: only what the course calls, and
only what Colab answers. Not Google's code; its behaviour was read in googlecolab/colabtools.

What it says is in the JSON file that COLAB_STAND_IN names:
`{"secrets": {name: value}, "refused": [name], "silent": bool, "notebook": text, "drive": bool,
"upload": path, "downloads": folder}`.
"""

from google.colab import _message, drive, files, userdata

__all__ = ["_message", "drive", "files", "userdata"]
