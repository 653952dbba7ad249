"""From an empty machine to a running course: what the second cell of every notebook does, and
`python run.py --setup`.

What it does: install on Colab and Kaggle what the chosen path needs; try out what is installed by
using it, and mend what other packages there break; keep `runs/` where it outlives the machine, or
hand a run on as a zip. What it does not do: choose anything (settings.py does), or install on a
machine of one's own unless it is asked to. Importing it needs the standard library only.

    python -m bootstrap                try out the libraries that are installed here
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import settings
import utils
from llm import models
from settings import Settings
from training import chat
from utils import CourseError

LENT = ("colab", "kaggle")  # machines that come with packages of their own, and forget everything
RESTART = "choose 'Restart session' in the menu, then run this cell again"
# Packages whose next major version would break others that these machines come with: gradio and
# diffusers want huggingface_hub below 2, and the course works with both
SAME_MAJOR = ("huggingface_hub",)
NEEDED = ("requirements.txt", "requirements/student.txt", "requirements/rehearsal.txt")
LEFT_OUT = ("checkpoints", "wandb", "merged")  # of a run's zip: large, and no notebook reads them
UNPACKED = ".unpacked.json"  # in a run's folder: which zip was unpacked there

# Packages that were replaced while this session had the old version loaded
_stale: set[str] = set()


def start(chosen: Settings) -> None:
    """Everything between the form and the first lesson: install, mount, unpack, start the stand-in,
    and print what was chosen.

    Raises:
        CourseError: something could not be had; or a package was replaced while it was loaded, so
            that the session has to be restarted.
    """
    if utils.where() == "kaggle":
        # It lends two GPUs, between which the trainer would split every batch
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if utils.where() in LENT:
        install(chosen.requirements)
        mend()
    mount(chosen)
    unpack(chosen)
    if chosen.rehearsal:
        from rehearsal import stand_ins  # a real model never meets this line

        chosen.rehearsal_url = stand_ins.start()
    import pages  # needs packages that are installed by now

    utils.figure_style()
    utils.print_to_reader()
    pages.translate_tables()
    utils.seed_everything(chosen.seed)
    chat.hold_date(chosen.date)
    print(chosen)
    print(f"{'found':<11} {found(chosen.folder)}")
    models.warn_of_retirement(chosen.speakers)


# --- installing -----------------------------------------------------------------------------------


def install_command(requirements: list[str]) -> list[str]:
    """The pip command for a lent machine: ranges that its packages satisfy where they can, and
    nothing replaced that others there depend on.

    torch is pinned to what is installed, which is how pip is kept from replacing it and with it
    CUDA. `requirements` are pip's arguments, as `Settings.requirements` gives them.
    """
    kept = _same_torch()
    for name in SAME_MAJOR:
        if installed := _version(name):
            kept.append(f"{name}<{int(installed.split('.')[0]) + 1}")
    return [*_pip("install"), *requirements, *kept]


def install(requirements: list[str]) -> None:
    """Install what is missing, saying what and how long it takes.

    Raises:
        CourseError: pip failed; or a package was replaced that this session had loaded, now or the
            last time that this ran in it.
    """
    command = install_command(requirements)
    planned = _plan(command)
    if planned:
        heavy = any("gguf" in name for name in planned)
        print(
            f"Installing {', '.join(f'{name} {version}' for name, version in planned.items())}: "
            f"{'about a minute' if heavy else 'about 15 seconds'} on Colab ...",
            flush=True,
        )
        loaded = _loaded(planned)
        _run_pip(command, len(planned))
        importlib.invalidate_caches()
        _stale.update(loaded)
    if _stale:
        raise CourseError(
            f"{', '.join(sorted(_stale))} had been loaded in this session before the new version "
            f"was installed, and the two do not mix: {RESTART}. Nothing is installed again then."
        )


def _same_torch() -> list[str]:
    installed = _version("torch")
    return [f"torch=={installed}"] if installed else []


def _version(name: str) -> str | None:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def _plan(command: list[str]) -> dict[str, str]:
    """What pip would install: `{name: version}`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [*command, "--quiet", "--dry-run", "--report", str(report)],
            capture_output=True,
            encoding="utf-8",
        )
        if done.returncode:
            raise CourseError(_install_failed(done.stderr))
        packages = [item["metadata"] for item in utils.read_json(report)["install"]]
    return {_normal(package["name"]): package["version"] for package in packages}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _loaded(planned: dict[str, str]) -> set[str]:
    """The packages of a plan that are installed in another version and already imported here."""
    loaded = set()
    for module, packages in importlib.metadata.packages_distributions().items():
        if module in sys.modules:
            loaded |= {_normal(package) for package in packages}
    return loaded & set(planned)


