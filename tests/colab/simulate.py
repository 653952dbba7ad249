"""Colab, simulated: `make colab-test`. Not a Colab, and no GPU; see below what differs.

What it does: install Colab's packages at Colab's versions (pins.txt) for Python 3.13 where there is
one; ask pip whether every choice of models can be installed beside them; and run the notebooks in
an empty folder, from the clone in their second cell on: the free path to the end of all three
(preprocess on one machine, train and evaluation on another, the run going over as a zip), and the
paid path up to its first paid request, which a server of our own gets. What it does not do:
Google's kernel and page (stand_in/ answers for them), a GPU, the hub.

    python -m tests.colab.simulate                      build what is missing, then all of it
    python -m tests.colab.simulate choices|paid|free    one of the three
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests.colab.refresh import PINS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COLAB = ROOT / ".venv" / "colab"
CLONED_FROM = "https://github.com/OWNER/instruction-tuning-from-scratch"
SMOKE = {"PROFILE": "smoke"}


# --- the machine ----------------------------------------------------------------------------------


def python_313() -> str:
    """A Python 3.13 if this machine has one (on the path, from pyenv or uv), else the one that runs
    this, which is said."""
    pyenv = sorted(Path("~/.pyenv/versions").expanduser().glob("3.13*/bin/python"))
    uv = sorted(Path("~/.local/share/uv/python").expanduser().glob("cpython-3.13*/bin/python"))
    for candidate in ("python3.13", *map(str, pyenv + uv)):
        try:
            subprocess.run([candidate, "-c", ""], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    print(
        f"There is no Python 3.13 here, which Colab has, so this is Python "
        f"{sys.version.split()[0]}: `uv python install 3.13` or `pyenv install 3.13` brings one."
    )
    return sys.executable


def build() -> None:
    """Colab's packages in `.venv/colab`, once for each list of pins: 6 GB, torch with CUDA."""
    done = COLAB / "pins.txt"
    if done.exists() and done.read_bytes() == PINS.read_bytes():
        return
    python = python_313()
    print(f"building {COLAB} with {python}", flush=True)
    subprocess.run([python, "-m", "venv", str(COLAB)], check=True)
    pip = [str(COLAB / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    torch = next(line for line in PINS.read_text().splitlines() if line.startswith("torch=="))
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--no-deps", "-r", str(PINS)], check=True)
    shutil.copy(PINS, done)


class Machine:
    """A fresh one: Colab's packages, an empty folder in the place of /content, and nothing else.

    The packages are hard links to those of `build`, so what a notebook installs or removes here
    leaves the others as they were.
    """

    def __init__(self, folder: Path, told: dict) -> None:
        self.content, self.packages = folder / "content", folder / "packages"
        self.told = folder / "told.json"
        self.content.mkdir(parents=True)
        shutil.copytree(COLAB, self.packages, symlinks=True, copy_function=os.link)
        self.tell(told)
        ipython = folder / "ipython" / "profile_default"
        ipython.mkdir(parents=True)
        (ipython / "ipython_kernel_config.py").write_text(
            "c.InteractiveShellApp.exec_lines = ['import google.colab']\n", encoding="utf-8"
        )
        git = folder / "gitconfig"  # the address in the notebook leads to this working tree
        git.write_text(f'[url "file://{ROOT}"]\n  insteadOf = {CLONED_FROM}\n', encoding="utf-8")
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.environment = {
            **kept,
            **pip,
            "HOME": str(folder),
            "IPYTHONDIR": str(folder / "ipython"),
            "PYTHONPATH": str(HERE / "stand_in"),
            "COLAB_STAND_IN": str(self.told),
            "GIT_CONFIG_GLOBAL": str(git),
            "HF_HUB_OFFLINE": "1",  # there is no hub here
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        }

    @property
    def python(self) -> str:
        return str(self.packages / "bin" / "python")

    def tell(self, told: dict) -> None:
        """What the stand-in for google.colab answers from now on."""
        self.told.write_text(json.dumps(told), encoding="utf-8")

    def run(self, name: str, form: dict[str, str], log: Path) -> str:
        """Run a notebook of the course; returns what was seen, which is in `log` too."""
        print(f"=== {name}.ipynb {form} -> {log}", flush=True)
        values = [f"{key}={value}" for key, value in form.items()]
        command = [self.python, str(HERE / "execute.py"), str(ROOT / f"{name}.ipynb"), *values]
        with log.open("w", encoding="utf-8") as file:
            subprocess.run(
                command,
                cwd=self.content,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        seen = log.read_text(encoding="utf-8")
        print(seen.strip().splitlines()[-1], flush=True)
        return seen

    def conflicts(self) -> set[str]:
        """What `pip check` says is broken."""
        done = subprocess.run(
            [self.python, "-m", "pip", "check"], capture_output=True, encoding="utf-8"
        )
        return set(done.stdout.splitlines())


# --- what can be installed beside Colab's packages ------------------------------------------------

PLAN = """
import bootstrap, settings, utils
utils.gpu_capability = lambda: 8.9  # as on an L4, where most is installed
for base_model in ("gemma-3-270m", "google/gemma-2b-it"):
    for teacher in ("rehearsal", "gpt-4o"):
        form = {"BASE_MODEL": base_model, "TEACHER": teacher, "JUDGE": teacher}
        plan = bootstrap._plan(bootstrap.install_command(settings.resolve(form).requirements))
        names = ("transformers", "huggingface-hub", "kernels", "torch")
        print(base_model, teacher, {name: plan[name] for name in names if name in plan})
        assert "torch" not in plan
"""


def choices(work: Path) -> None:
    """Every choice of models resolves to versions that pip can have, with Colab's torch. (A GPU
    that takes kernels, and a student that needs a newer transformers, once asked for two versions
    of huggingface_hub.)"""
    command = [str(COLAB / "bin" / "python"), "-c", PLAN]
    environment = os.environ | {"OPENAI_API_KEY": "sk-simulated"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


# --- the two paths --------------------------------------------------------------------------------


def free(work: Path) -> None:
    """Without a key: every notebook to its end, the run handed over as a zip."""
    downloads = work / "downloads"
    first = Machine(work / "first", {"downloads": str(downloads)})
    before = first.conflicts()
    seen = first.run("preprocess", SMOKE, work / "preprocess.log")
    assert "=== ran to its end" in seen and "All checks passed." in seen
    new = first.conflicts() - before
    print(f"packages of Colab's that no longer fit: {sorted(new) or 'none'}")
    second = Machine(
        work / "second",
        {"downloads": str(downloads), "upload": str(downloads / "default.zip")},
    )
    seen = second.run("train", SMOKE | {"RUN_ZIP": "upload"}, work / "train.log")
    assert "was unpacked from" in seen and "upgrading torchao" in seen
    assert "=== ran to its end" in seen and "All checks passed." in seen
    seen = second.run("evaluation", SMOKE, work / "evaluation.log")
    assert "=== ran to its end" in seen and "All checks passed." in seen


def paid(work: Path) -> None:
    """With keys: the packages of that path, and one request for gpt-4o, which gets a 401."""
    asked: list[tuple[str, dict]] = []

    class Endpoint(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["content-length"])
            asked.append((self.headers["authorization"], json.loads(self.rfile.read(length))))
            body = json.dumps({"error": {"message": "no", "code": "invalid_api_key"}}).encode()
            self.send_response(401)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    secrets = {"OPENAI_API_KEY": " sk-simulated\n", "HF_TOKEN": "hf_simulated"}
    secrets["OPENAI_BASE_URL"] = f"http://127.0.0.1:{server.server_port}/v1"
    machine = Machine(work / "paid", {"secrets": secrets})
    machine.environment["COURSE_BASE_MODEL"] = "google/gemma-2b-it"  # no stand-in is installed
    machine.environment["COURSE_JUDGE"] = "gpt-4o"
    before = machine.conflicts()
    seen = machine.run("preprocess", SMOKE | {"TEACHER": "gpt-4o"}, work / "paid.log")
    print(
        f"packages of Colab's that no longer fit: {sorted(machine.conflicts() - before) or 'none'}"
    )
    server.shutdown()
    assert asked, "no request reached the endpoint"
    key, body = asked[0]
    assert key == "Bearer sk-simulated" and body["model"] == "gpt-4o", (key, body["model"])
    assert "=== stopped: " in seen and "(401)" in seen and "sk-simulated" not in seen
    print(f"{len(asked)} request(s) for {body['model']}, refused with 401, and the cell said so")


def main() -> int:
    wanted = sys.argv[1:] or ["choices", "paid", "free"]
    build()
    version = subprocess.run(
        [str(COLAB / "bin" / "python"), "--version"], capture_output=True, encoding="utf-8"
    )
    print(
        f"Colab's packages on {version.stdout.strip()}; no real Colab, no GPU, no hub", flush=True
    )
    # Beside the packages, for hard links do not cross file systems
    work = Path(tempfile.mkdtemp(prefix="simulated-", dir=COLAB.resolve().parent))
    try:
        for name in wanted:
            {"choices": choices, "paid": paid, "free": free}[name](work)
    finally:
        logs = ROOT / ".cache" / "colab-test"
        logs.mkdir(parents=True, exist_ok=True)
        for log in work.glob("*.log"):
            shutil.copy(log, logs)
        shutil.rmtree(work, ignore_errors=True)
    print(f"All of it ran. What was seen is in {logs}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
