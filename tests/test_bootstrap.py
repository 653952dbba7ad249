"""From an empty machine to a running course: each test is named after what went wrong on Colab.

No real Colab: tests/colab/stand_in answers for its page. `make colab-test` runs the notebooks with
Colab's packages at Colab's versions.
"""

import json
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest

import bootstrap
import settings
import utils

BOOTSTRAP_CELL = next(
    cell.source
    for cell in nbformat.read(utils.ROOT / "train.ipynb", as_version=4).cells
    if "bootstrap.start(S)" in cell.source
)


# --- installing


def test_stand_ins_are_installed_only_where_chosen_and_torch_is_kept(course, colab, monkeypatch):
    colab(secrets={"OPENAI_API_KEY": "sk-x", "HF_TOKEN": "hf_x"})
    monkeypatch.setattr(utils, "has_gpu", lambda: True)
    paid = bootstrap.install_command(settings.resolve({}).requirements)
    stand_ins = {"TEACHER": "rehearsal", "JUDGE": "rehearsal"}
    free = bootstrap.install_command(settings.resolve(stand_ins).requirements)
    assert not any("rehearsal" in part for part in paid)
    assert any(part.endswith("rehearsal.txt") for part in free)
    assert not any(part.endswith("student.txt") for part in free), "gemma-2b-it is from the hub"
    for command in (paid, free):
        assert f"torch=={version('torch')}" in command
        assert not any("constraints" in part for part in command)


def test_others_on_the_machine_keep_their_huggingface_hub(monkeypatch):
    """huggingface_hub 2 broke Colab's gradio and diffusers, and the course needs no 2."""
    versions = {"torch": "2.11.0+cu128", "huggingface-hub": "1.27.0", "huggingface_hub": "1.27.0"}
    monkeypatch.setattr(bootstrap.importlib.metadata, "version", versions.__getitem__)
    command = bootstrap.install_command(["-r", "requirements.txt"])
    assert command[-2:] == ["torch==2.11.0+cu128", "huggingface_hub<2"]


def test_kernels_is_installed_in_the_version_that_transformers_takes(course, monkeypatch):
    """`pip install kernels` brings one that transformers refuses, and load_base failed raw."""
    for capability, wanted in ((8.9, True), (7.5, False), (0.0, False)):
        monkeypatch.setattr(utils, "gpu_capability", lambda capability=capability: capability)
        own = settings.resolve({"BASE_MODEL": "google/gemma-2b-it"})
        assert ("transformers[kernels]" in own.requirements) is wanted
        # The packaged student's transformers takes a kernels that wants huggingface_hub 2
        assert "transformers[kernels]" not in settings.resolve({}).requirements


@pytest.mark.parametrize(
    ("said", "capability"), [("8.9\n8.9\n", 8.9), ("7.5\n", 7.5), ("", 0.0), ("[N/A]\n", 0.0)]
)
def test_capability_is_what_the_driver_says(monkeypatch, said, capability):
    monkeypatch.setattr(utils, "_nvidia_smi", lambda *arguments: said)
    assert utils.gpu_capability() == capability


@pytest.fixture
def no_pip(monkeypatch):
    """Nothing is installed; `planned` is what pip would do."""
    planned: dict[str, str] = {}
    runs: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "_plan", lambda command: dict(planned))
    monkeypatch.setattr(bootstrap, "_run_pip", lambda command, packages: runs.append(command))
    monkeypatch.setattr(bootstrap, "_stale", set())
    return planned, runs


def test_nothing_to_install_is_nothing_said(no_pip, capsys):
    bootstrap.install([])
    assert not no_pip[1] and not capsys.readouterr().out


def test_what_is_installed_is_said_before(no_pip, capsys):
    no_pip[0].update({"trl": "1.16.0", "rapidfuzz-x": "3.14.6"})
    sys.modules.pop("trl", None)
    bootstrap.install([])
    assert "Installing trl 1.16.0, rapidfuzz-x 3.14.6: about 15 seconds" in capsys.readouterr().out


def test_a_package_replaced_under_a_running_session_asks_for_a_restart(no_pip):
    """BASE_MODEL changed in a live kernel: transformers 5.24 over a loaded 5.15, and then `cannot
    import name 'resolve_revision'`. Running the cell again must not hide it."""
    import pytest as loaded  # noqa: F401 (any package that this process has loaded)

    planned, runs = no_pip
    planned["pytest"] = "99"
    with pytest.raises(utils.CourseError, match=r"^pytest had been loaded.*'Restart session'"):
        bootstrap.install([])
    assert len(runs) == 1
    planned.clear()
    with pytest.raises(utils.CourseError, match="Restart session"):
        bootstrap.install([])