def _run_pip(command: list[str], packages: int) -> None:
    """Run pip with a bar of the packages that it has collected."""
    from tqdm import tqdm

    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", errors="replace"
        ) as pip,
        tqdm(total=packages, desc="installing", file=sys.stderr, leave=False, ncols=80) as bar,
    ):
        assert pip.stdout is not None  # it is a pipe
        for line in pip.stdout:
            if line.startswith(("Collecting", "Installing collected")):
                bar.update(min(1, packages - bar.n))
        pip.wait()
        errors.seek(0)
        said = errors.read()
    if pip.returncode:
        raise CourseError(_install_failed(said))


def _install_failed(said: str) -> str:
    lines = [line for line in said.strip().splitlines() if not line.startswith("WARNING")]
    reason = (lines or ["no message"])[-1]
    return f"Installing the requirements failed ({reason[:300]}): {RESTART}, with Internet on."


# --- trying out what is installed -----------------------------------------------------------------


def mend() -> None:
    """Try the libraries out in a process of their own, once for each set of versions, and mend what
    breaks them.

    A package that the course does not even use can break one that it does: PEFT refuses to work
    beside an old torchao, which Colab comes with. So what an error names is upgraded, and if that
    does not help, removed, unless the course needs it.

    Raises:
        CourseError: the libraries do not work together here, with the error.
    """
    marker = utils.CACHE / "tried_out.json"
    if utils.read_json(marker).get("versions") == _all_versions():
        return
    print("Trying the libraries out, once on this machine ...", flush=True)
    problem = _tried_out()
    culprit = problem and named_in(problem)
    steps = [
        ("upgrading", _pip("install", "--quiet", "--upgrade", str(culprit), *_same_torch())),
        ("removing", _pip("uninstall", "--quiet", "--yes", str(culprit))),
    ]
    for what, command in steps if culprit else ():
        print(f"{problem}: {what} {culprit}, which the course does not use ...", flush=True)
        subprocess.run(command, capture_output=True)
        problem = _tried_out()
        if not problem:
            break
    if problem:
        raise CourseError(
            f"The libraries that are installed here do not work together ({problem}): {RESTART}; "
            "if it stays so, install the versions of constraints.txt (not torch) and open an issue."
        )
    utils.write_json(marker, {"versions": _all_versions()})


def _all_versions() -> str:
    """A fingerprint of all that is installed."""
    packages = importlib.metadata.distributions()
    return utils.fingerprint(sorted(f"{package.name} {package.version}" for package in packages))


def named_in(problem: str) -> str | None:
    """The installed package that an error is about, if it is none that the course needs."""
    needed = set()
    for file in NEEDED:
        text = (utils.ROOT / file).read_text(encoding="utf-8")
        needed |= {_normal(name) for name in re.findall(r"^[\w.-]+", text, re.MULTILINE)}
    for word in re.findall(r"[A-Za-z][\w.-]*\w", problem):
        if _version(word) and _normal(word) not in needed:
            return word
    return None


def _tried_out() -> str | None:
    """What goes wrong when the libraries are used, in one line; None if all works."""
    code = "import bootstrap; bootstrap.try_out()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ
        | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"},
    )
    lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
    return lines[-1][:300] if done.returncode else None


def try_out() -> None:
    """Use every library in the way that the notebooks do, on a model of a few thousand numbers:
    encode with a tokenizer, build a LoRA, save and load it, generate a token, train a step.

    Raises:
        Exception: whatever the library raises that does not work here.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import GemmaConfig, GemmaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = _tiny_tokenizer()
    asked = [{"role": "user", "content": "안녕 hi"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
    assert ids["input_ids"][:2] == [1, 2], "the chat template's special tokens are split"
    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    base = GemmaForCausalLM(config).eval()
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"input_ids": [1, 2, 5, 6], "labels": [-100, 2, 5, 6]}] * 2
        trainer = SFTTrainer(
            model=get_peft_model(base, lora),
            args=SFTConfig(
                output_dir=folder,
                max_steps=1,
                use_cpu=True,
                bf16=False,
                padding_free=True,
                max_length=None,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.train()
        trainer.save_model(folder)
        loaded = PeftModel.from_pretrained(GemmaForCausalLM(config).eval(), folder)
    start_of_text = torch.tensor([[1, 2]])
    answer = loaded.generate(
        input_ids=start_of_text,
        attention_mask=torch.ones_like(start_of_text),
        max_new_tokens=1,
        do_sample=False,
        pad_token_id=0,
    )
    assert answer.shape[-1] == 3, "no token was generated"


def _tiny_tokenizer():
    """A tokenizer of single characters with the marks of a chat template."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<turn>", "<eos>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *"abcdefghi안녕 "])}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<turn>"],
    )
    tokenizer.chat_template = "<bos>{% for m in messages %}<turn>{{ m['content'] }}{% endfor %}"
    return tokenizer


