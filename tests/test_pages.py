"""README, guide and licence: links that work, commands that exist."""

import re

import pytest

import utils

PAGES = sorted(path.name for path in (utils.ROOT).glob("*.md"))


@pytest.mark.parametrize("name", PAGES)
def test_links_to_files_exist(name):
    for target in re.findall(r"\]\(([^)#:]+)\)", (utils.ROOT / name).read_text(encoding="utf-8")):
        assert (utils.ROOT / target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", (utils.ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", (utils.ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)) <= targets


def test_options_of_run_py_in_the_readme_exist():
    import run

    text = (utils.ROOT / "README.md").read_text()
    source = (utils.ROOT / "run.py").read_text()
    for option in set(re.findall(r" (--[a-z-]+)", text)):
        assert f'"{option}"' in source or option.removeprefix("--") in run.OPTIONS, option


def test_the_map_names_every_module():
    text = (utils.ROOT / "README.md").read_text()
    assert all(f"`{path.name}`" in text for path in utils.ROOT.glob("*.py"))


def test_both_readmes_have_the_same_commands_links_and_sections():
    """A translation that is not kept up leads its readers into commands that are gone."""
    pages = [(utils.ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md")]
    commands, links, headings, files = (
        [found(page) for page in pages]
        for found in (
            lambda page: [
                re.sub(r"\s*#.*", "", line) for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()
            ],
            lambda page: sorted(set(re.findall(r"\]\(([^)]+)\)", page)) - {"README.md", "README.ko.md"}),
            lambda page: len(re.findall(r"^## ", page, re.MULTILINE)),
            lambda page: sorted(set(re.findall(r"`([\w/]+\.(?:py|ipynb|md|jsonl))`", page))),
        )
    )
    assert commands[0] == commands[1] and links[0] == links[1] and headings[0] == headings[1] and files[0] == files[1]


def test_no_number_is_left_open():
    assert not any(re.search(r"@[A-Z]{2,}", (utils.ROOT / name).read_text(encoding="utf-8")) for name in PAGES)


def test_licence_notes_models_and_data():
    text = (utils.ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License") and "Gemma" in text and "data/" in text


@pytest.mark.parametrize("module", sorted(path.stem for path in utils.ROOT.glob("*.py")))
def test_public_names_have_docstrings(module):
    import importlib
    import inspect

    loaded = importlib.import_module(module)
    assert loaded.__doc__
    for name, value in vars(loaded).items():
        if inspect.isfunction(value) and value.__module__ == module and not name.startswith("_") and name != "main":
            assert value.__doc__ or len(inspect.getsource(value).splitlines()) <= 8, f"{module}.{name}"


def test_lessons_do_not_import_one_another():
    """Imports run downwards only, and nothing but run.py and the notebooks meets rehearsal.py other than over HTTP."""
    lessons = {"self_instruct", "sft", "judge"}
    for path in utils.ROOT.glob("*.py"):
        imported = set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE))
        assert path.stem not in lessons or not imported & lessons, path.name
        assert "rehearsal" not in imported, path.name
        if path.stem == "prompts":
            assert not imported
        if path.stem in ("utils", "llm", "similarity"):
            assert not imported & (lessons | {"run"}), path.name


PACKAGES = {"sklearn": "scikit-learn", "PIL": "matplotlib", "rouge_score": "rouge-score"}
COMES_WITH = {"nbformat": "nbclient", "huggingface_hub": "transformers", "safetensors": "transformers"}  # a requirement needs them itself
OPTIONAL = {"google", "flash_attn", "kernels", "bitsandbytes", "vllm"}  # only where the machine has them, with a sentence where not


def imported() -> dict[str, set[str]]:
    """The packages that each module and notebook imports."""
    import ast
    import json

    found = {}
    for path in utils.ROOT.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        found[path.name] = {name.split(".")[0] for name in names}
    for path in utils.ROOT.glob("*.ipynb"):  # by line, because cells hold shell commands too
        cells = [cell["source"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        found[path.name] = set(re.findall(r"^\s*(?:import|from) (\w+)", "\n".join("".join(cell) for cell in cells), re.MULTILINE))
    return found


def test_every_import_is_covered_by_a_requirement():
    """A module that works here because something else happened to install it fails on a fresh machine."""
    import sys

    lines = [line for path in utils.ROOT.glob("requirements*.txt") for line in path.read_text().splitlines()]
    required = {re.split(r"[\[><=!;~ ]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    own = {path.stem for path in utils.ROOT.glob("*.py")} | {"benchmarks"}
    for name, modules in imported().items():
        for module in modules - own - OPTIONAL - set(sys.stdlib_module_names):
            package = COMES_WITH.get(module, PACKAGES.get(module, module.replace("_", "-")))
            assert package.lower() in required, f"{name} imports {module}, which no requirements file names"


@pytest.mark.parametrize("path", sorted([*utils.ROOT.glob("*.ipynb"), *utils.ROOT.glob("*.md"), *(utils.ROOT / "data").glob("*.jsonl")]))
def test_no_key_is_in_the_repository(path):
    assert not re.search(r"\b(sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{20,})\b", path.read_text(encoding="utf-8"))
