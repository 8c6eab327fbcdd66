"""What stands around the code agrees with itself: the project's home, the package's README, the release, the badges."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HOME = PYPROJECT["project"]["urls"]["Homepage"]
README = (ROOT / "README.md").read_text()
FOLDERS = ("lightning_gradwatch", "tests", "examples", "benchmarks", "docs", ".github", ".ci")
RIGHTS: dict[str, dict[str, dict[str, str]]] = {
    "ci": {},
    "audit": {},
    "coverage": {},
    "docs": {"publish": {"pages": "write", "id-token": "write"}},
    "release": {"publish": {"id-token": "write"}, "announce": {"contents": "write"}},
}
"""What the jobs of each workflow may do besides reading."""
KINDS = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cff", ".js", ".json", ".html", ""}


def texts() -> dict[str, str]:
    """Every text of the repository that we wrote, by its path."""
    paths = [p for p in ROOT.iterdir() if p.is_file()]
    paths += [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file() and "vendor" not in p.parts]
    named = {p.relative_to(ROOT).as_posix(): p for p in paths if p.suffix in KINDS and "__pycache__" not in p.parts}
    return {name: p.read_text(encoding="utf-8") for name, p in named.items()}


def of_the_index(version: str) -> str:
    """The README as it is packed, by the rules of the project's own configuration."""
    text = README
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"].replace("$HFPR_VERSION", version), text)
    return text


COLAB = "colab.research.google.com/github/"
"""Opens what lies at that address of GitHub."""


def test_the_project_has_one_home() -> None:
    addresses = {
        (name, address)
        for name, text in texts().items()
        for address in re.findall(
            r"https?://[\w.-]+/[\w.-]+/lightning-gradwatch\b(?!\.)", text.replace(COLAB, "github.com/")
        )
    }
    assert len(addresses) > 5
    assert {address for _, address in addresses} == {HOME}
    assert all(url.startswith(HOME) for url in PYPROJECT["project"]["urls"].values())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {citation["repository-code"], citation["url"]} == {HOME}


def test_the_authors_are_the_same_everywhere_and_no_person_is_invented() -> None:
    (author,) = PYPROJECT["project"]["authors"]
    assert author == {"name": "the lightning-gradwatch developers"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["authors"] == [author]
    mails = {
        (n, m) for n, text in texts().items() for m in re.findall(r"[\w.+-]+@[\w-]+\.(?!example)[a-z]{2,}\b", text)
    }
    assert {mail for _, mail in mails if not mail.endswith(("example.org", "example.com"))} == set()


def test_no_address_of_a_package_index_stands_anywhere() -> None:
    host = re.compile(r"py[p]i\.org|python[h]osted")  # which are no addresses here
    assert [name for name, text in texts().items() if host.search(text)] == []


def test_every_link_of_the_packed_readme_has_an_address_at_the_packed_version() -> None:
    links = re.findall(r"\]\(([^)]+)\)", of_the_index("1.2.3"))
    assert len(links) > 15
    assert [link for link in links if "://" not in link] == []
    into = [link.removeprefix(HOME).partition("#")[0] for link in links if "/v1.2.3/" in link]
    assert len(into) > 10
    for link in into:
        kind, path = re.fullmatch(r"/(raw|blob)/v1\.2\.3/(.+)", link).groups()  # type: ignore[union-attr]
        assert (ROOT / path).is_file()
        assert (kind == "raw") == path.endswith(".png")


def test_pictures_of_the_readme_say_in_words_what_they_show() -> None:
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+\.png)\)", README)
    assert pictures
    assert all(len(words) > 40 for words, _ in pictures)


def notes(version: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci/release_notes.py"), version]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_notes_of_a_release_are_its_section_of_the_changelog() -> None:
    shown = notes("Unreleased")
    assert shown.returncode == 0
    assert shown.stdout.startswith("### Added\n")
    assert "\n## " not in shown.stdout
    assert shown.stdout.strip() in (ROOT / "CHANGELOG.md").read_text()
    refused = notes("v97.1.0")
    assert refused.returncode == 1
    assert "CHANGELOG.md says nothing about 97.1.0" in refused.stderr


def workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / ".github/workflows" / f"{name}.yml").read_text())


def test_a_badge_tells_what_a_workflow_has_found() -> None:
    badges = re.findall(r"/actions/workflows/(\w+)\.yml/badge\.svg", README)
    assert badges == ["ci", "coverage"]
    threshold = PYPROJECT["tool"]["coverage"]["report"]["fail_under"]
    assert workflow("coverage")["name"] == f"coverage above {threshold} %"
    (job,) = workflow("coverage")["jobs"].values()
    assert any("--cov" in step.get("run", "") for step in job["steps"])


def test_every_workflow_is_looked_at() -> None:
    assert {path.stem for path in (ROOT / ".github/workflows").iterdir()} == {*RIGHTS}


@pytest.mark.parametrize("name", RIGHTS)
def test_a_workflow_may_do_no_more_than_it_must(name: str) -> None:
    content = workflow(name)
    assert content["permissions"] == {"contents": "read"}
    assert {key: job["permissions"] for key, job in content["jobs"].items() if "permissions" in job} == RIGHTS[name]


def test_the_site_is_built_for_each_request_and_published_from_the_main_branch_alone() -> None:
    content = workflow("docs")
    assert content[True] == {"push": {"branches": ["main"]}, "pull_request": None}  # `on` is true in YAML
    build, publish = content["jobs"]["build"], content["jobs"]["publish"]
    assert "mkdocs build" in [step.get("run") for step in build["steps"]]
    assert (publish["needs"], publish["if"]) == ("build", "github.event_name == 'push'")
    installed = next(step["run"] for step in build["steps"] if "pip install" in step.get("run", ""))
    docs = PYPROJECT["project"]["optional-dependencies"]["docs"]
    assert installed.split()[4:] == [re.split("[<>=]", requirement)[0] for requirement in docs]


def test_a_release_waits_for_its_own_tests_and_stores_no_password() -> None:
    jobs = workflow("release")["jobs"]
    assert jobs["publish"]["needs"] == "build"
    assert any(step.get("run") == ".ci/package dist all" for step in jobs["build"]["steps"])
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()