# --- where a run is kept --------------------------------------------------------------------------


def found(folder: Path) -> str:
    """What a run's folder holds for the notebook that starts now, and what to do where that is
    nothing: one line."""
    from llm.journal import Journal  # needs what has been installed by now

    held = []
    if (folder / "requests.jsonl").exists():
        journal = Journal(folder / "requests.jsonl")
        replies = sum("reply" in entry for entry in journal.entries.values())
        paid = sum(record.get("cost_usd", 0.0) for record in journal.records)
        held.append(f"requests.jsonl ({replies:,} replies, ${paid:.2f} paid)")
    if (folder / "instruction.jsonl").exists():
        rows = utils.read_jsonl(folder / "instruction.jsonl")
        held.append(f"instruction.jsonl ({len(rows):,} rows)")
    if trained := utils.read_json(folder / "adapter" / "training.json"):
        held.append(f"adapter/ (trained on {trained['base_model']})")
    held += [name for name in ("answers.jsonl", "verdicts.jsonl") if (folder / name).exists()]
    if not held:
        return "nothing of this run yet; if it began on another machine, set SAVE_TO or RUN_ZIP"
    return f"{', '.join(held)}; this run goes on from there, and nothing is asked or paid for twice"


def mount(chosen: Settings) -> None:
    """Mount Google Drive, with the reader's consent, where SAVE_TO asks for it; again, if it has
    gone away.

    Raises:
        CourseError: it was not allowed, or did not work.
    """
    on_drive = chosen.runs.is_relative_to(settings.DRIVE)
    if not on_drive or utils.where() != "colab":
        return
    from google.colab import drive

    try:
        drive.mount(str(settings.DRIVE))
        if not os.access(settings.DRIVE / "MyDrive", os.W_OK):  # it took a dead one for mounted
            drive.mount(str(settings.DRIVE), force_remount=True)
    except Exception as error:  # of several kinds, and none of them is public
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise CourseError(
            f"Google Drive was not mounted ({reason}): allow it when Colab asks (in Colab's own "
            "page: elsewhere, as in VS Code, nobody may ask), or leave SAVE_TO empty."
        ) from None


def hand_over(chosen: Settings) -> None:
    """On Colab, and where nothing else outlives the machine: offer the run as one zip to download,
    for RUN_ZIP of the next notebook."""
    if utils.where() != "colab" or chosen.save_to:
        return
    from google.colab import files

    path = pack(chosen.folder)
    print(
        f"{path} holds this run. This machine forgets it: your browser now offers it for download "
        "(if not, find it in the Files panel), and in the next notebook set RUN_ZIP to 'upload'."
    )
    files.download(str(path))