def test_a_plan_is_what_pip_would_change():
    """pip itself, without a network: what is here satisfies the first, and nothing the second."""
    assert bootstrap._plan(bootstrap._pip("install", "pytest>=1")) == {}
    with pytest.raises(utils.CourseError, match=r"^Installing the requirements failed \(.*"):
        bootstrap._plan(bootstrap._pip("install", "--no-index", "no-such-package-of-ours"))


def test_a_failed_install_is_one_sentence():
    command = bootstrap._pip("install", "--no-index", "no-such-package-of-ours")
    with pytest.raises(
        utils.CourseError, match="No matching distribution found for no-such-package-of-ours"
    ):
        bootstrap._run_pip(command, 1)


# --- trying out what is installed

TORCHAO = (
    "ImportError: Found an incompatible version of torchao. Found version 0.10.0, but only "
    "versions above 0.16.0 are supported"
)


def test_the_libraries_do_here_what_the_notebooks_ask_of_them(capsys):
    """Encode, build a LoRA, train a step, save, load, generate: version drift fails here, by
    behaviour."""
    bootstrap.try_out()


def test_an_old_torchao_breaks_it_and_the_error_is_one_line(tmp_path, monkeypatch):
    """A package that the course does not use, as Colab comes with it."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    (tmp_path / "torchao-0.10.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert bootstrap._tried_out() == TORCHAO
    monkeypatch.syspath_prepend(tmp_path)
    assert bootstrap.named_in(TORCHAO) == "torchao"


def test_only_what_the_course_does_not_need_is_taken_for_the_culprit():
    assert bootstrap.named_in("ImportError: torch and transformers and peft do not agree") is None
    assert bootstrap.named_in("ImportError: cannot import name 'x' from 'ruff'") == "ruff"


@pytest.fixture
def machine(course, monkeypatch):
    """A machine whose libraries fail `problems` in turn; returns the pip commands that were run."""
    (course / "requirements").mkdir()
    for file in bootstrap.NEEDED:
        (course / file).write_text("torch\npeft>=0.20\n", encoding="utf-8")
    monkeypatch.setattr(utils, "CACHE", course / "cache")
    monkeypatch.setattr(bootstrap, "_version", lambda name: {"torchao": "0.10.0"}.get(name))
    commands = []
    monkeypatch.setattr(
        bootstrap.subprocess, "run", lambda command, **options: commands.append(command[4:])
    )

    def fails(*problems):
        left = list(problems)
        monkeypatch.setattr(bootstrap, "_tried_out", lambda: left.pop(0) if left else None)
        return commands

    return fails


def test_what_breaks_the_libraries_is_upgraded_then_removed(machine, capsys):
    commands = machine(TORCHAO, TORCHAO)
    bootstrap.mend()
    assert [command[0] for command in commands] == ["install", "uninstall"]
    assert "--upgrade" in commands[0] and commands[1][-1] == "torchao"
    assert "upgrading torchao, which the course does not use" in capsys.readouterr().out
    machine("it must not be tried out again while no version changes")
    bootstrap.mend()


def test_what_cannot_be_mended_is_one_sentence(machine):
    commands = machine("AttributeError: peft has no attribute 'x'")
    with pytest.raises(utils.CourseError, match="do not work together.*constraints.txt"):
        bootstrap.mend()
    assert not commands


# --- the bootstrap cell


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A repository under the notebook's own address, one under a fork's, and an empty folder to
    start in: `start(notebook="", kaggle=False)` runs the cell there, up to its first import of the
    course."""
    code = BOOTSTRAP_CELL.partition("import bootstrap")[0]
    git = tmp_path / "gitconfig"
    sections = []
    for account in ("OWNER", "a-fork"):
        folder = tmp_path / account
        folder.mkdir()
        (folder / "utils.py").write_text(f"account = {account!r}\n", encoding="utf-8")
        commit(folder, "-c", "init.defaultBranch=main", "init", "--quiet")
        commit(folder, "add", "-A")
        commit(folder, "commit", "--quiet", "-m", "first")
        address = f"https://github.com/{account}/instruction-tuning-from-scratch"
        sections.append(f'[url "file://{folder}"]\n  insteadOf = {address}\n')
    git.write_text("".join(sections), encoding="utf-8")
    content = tmp_path / "content"
    content.mkdir()
    told = tmp_path / "colab.json"

    def start(notebook: str = "", kaggle: bool = False) -> subprocess.CompletedProcess:
        told.write_text(json.dumps({"notebook": notebook}), encoding="utf-8")
        program = (
            "from IPython.testing.globalipapp import start_ipython\n"
            f"{'' if kaggle else 'import google.colab'}\n"
            f"done = start_ipython().run_cell({code!r} + 'import utils; print(utils.account)')\n"
        )
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=content,
            capture_output=True,
            encoding="utf-8",
            env={
                **({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"} if kaggle else {}),
                "PATH": "/usr/bin:/bin",
                "HOME": str(tmp_path),
                "PYTHONPATH": str(Path(__file__).parent / "colab" / "stand_in"),
                "COLAB_STAND_IN": str(told),
                "GIT_CONFIG_GLOBAL": str(git),
                "https_proxy": "http://127.0.0.1:9",  # no test may reach the real one
            },
        )

    return start, tmp_path, git


def commit(folder: Path, *arguments: str) -> None:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *name, *arguments], cwd=folder, check=True)


