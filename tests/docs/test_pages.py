"""The documentation is run: every command, every Python block and every YAML file of its pages.

Blocks of a page are run in order, in one folder; ``text`` blocks are not run. Trainings are cut to one epoch,
and commands run in this process on the session's Ray. ``docs/cluster.md`` has ``tests/cluster/test_jobs.py``.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from fixture_screens import write_fixture_screens

from tadvae.evaluation.baselines import BASELINES
from tadvae.evaluation.metrics import HIGHER_IS_BETTER, METRICS
from tadvae.nn.strategies.base import STRATEGIES
from tune.cli import main

ROOT = Path(__file__).parents[2]
RUN = [
    *("docs/tutorial.md", "docs/report.md", "docs/formats.md", "docs/extending.md"),
    *("docs/quality-control.md", "docs/fine-tuning.md", "docs/doses.md", "README.md"),
]
SHORTER = {"train": ["--set", "train.epochs=1"]}
BLOCK = re.compile(r'^```(sh|python|yaml)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    text: str


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [Block(*match.groups()) for match in BLOCK.finditer(text)]
    assert len(found) == len(re.findall(r"^```(?:sh|python|yaml)\b", text, re.M)), "a block has another form"
    return found


def lines_of(block):
    """Commands as words, without comments."""
    joined = block.text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture
def registries():
    """What a page enters is taken out again."""
    kept = [(registry, dict(registry)) for registry in (BASELINES, HIGHER_IS_BETTER, METRICS, STRATEGIES)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder a page; docs/report.md looks at the run of the tutorial."""
    folders = {page: tmp_path_factory.mktemp(Path(page).stem) for page in RUN}
    return folders | {"docs/report.md": folders["docs/tutorial.md"]}


def run_command(words):
    program, *rest = words
    if program == "make":
        listed = subprocess.run(
            ["make", "--dry-run", *rest], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        assert listed.stdout.strip()
    elif program == "tadvae":
        shorter = [] if "--help" in rest else SHORTER.get(rest[0], [])
        with pytest.raises(SystemExit) as ended:
            main([*rest, *shorter])
        assert not ended.value.code, shlex.join(words)
    else:
        assert words[:2] in (["git", "clone"], ["cd", "tadvae"]), f"cannot run {shlex.join(words)}"


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_a_page_runs(page, folders, registries, ray_cluster, monkeypatch):
    folder = folders[page]
    monkeypatch.chdir(folder)
    if page == "README.md":
        write_fixture_screens(folder)
    namespace, files = {"__name__": "page"}, set()
    for block in blocks(page):
        where = f"{page}, {block.title or block.text.splitlines()[0]}"
        files -= {name for name in files if name in block.text}
        if block.title is not None:
            Path(block.title).write_text(block.text, encoding="utf-8")
        if block.language == "yaml":
            assert block.title is not None, f"{where}: a YAML block needs a title, to be a file"
            assert yaml.safe_load(block.text), where
            files.add(block.title)
        elif block.language == "python":
            exec(compile(block.text, where, "exec"), namespace)
        else:
            for words in lines_of(block):
                run_command(words)
    assert not files, f"{page}: {files} are never used"
    commands = [words for block in blocks(page) if block.language == "sh" for words in lines_of(block)]
    for words in commands:
        if "--out" in words:
            assert (folder / words[words.index("--out") + 1]).exists(), words


def test_no_page_is_forgotten():
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")]
    with_blocks = {page for page in [*pages, "README.md", "CONTRIBUTING.md"] if blocks(page)}
    assert with_blocks - set(RUN) == {"docs/cluster.md", "CONTRIBUTING.md"}
    commands = [words[0] for block in blocks("CONTRIBUTING.md") for words in lines_of(block)]
    assert set(commands) == {"make", ".venv/bin/python"}


def test_targets_of_make_exist():
    for page in ("CONTRIBUTING.md", "README.md"):
        for block in blocks(page):
            for words in lines_of(block) if block.language == "sh" else []:
                if words[0] == "make":
                    run_command(words)


def test_the_troubles_are_what_the_program_says():
    source = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
        for package in ("tadvae", "pipelines", "tune")
        for path in (ROOT / package).rglob("*.py")
    )
    said = re.findall(r"^\| `([^`]+)`", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    assert len(said) > 10
    assert [words for words in said if words not in source] == []


def test_the_report_page_explains_every_metric_and_section():
    from tadvae.report.page import SECTIONS

    text = (ROOT / "docs/report.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| \*\*(.+?)\*\*", text, re.M))
    assert named == {section.title for section in SECTIONS}
    explained = set(re.findall(r"`(\w+)`", text.split("## Numbers in the tables")[1]))
    assert set(HIGHER_IS_BETTER) - {"rank_rmse", "mmd_unbiased"} <= explained


def test_the_model_folder_is_as_described(tmp_path):
    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    block = text.split("## A model folder")[1].split("```")[1]
    described = {line.split()[0] for line in block.splitlines()[1:] if line and not line.startswith("text")}
    assert {"model.safetensors", "README.md"} <= described
    source = "".join(path.read_text() for path in (ROOT / "tadvae").rglob("*.py"))
    assert [name for name in described if f'"{name}"' not in source] == []


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    api = (tmp_path / "site/api/index.html").read_text(encoding="utf-8")
    for name in (
        "tadvae.model.tadvae.TADVAE.activities",
        "tadvae.store.spec.DatasetSpec",
        "tadvae.evaluation.baselines.Additive",
    ):
        assert f'id="{name}"' in api
    assert "fonts.googleapis.com" not in api
