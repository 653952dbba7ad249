"""Questions to the page; nothing comes back where there is none."""

from google.colab.told import said


def blocking_request(request_type: str, request="", timeout_sec: int = 5):
    if request_type == "get_ipynb" and "notebook" in said():
        return {"ipynb": said()["notebook"]}
    return None