def test_the_first_start_clones_and_the_second_brings_up_to_date(published):
    """After 'Restart session' the folder was there: "destination path already exists"."""
    start, folder, git = published
    assert start().stdout == "OWNER\n"
    # Of another length: in the same second and length Python would take its cached utils for it
    (folder / "OWNER" / "utils.py").write_text("account = 'another'\n", encoding="utf-8")
    commit(folder / "OWNER", "commit", "--quiet", "-a", "-m", "second")
    assert start().stdout == "another\n"
    git.write_text("", encoding="utf-8")  # now the network is gone
    done = start()
    assert "fatal: unable to access" in done.stdout and done.stdout.endswith("another\n")


def test_a_fork_that_is_opened_by_its_own_badge_clones_the_fork(published):
    start, _, _ = published
    address = "https://colab.research.google.com/github/a-fork/instruction-tuning-from-scratch"
    assert start(f"[![Open in Colab](x.svg)]({address}/blob/main/train.ipynb)").stdout == "a-fork\n"


def test_the_same_cell_fetches_the_course_on_kaggle(published):
    """It has no google.colab, and the guide had another cell for it."""
    assert published[0](kaggle=True).stdout.strip() == "OWNER"


def test_a_failed_clone_is_one_sentence(published):
    """OWNER is not replaced, or there is no network."""
    start, _, git = published
    git.write_text("", encoding="utf-8")
    done = start()
    shown = (done.stdout + done.stderr).strip()  # git's own line comes before
    assert "Traceback" not in shown
    assert shown.endswith(
        "Stopped: no course at https://github.com/OWNER/instruction-tuning-from-scratch: check the "
        "network, and the account in it."
    )


# --- Colab, simulated


def test_pins_are_renewed_from_a_published_list():
    from tests.colab import refresh

    old = (
        "# What Colab came with\n# Published 2026-08-19\npeft==0.20.0\nscikit-learn==1.6.1\nx==1\n"
    )
    published = "scikit_learn==1.7.0\ntorch==2.12.0+cu128\npeft==0.21.0\na @ file:///a.tar.gz\n"
    text, gone = refresh.refreshed(old, published, "2026-12-01")
    assert text.splitlines()[1:] == [
        "# Published 2026-12-01",
        "peft==0.21.0",
        "scikit-learn==1.7.0",
    ]
    assert gone == ["x"] and refresh.pins(published)["torch"] == "2.12.0"


def test_pins_hold_what_the_course_and_its_culprits_need():
    from tests.colab import refresh

    pins = refresh.pins(refresh.PINS.read_text(encoding="utf-8"))
    for name in ("torch", "transformers", "peft", "torchao", "datasets", "gradio", "diffusers"):
        assert name in pins


# --- where a run is kept


def test_drive_is_mounted_where_save_to_asks_for_it(course, colab, monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "DRIVE", tmp_path / "drive")
    monkeypatch.setattr(settings, "RUNS_ON_DRIVE", tmp_path / "drive" / "MyDrive" / "runs")
    colab(drive=False)
    with pytest.raises(
        utils.CourseError, match="Google Drive was not mounted.*leave SAVE_TO empty"
    ):
        bootstrap.mount(settings.resolve({"SAVE_TO": "drive"}))
    bootstrap.mount(settings.resolve({}))  # nothing is asked
    colab(drive=True)
    chosen = settings.resolve({"SAVE_TO": str(tmp_path / "drive" / "MyDrive" / "course")})
    bootstrap.mount(chosen)
    assert (tmp_path / "drive" / "MyDrive").is_dir()
    bootstrap.hand_over(chosen)
    assert not list(chosen.runs.glob("*.zip")), "what lies on Drive needs no zip"


