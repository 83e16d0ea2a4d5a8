"""The documentation agrees with the program: a page per verb, no dead links, no option that is not there."""

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import itertools
import re
import typing
from pathlib import Path

import pytest

from fewer.cli import VERBS, main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXT = {path: path.read_text() for path in [*PAGES, ROOT / "README.md"]}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_page(verb: str) -> None:
    assert any(f"fewer {verb}" in text for path, text in TEXT.items() if path.parent.name == "docs")
    assert re.search(rf"^fewer {verb}\b", TEXT[ROOT / "README.md"], re.MULTILINE), "one example a verb"


@pytest.mark.parametrize("path", TEXT, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", TEXT[path])
    dead = [
        t
        for t in targets
        if "://" not in t and not t.startswith("mailto:") and not (path.parent / t).exists()
    ]
    assert dead == []


def shown_commands() -> list[tuple[str, str]]:
    found = set()
    for text in TEXT.values():
        for block in re.findall(r"```(?:sh|bash|console)?\n(.*?)```", text, flags=re.DOTALL):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                words = re.sub(r"^\$ ", "", line.split("#")[0].strip()).split()
                if words[:1] != ["fewer"]:
                    continue
                verb = next((v for v in (" ".join(words[1:3]), " ".join(words[1:2])) if v in VERBS), None)
                if verb:
                    found |= {(verb, word.split("=")[0]) for word in words if re.match(r"--[a-z]", word)}
    return sorted(found)


@functools.cache
def help_of(verb: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main([*verb.split(), "--help"]) == 0
    return shown.getvalue()


def undescribed(cls: type) -> list[str]:
    """Fields of a request, of what it inherits, and of the options within, that no text follows."""
    found: list[str] = []
    hints = typing.get_type_hints(cls)
    for part in [part for part in cls.__mro__ if dataclasses.is_dataclass(part)]:
        (body,) = (
            node.body for node in ast.parse(inspect.getsource(part)).body if isinstance(node, ast.ClassDef)
        )
        for node, after in itertools.pairwise([*body, ast.Pass()]):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name = node.target.id
            if dataclasses.is_dataclass(hints[name]):
                found += undescribed(hints[name])
            elif not isinstance(after, ast.Expr):
                found.append(f"{part.__name__}.{name}")
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_help_describes_every_option(verb: str) -> None:
    place = VERBS[verb]
    assert undescribed(getattr(importlib.import_module(place.module), place.request)) == []


def test_every_option_shown_exists() -> None:
    unknown = [f"fewer {verb} {option}" for verb, option in shown_commands() if option not in help_of(verb)]
    assert unknown == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_that_exists_is_shown(verb: str) -> None:
    """On the verb's page, or one that tells of the verb; those of every verb stand in the index."""
    own = {verb.replace(" ", "-"), verb.split()[0]}
    pages = [text for path, text in TEXT.items() if path.stem in own or f"fewer {verb}" in text]
    pages.append(TEXT[ROOT / "docs" / "index.md"])
    options = set(re.findall(r"^  --([a-z][\w-]*)(?![\w.-])", help_of(verb), re.MULTILINE))
    assert options >= {"seed", "device", "dtype", "json", "config"}
    untold = [
        option
        for option in sorted(options)
        if not any(re.search(rf"(?<![\w-])--(no-)?{option}(?![\w-])", text) for text in pages)
    ]
    assert untold == []
