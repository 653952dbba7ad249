"""What this Colab is told to answer: the JSON file that COLAB_STAND_IN names."""

import json
import os
from pathlib import Path


def said() -> dict:
    path = os.environ.get("COLAB_STAND_IN")
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
