"""The documentation agrees with the program: a page per verb, no dead links, no option that is not there."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from fewer.cli import VERBS, main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXT = {path: path.read_text() for path in [*PAGES, ROOT / "README.md"]}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_page(verb: str) -> None:
    assert any(f"fewer {verb}" in text for path, text in TEXT.items() if path.parent.name == "docs")


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


def test_every_option_shown_exists() -> None:
    unknown = []
    helps: dict[str, str] = {}
    for verb, option in shown_commands():
        if verb not in helps:
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown):
                assert main([*verb.split(), "--help"]) == 0
            helps[verb] = shown.getvalue()
        if option not in ("--json", "--config") and option not in helps[verb]:
            unknown.append(f"fewer {verb} {option}")
    assert unknown == []
