"""The key panel: a value, or one of three exceptions."""

from google.colab.told import said


class NotebookAccessError(Exception):
    pass


class SecretNotFoundError(Exception):
    pass


class TimeoutException(Exception):
    pass


def get(key: str) -> str:
    told = said()
    if told.get("silent"):  # as in VS Code; the real one waits ten seconds first
        raise TimeoutException(f"Requesting secret {key} timed out.")
    if key in told.get("refused", ()):
        raise NotebookAccessError(f"Notebook does not have access to secret {key}")
    if key not in told.get("secrets", {}):
        raise SecretNotFoundError(f"Secret {key} does not exist.")
    return told["secrets"][key]