def pack(folder: Path) -> Path:
    """Write what a run's folder holds into a zip beside it, without what is large and of no use to
    another notebook; returns its path."""
    path = folder.with_name(f"{folder.name}.zip")
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    with (
        utils.atomic(path, "wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for source in files:
            inside = source.relative_to(folder)
            if inside.parts[0] not in LEFT_OUT and not source.name.startswith("."):
                packed.write(source, inside.as_posix())
    return path


def unpack(chosen: Settings) -> None:
    """Unpack the zip that RUN_ZIP names into the run's folder, once, and never over a file
    that differs.

    Raises:
        CourseError: no such file, not a zip of a run, or it would write over another file.
    """
    if not chosen.run_zip:
        return
    path = Path(chosen.run_zip).expanduser()
    if chosen.run_zip == "upload":
        if any(chosen.folder.iterdir()):
            print(f"{utils.short(chosen.folder)}/ has files already, so nothing is uploaded")
            return
        path = _uploaded()
    if not zipfile.is_zipfile(path):
        raise CourseError(
            f"RUN_ZIP is {str(path)!r}, which is no zip file: give the path of the zip that the "
            "notebook before this one made."
        )
    digest = utils.file_hash(path)
    if utils.read_json(chosen.folder / UNPACKED).get("zip") == digest:
        return
    _unpack(path, chosen.folder)
    utils.write_json(chosen.folder / UNPACKED, {"zip": digest})
    print(f"{utils.short(chosen.folder)}/ was unpacked from {path.name}")


def _uploaded() -> Path:
    from google.colab import files

    chosen = files.upload()
    if not chosen:
        raise CourseError(
            "No file was chosen: run this cell again, or leave RUN_ZIP empty. Where no button "
            "appears, as in VS Code, upload the zip in the Files panel and give its path."
        )
    path = utils.CACHE / "uploaded.zip"
    with utils.atomic(path, "wb") as file:
        file.write(next(iter(chosen.values())))
    return path


def _unpack(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as packed:
        entries = [entry for entry in packed.infolist() if not entry.is_dir()]
        for entry in entries:
            target = folder / entry.filename
            if not target.resolve().is_relative_to(folder.resolve()):
                raise CourseError(
                    f"{path.name} holds {entry.filename!r}, which lies outside of a run's folder, "
                    "so it is no zip that a notebook made: nothing was unpacked."
                )
            if target.exists() and target.read_bytes() != packed.read(entry):
                raise CourseError(
                    f"{utils.short(target)} exists and is not the one in {path.name}: set another "
                    "RUN, into whose folder the zip then goes (nothing was written)."
                )
        for entry in entries:
            with utils.atomic(folder / entry.filename, "wb") as file:
                file.write(packed.read(entry))


# --- a machine of one's own -----------------------------------------------------------------------


def setup() -> Path:
    """Make `.venv` with the exact versions of constraints.txt, as every target of make needs it;
    returns its Python. Needs no package, and may be called again at any time.

    Raises:
        CourseError: the environment cannot be made, or pip failed.
    """
    folder = utils.ROOT / ".venv"
    inside = Path("Scripts", "python.exe") if os.name == "nt" else Path("bin", "python")
    python = folder / inside
    print(
        "Installing into .venv what the course needs: some minutes the first time ...", flush=True
    )
    if Path(sys.prefix) != folder:  # Windows cannot replace the Python that runs this
        _run_or_stop(
            [sys.executable, "-m", "venv", str(folder)],
            f"{utils.short(folder)} could not be made (Python says why above): on Debian and "
            "Ubuntu install python3-venv first, then try again.",
        )
    constraints = str(utils.ROOT / "constraints.txt")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["-c", constraints]
    if sys.platform == "linux" and not utils.nvidia_driver():
        _cpu_torch(python, pip)
    for file in (*NEEDED, "requirements/dev.txt"):
        pip += ["-r", str(utils.ROOT / file)]
    _run_or_stop(
        pip,
        "Installing failed (pip says why above): check the network and try again. If it finds no "
        "torch: PyTorch is made for Linux, for Windows on x86-64, and for macOS 14 or newer on "
        "Apple silicon.",
    )
    (folder / ".ready").touch()  # make looks at it
    return python


def _run_or_stop(command: list[str], otherwise: str) -> None:
    if subprocess.run(command).returncode:
        raise CourseError(otherwise)


def _cpu_torch(python: Path, pip: list[str]) -> None:
    """PyTorch without the CUDA libraries that the usual one brings on Linux, which a machine
    without an NVIDIA driver never uses. uv knows where PyTorch keeps that build; where it cannot be
    reached, the usual one is installed afterwards."""
    pins = (utils.ROOT / "constraints.txt").read_text(encoding="utf-8")
    torch = re.findall("^torch==.*", pins, re.MULTILINE)
    uv = [str(python), "-m", "uv", "pip", "install", "--quiet", "--python", str(python)]
    for command in ([*pip, "uv"], [*uv, "--no-deps", "--torch-backend", "cpu", *torch]):
        done = subprocess.run(
            command,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"UV_HTTP_TIMEOUT": "20", "UV_HTTP_RETRIES": "1"},
        )
        if done.returncode:
            print(
                "PyTorch's CPU build cannot be reached from here, so pip takes the usual one, "
                "which may bring 2.6 GB of CUDA libraries more."
            )
            return


if __name__ == "__main__":
    try_out()
    print(json.dumps({"all of it works": True}))