def test_a_drive_that_went_away_is_mounted_by_force(course, colab, monkeypatch, tmp_path):
    """Colab takes a dead one for mounted; and below an unmounted one nothing may be made, for it
    would be lost with the machine."""
    from google.colab import drive

    monkeypatch.setattr(settings, "DRIVE", tmp_path / "drive")
    colab(drive=True)
    chosen = settings.resolve({"SAVE_TO": str(tmp_path / "drive" / "MyDrive" / "course")})
    with pytest.raises(utils.CourseError, match="The drive that holds .* went away"):
        _ = chosen.folder
    assert not (tmp_path / "drive").exists()
    calls, real = [], drive.mount

    def dead_at_first(mountpoint, force_remount=False):
        calls.append(force_remount)
        if force_remount:
            real(mountpoint)

    monkeypatch.setattr(drive, "mount", dead_at_first)
    bootstrap.mount(chosen)
    assert calls == [False, True] and chosen.folder.is_dir()


def test_every_notebook_says_what_it_found(course):
    """Where its input came from, and what to do if it came from nowhere."""
    chosen = settings.resolve({})
    assert "nothing of this run yet" in bootstrap.found(chosen.folder)
    assert "set SAVE_TO or RUN_ZIP" in bootstrap.found(chosen.folder)
    entries = [
        {"key": "a", "lost_usd": 0.5},
        {"key": "a", "reply": {}, "cost_usd": 0.25},
        {"key": "b", "reply": {}, "cost_usd": 1},
        {"key": "c", "lost_usd": 0.5},
    ]
    utils.write_jsonl(chosen.folder / "requests.jsonl", entries)
    utils.write_jsonl(chosen.folder / "instruction.jsonl", [{"output": "한국어"}] * 3)
    (chosen.folder / "adapter").mkdir()
    utils.write_json(chosen.folder / "adapter" / "training.json", {"base_model": "a/b"})
    assert bootstrap.found(chosen.folder).startswith(
        "requests.jsonl (2 replies, $1.25 paid), instruction.jsonl (3 rows), "
        "adapter/ (trained on a/b); this run goes on from there"
    )


