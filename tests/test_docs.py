"""Every command in the documentation is one that exists, with the options that it shows."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from flows.__main__ import app as flows_app
from valle2.cli import app as valle2_app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"dvc", "git", "cp", "source"}
"""Programs whose own options are not ours to check."""


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.S):
            for line in block.splitlines():
                if line.startswith("$ "):
                    yield page.name, line[2:]


def parse(app: typer.Typer, name: str, words: list[str]) -> None:
    """Resolve the sub-command and parse its options, without running it."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert words[0] in commands, f"`{name}` has no command {words[0]}"
    commands[words[0]].make_context(words[0], words[1:])


def test_pages_have_commands() -> None:
    assert len(list(commands())) >= 15


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_documented_command_exists(page: str, line: str) -> None:
    words = shlex.split(line)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    match words:
        case ["make", target, *_]:
            assert target in targets, f"{page}: the Makefile has no target {target}"
        case ["valle2", *rest]:
            parse(valle2_app, "valle2", rest)
        case ["python", "-m", "flows", *rest]:
            parse(flows_app, "flows", rest)
        case ["python", "-m", module, *_]:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{page}: there is no module {module}"
        case [program, *_]:
            assert program in OTHERS, f"{page}: unknown program {program}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_fidelity_page_names_code_and_tests_that_exist() -> None:
    page = (ROOT / "docs" / "fidelity.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 25
    assert not [name for name in sorted(named) if f"def {name}(" not in tests]
    for name in sorted(set(re.findall(r"`(valle2(?:\.\w+)+)`", page))):
        module, _, attribute = name.rpartition(".")
        found = importlib.util.find_spec(name) if (ROOT / f"{name.replace('.', '/')}.py").is_file() else None
        assert found or hasattr(importlib.import_module(module), attribute), name
