"""Fixtures of the client's tests."""

import multiprocessing
import os

import pytest
from client_tools import spawn

import utils


@pytest.fixture(scope="module")
def fresh():
    """Starts processes that have imported everything already, so that a kill meets work and not
    imports."""
    context = multiprocessing.get_context("forkserver")
    monkeypatch = pytest.MonkeyPatch()
    # The server ignores sys.path
    monkeypatch.setenv("PYTHONPATH", f"{utils.ROOT}{os.pathsep}{utils.ROOT / 'tests'}")
    context.set_forkserver_preload(
        ["openai.resources.chat", "openai.types.chat", "tenacity", "tqdm", "client_tools"]
    )
    spawn(context, print).join()
    monkeypatch.undo()
    return context