def a_run(folder: Path) -> None:
    for name in ("instruction.jsonl", "adapter/weights", "checkpoints/1/large", "wandb/log"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("한국어 " + name, encoding="utf-8")


def test_a_run_goes_to_another_machine_as_a_zip(course, colab, tmp_path, capsys):
    downloads = tmp_path / "downloads"
    colab(downloads=str(downloads), upload=str(downloads / "first.zip"))
    first = settings.resolve({"RUN": "first"})
    a_run(first.folder)
    bootstrap.hand_over(first)
    assert "set RUN_ZIP to 'upload'" in capsys.readouterr().out
    second = settings.resolve({"RUN": "second", "RUN_ZIP": "upload"})
    bootstrap.unpack(second)
    found = {path.relative_to(second.folder).as_posix() for path in second.folder.rglob("*")}
    assert found == {bootstrap.UNPACKED, "instruction.jsonl", "adapter", "adapter/weights"}
    assert (second.folder / "instruction.jsonl").read_text(encoding="utf-8").startswith("한국어")
    bootstrap.unpack(second)
    assert "has files already, so nothing is uploaded" in capsys.readouterr().out


def test_a_zip_never_writes_over_another_file_and_is_unpacked_once(course, tmp_path):
    a_run(tmp_path / "elsewhere")
    path = bootstrap.pack(tmp_path / "elsewhere")
    chosen = settings.resolve({"RUN_ZIP": str(path)})
    bootstrap.unpack(chosen)
    rows = chosen.folder / "instruction.jsonl"
    rows.write_text("gone on from there", encoding="utf-8")
    bootstrap.unpack(chosen)
    assert rows.read_text(encoding="utf-8") == "gone on from there"
    (chosen.folder / bootstrap.UNPACKED).unlink()
    (chosen.folder / "adapter" / "weights").unlink()
    with pytest.raises(utils.CourseError, match=r"instruction.jsonl exists and is not the one in"):
        bootstrap.unpack(chosen)
    assert not (chosen.folder / "adapter" / "weights").exists(), "all or nothing"


def test_a_zip_that_is_none_or_leads_outside_is_refused(course, tmp_path):
    for content in (None, b"no zip"):
        path = tmp_path / "x.zip"
        if content:
            path.write_bytes(content)
        with pytest.raises(utils.CourseError, match="which is no zip file"):
            bootstrap.unpack(settings.resolve({"RUN_ZIP": str(path)}))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("../../outside.py", "x")
    with pytest.raises(utils.CourseError, match="outside of a run's folder"):
        bootstrap.unpack(settings.resolve({"RUN_ZIP": str(path)}))
    assert not list(tmp_path.rglob("outside.py"))


# --- a machine of one's own


@pytest.fixture
def asked(course, monkeypatch):
    """The commands of a set-up that runs none; those whose words hold one of `failing` fail."""
    commands: list[str] = []
    failing: list[str] = []

    def run(command, **options):
        commands.append(" ".join(str(part) for part in command))
        (course / ".venv").mkdir(exist_ok=True)
        fails = any(word in commands[-1] for word in failing)
        return subprocess.CompletedProcess(command, int(fails))

    for file in ("constraints.txt", *bootstrap.NEEDED):
        (course / file).parent.mkdir(exist_ok=True)
        (course / file).write_text("torch==2.13.0\n", encoding="utf-8")
    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    monkeypatch.setattr(bootstrap.sys, "platform", "linux")
    monkeypatch.setattr(utils, "nvidia_driver", lambda: False)
    return commands, failing


def test_without_a_driver_the_cpu_build_comes_first(asked, course):
    commands, _ = asked
    python = bootstrap.setup()
    assert python.is_relative_to(course / ".venv") and (course / ".venv" / ".ready").exists()
    venv, uv, torch, everything = commands
    assert "-m venv" in venv and uv.endswith("uv")
    assert "--torch-backend cpu" in torch and torch.endswith("torch==2.13.0")
    assert everything.count("-r ") == 4 and "constraints.txt" in everything


def test_where_it_cannot_be_had_a_sentence_says_so_and_pip_goes_on(asked, capsys):
    commands, failing = asked
    failing.append("--torch-backend")
    bootstrap.setup()
    assert "PyTorch's CPU build cannot be reached from here" in capsys.readouterr().out
    assert "requirements.txt" in commands[-1]


def test_with_a_driver_or_elsewhere_torch_is_the_usual_one(asked, monkeypatch):
    commands, _ = asked
    monkeypatch.setattr(utils, "nvidia_driver", lambda: True)
    bootstrap.setup()
    monkeypatch.setattr(utils, "nvidia_driver", lambda: False)
    monkeypatch.setattr(bootstrap.sys, "platform", "win32")
    bootstrap.setup()
    assert not any("uv" in command.split() for command in commands) and len(commands) == 4


def test_a_failed_setup_says_what_to_do_and_may_be_called_again(asked, course):
    """Debian's Python has no venv, Intel Macs have no torch; a half-made folder must not stay the
    reason of the next failure."""
    commands, failing = asked
    failing.append("-m venv")
    with pytest.raises(utils.CourseError, match="install python3-venv"):
        bootstrap.setup()
    failing[:] = ["requirements/dev.txt"]
    with pytest.raises(utils.CourseError, match="macOS 14 or newer on Apple silicon"):
        bootstrap.setup()
    assert not (course / ".venv" / ".ready").exists()
    failing.clear()
    bootstrap.setup()
    assert sum("-m venv" in command for command in commands) == 3


def test_setup_needs_no_package_and_says_which_python_is_too_old():
    """It failed in every fresh clone: `No module named 'regex'`, which it had yet to install."""
    bare = ["-S", "-I"]  # without site-packages
    code = f"import sys; sys.path.insert(0, {str(utils.ROOT)!r})\n{{}}import run; run.setup"
    subprocess.run([sys.executable, *bare, "-c", code.format("")], check=True)
    older = "sys.version_info = (3, 10); sys.version = '3.10.13 (main)'\n"
    done = subprocess.run(
        [sys.executable, *bare, "-c", code.format(older)], capture_output=True, encoding="utf-8"
    )
    assert done.stderr.startswith("This course needs Python 3.11 or newer, and this is 3.10.13")


def test_make_sets_up_by_the_same_command():
    makefile = (utils.ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile[makefile.index("\n$(VENV)/.ready:") :].splitlines()
    assert recipe[2] == "\t$(PYTHON) run.py --setup"
    rules = re.findall(r"^([^\s:#]+):", makefile, re.MULTILINE)
    needed = set(re.findall(r"\$\(VENV\)/\S*\.ready", makefile))
    assert needed <= set(rules), "a target waits for what nothing makes"


def test_a_simulation_without_colabs_python_says_so(monkeypatch, capsys):
    from tests.colab import simulate

    def absent(*arguments, **options):
        raise OSError("no such program")

    monkeypatch.setattr(simulate.subprocess, "run", absent)
    assert simulate.python_313() == sys.executable
    assert "There is no Python 3.13 here, which Colab has" in capsys.readouterr().out
