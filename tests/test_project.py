"""The project's own files: what they say agrees, and what is imported is declared."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml

import tadvae

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"tadvae", "pipelines", "tune"}


def test_versions_and_licences_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == tadvae.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_this_python_is_a_declared_one():
    declared = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert declared == {"3.11", "3.12", "3.13"}
    assert PROJECT["requires-python"] == ">=3.11"
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in declared


def test_no_file_has_the_marks_of_a_merge():
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.toml", "*.yaml", "*.yml", "*.txt", "Makefile"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    files = files or [str(p.relative_to(ROOT)) for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
    for name in files:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines() if (ROOT / name).exists() else []
        assert not [line for line in lines if line.startswith(marks)], name


def test_hooks_and_lint_run_the_same_tools():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    lint = (ROOT / "Makefile").read_text().split("\nlint: install")[1].split("\n\n")[0]
    assert tools == set(re.findall(r"\$\(BIN\)/([\w-]+)", lint))


def imported(folder):
    """Top-level modules that the files of a folder import, wherever they do."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((name.name.split(".")[0], file) for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0], file


def names(requirements):
    return {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", r)[0].lower()) for r in requirements}


def test_what_is_imported_is_declared():
    """A fresh clone has nothing that is not asked for."""
    extras = PROJECT["optional-dependencies"]
    runtime = names([*PROJECT["dependencies"], *extras["hub"], *extras["mlflow"], *extras["wandb"]])
    for_tests = runtime | names(name for extra in extras.values() for name in extra)
    runtime |= {"triton"}  # comes with torch where that is built for GPUs; without it there is plain torch
    of = packages_distributions()
    missing = {}
    for folder, declared in (*((f, runtime) for f in OURS), ("tests", for_tests), ("scripts", for_tests)):
        local = {p.stem for p in (ROOT / folder).rglob("*.py")} | {"cluster", "docs"}
        local |= {p.stem for p in (ROOT / "benchmarks").glob("*.py")}
        for module, file in imported(ROOT / folder):
            if module in sys.stdlib_module_names or module in OURS or module in local:
                continue
            if not names(of.get(module, [module])) & declared:
                missing[module] = str(file.relative_to(ROOT))
    assert missing == {}


def tracked(*patterns):
    """Files of the repository by their path patterns, as text paths."""
    found = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:  # an unpacked archive
        return [str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.rglob(pattern.split("/")[-1])]
    return [name for name in found.stdout.split() if (ROOT / name).is_file()]


def test_every_module_is_in_a_folder():
    assert [path.name for path in (ROOT / "tadvae").glob("*.py")] == ["__init__.py"]


RUN_FILES = re.compile(
    r"(run\.json|split\.parquet|controls\.parquet|ensemble\.json|calibration\.(json|safetensors))$"
    r"|^/?(evaluation|log|checkpoints)(/|$)|^(steps|bags|restart)-"
)


def test_only_run_folder_opens_the_files_of_a_run():
    """Docstrings may name them; strings of the code may not, where a path could be made of them."""
    found = set()
    for name in tracked("tadvae/*.py", "pipelines/*.py", "tune/*.py"):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found |= {(name, node.value)} if RUN_FILES.search(node.value) else set()
    own = ("tadvae/model/run_folder.py", "tadvae/model/run_log.py")
    others = {each for each in found if each[0] not in own}
    assert found > others, "the pattern does not even find what RunFolder has"
    assert {text for _, text in others} <= {"log"}  # the logarithm of a variance, and of an axis


WORDS = re.compile(
    r"\bmend(s|ed|ing)?\b|beside arithmetic|the honest table|has the whole say|door for users"
    r"|DESIGN[ ]§|REFERENCES[ ][A-C]",
    re.IGNORECASE,
)


def test_texts_use_plain_words_and_name_no_file_that_is_not_here():
    files = tracked("tadvae/*", "pipelines/*", "tune/*", "docs/*.md", "benchmarks/*.py", "*.md", "tests/*.py")
    found = {}
    for name in files:
        path = ROOT / name
        if path.suffix not in (".py", ".md", ".yaml", ".j2") or path == Path(__file__):
            continue
        if match := WORDS.search(path.read_text(encoding="utf-8")):
            found[name] = match[0]
    assert found == {}


def test_documents_name_only_files_that_exist():
    places = re.compile(r"`((?:tadvae|pipelines|tune|tests|benchmarks|scripts|deploy|docs)/[\w./-]+\.\w+)`")
    files = set(tracked("*"))
    missing = {
        (page, place)
        for page in tracked("*.md", "docs/*.md")
        for place in places.findall((ROOT / page).read_text(encoding="utf-8"))
        if place not in files
    }
    assert missing == set()
