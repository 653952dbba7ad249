"""A conversation with what was trained, in the terminal or in a cell, token by token.

    python -m training.talk --run default      (or `make chat`; after a question: Enter)

    /tuned /base /both    who answers; both stand side by side
    /system TEXT          a system message from now on
    /reset                forget the conversation, /quit or an empty line ends it

What it does: render the conversation in the chat template of the training, write the most likely
token again and again, and stop where the training taught the model to stop. What it does not do:
remember anything on disk, or sample.
"""

from __future__ import annotations

import argparse
import contextlib
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import settings
import utils
from training import adapter, chat, export, machine, student
from utils import CourseError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WHO = ("tuned", "base")
WIDTH = 96  # characters of a line where two answers stand side by side


@dataclass
class Talk:
    """A model that can be talked to, and what was said so far. Each of the two voices remembers its
    own answers, as in the evaluation."""

    model: PreTrainedModel  # with an adapter on it, or merged
    tokenizer: PreTrainedTokenizerBase
    stops: list[int]  # the tokens that end an answer
    tokens: int = 300  # of an answer, at most
    speakers: tuple[str, ...] = ("tuned",)
    system: str = ""
    said: dict[str, list[dict]] = field(default_factory=lambda: {name: [] for name in WHO})

    @property
    def has_base(self) -> bool:
        """True if the adapter can be switched off, so that the base model answers."""
        return hasattr(self.model, "disable_adapter")

    def reset(self) -> None:
        self.said = {name: [] for name in WHO}

    def ask(self, text: str, who: str) -> Iterator[str]:
        """The answer to `text` in the conversation so far, piece by piece; it is remembered when
        the last piece is read or the reader stops."""
        asked = [*self.said[who], {"role": "user", "content": text}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        answer = ""
        try:
            for piece in self._pieces(system + asked, adapter=who == "tuned"):
                answer += piece
                yield piece
        finally:
            if answer.strip():
                turn = {"role": "assistant", "content": answer.strip()}
                self.said[who] = [*asked, turn]

    def _pieces(self, messages: list[dict], adapter: bool) -> Iterator[str]:
        """Greedy decoding: the most likely token, until it is one that ends the answer."""
        import torch

        prompt = chat.chat_prompt(messages, self.tokenizer)
        read = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        longest = self.model.config.get_text_config().max_position_embeddings
        if read.shape[1] + self.tokens > longest:
            raise CourseError(
                f"The conversation has {read.shape[1]} tokens and the model reads {longest}: "
                "/reset it."
            )
        read = read.to(self.model.device)
        written: list[int] = []
        shown, cache = "", None
        off = contextlib.nullcontext() if adapter else self.model.disable_adapter()
        with torch.inference_mode(), off:
            while len(written) < self.tokens:
                output = self.model(input_ids=read, past_key_values=cache, use_cache=True)
                token = int(output.logits[0, -1].argmax())
                if token in self.stops:
                    return
                written.append(token)
                cache = output.past_key_values
                read = torch.tensor([[token]], device=self.model.device)
                text = self.tokenizer.decode(written, skip_special_tokens=True)
                if text.endswith("\ufffd"):  # a character of which only some bytes are there
                    continue
                yield text[len(shown) :]
                shown = text


# --- a conversation -------------------------------------------------------------------------------


def converse(talk: Talk, recorded: Sequence[str] = (), read: Callable[[str], str] = input) -> None:
    """Read questions and print answers until an empty line, /quit or the end of the input.

    Args:
        recorded: what is asked instead where nobody can type, as in a notebook that runs headless.
        read: asks for one line; for tests.
    """
    lines = iter(recorded)
    headless = False
    while True:
        try:
            line = next(lines, "") if headless else read("> ")
        except EOFError:
            break
        except KeyboardInterrupt:
            print()
            continue
        except Exception as error:
            if type(error).__name__ != "StdinNotImplementedError":  # of Jupyter: nobody is there
                raise
            headless = True
            continue
        if not line.strip() or line.strip() == "/quit":
            break
        if headless:
            print(f"> {line}")
        try:
            if line.startswith("/"):
                print(command(talk, line.strip()))
            else:
                answer(talk, line.strip())
        except CourseError as error:
            print(error)


def command(talk: Talk, line: str) -> str:
    """Do what a line with a slash says, and say what was done."""
    name, _, rest = line.partition(" ")
    speakers = {"/tuned": ("tuned",), "/base": ("base",), "/both": ("base", "tuned")}
    if name in speakers:
        if not talk.has_base and "base" in speakers[name]:
            return "This model is merged, so there is no base model beside it: leave out --merged."
        talk.speakers = speakers[name]
        return f"{' and '.join(talk.speakers)} from now on"
    if name == "/reset":
        talk.reset()
        return "a new conversation"
    if name == "/system":
        before, talk.system = talk.system, rest.strip()
        try:
            probe = [{"role": "system", "content": talk.system}, {"role": "user", "content": "?"}]
            chat.chat_prompt(probe if talk.system else probe[1:], talk.tokenizer)
        except CourseError:
            talk.system = before
            return "The chat template of this model has no place for a system message."
        talk.reset()
        return f"system: {talk.system or 'none'}; a new conversation"
    return "/tuned, /base, /both, /system TEXT, /reset, /quit"


def answer(talk: Talk, text: str) -> None:
    """Print the answer as it comes, or two answers side by side; Ctrl-C cuts an answer short."""
    columns = []
    for who in talk.speakers:
        whole = ""
        with contextlib.suppress(KeyboardInterrupt):
            for piece in talk.ask(text, who):
                whole += piece
                if len(talk.speakers) == 1:
                    print(piece, end="", flush=True)
        columns.append(whole.strip())
    if len(talk.speakers) == 1:
        print("\n")
    else:
        titles = [utils.translated(name) for name in talk.speakers]
        print(side_by_side(columns, titles, WIDTH), "\n", sep="")


def side_by_side(texts: list[str], titles: list[str], width: int) -> str:
    """Texts in columns; a Hangul syllable is as wide as two Latin letters."""
    each = width // len(texts) - 2
    columns = []
    for title, text in zip(titles, texts, strict=True):
        lines = [title, "-" * len(title)]
        for paragraph in text.splitlines():
            lines += _wrapped(paragraph, each)
        columns.append(lines)
    rows = []
    for number in range(max(len(lines) for lines in columns)):
        cells = [lines[number] if number < len(lines) else "" for lines in columns]
        padded = [cell + " " * (each - _width(cell)) for cell in cells]
        rows.append("  ".join(padded).rstrip())
    return "\n".join(rows)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines at most `width` wide, broken between words; a longer word is broken too."""
    lines = [""]
    for word in textwrap.wrap(text, max(1, width // 2), break_on_hyphens=False) or [""]:
        for part in word.split(" "):
            joined = f"{lines[-1]} {part}" if lines[-1] else part
            if _width(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(part)
    return lines


# --- loading --------------------------------------------------------------------------------------


def load(run: str, merged: bool = False, tokens: int = 300, save_to: str = "") -> Talk:
    """What a run has trained: its adapter on the base model that it was trained on, or its merged
    weights; the course's example where the run has none."""
    chosen = settings.resolve({"RUN": run, "SAVE_TO": save_to})
    chat.hold_date(chosen.date)
    if merged:
        folder = chosen.folder / "merged"
        if not (folder / "config.json").exists():
            raise CourseError(
                f"There is no {utils.short(folder)}: run train.ipynb with MERGE = 'on', or leave "
                "out --merged."
            )
        model, tokenizer = student.load_base(str(folder), machine.choose_device())
        return Talk(model.eval(), tokenizer, export.stop_ids(folder), tokens)
    folder = adapter.adapter_folder(chosen)
    record = utils.read_json(folder / "training.json")
    base = record.get("base_model", chosen.base_model)
    model, tokenizer = student.load_base(base, machine.choose_device())
    stops = record.get("stop_ids") or chat.choose_stop(model, tokenizer).ids
    return Talk(adapter.load_adapter(model, folder), tokenizer, stops, tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.talk", description="Talk with what a run has trained."
    )
    settings.add_run_options(parser)
    parser.add_argument("--merged", action="store_true", help="its merged weights (MERGE = 'on')")
    parser.add_argument("--tokens", type=int, default=300, help="of an answer at most")
    chosen = parser.parse_args(arguments)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (lines can be edited, and earlier ones fetched)
    talk = load(chosen.run, chosen.merged, chosen.tokens, chosen.save_to)
    print(f"{Path(str(talk.model.config.name_or_path)).name}: ask, or /both, /system, /reset")
    converse(talk)


if __name__ == "__main__":
    utils.run_command(main)
