"""The notebooks are run, in their order and in one folder, as a reader would; their files have no outputs.

Cells that begin with ``%%bash`` are commands, run in this process as those of the pages, which saves the
start of a dozen processes; all others are Python. Nothing else of Jupyter is used: no kernel is needed.
"""

import json

import pytest
from test_pages import ROOT, Block, lines_of, run_command

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
SHELL = "%%bash\n"


def cells_of(place):
    return json.loads(place.read_text(encoding="utf-8"))["cells"]


@pytest.mark.slow
def test_the_notebooks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in NOTEBOOKS:
        namespace = {"__name__": "__main__"}
        for cell in cells_of(place):
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                continue
            if text.startswith(SHELL):
                for words in lines_of(Block("sh", None, text.removeprefix(SHELL))):
                    run_command(words)
            else:
                exec(compile(text, f"{place.name}, cell {cell['id']}", "exec"), namespace)
    for name in ("first.html", "report.html", "ranked.html", "double.html", "experiments.csv"):
        assert (tmp_path / name).stat().st_size > 0, name


def test_notebooks_have_no_outputs_and_say_what_they_write():
    assert [place.name[0] for place in NOTEBOOKS] == ["1", "2", "3"]
    for place in NOTEBOOKS:
        text = place.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"  # for readable diffs
        code = [cell for cell in cells_of(place) if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
        magics = {line for cell in code for line in cell["source"] if line.startswith(("%", "!"))}
        assert magics <= {SHELL}  # what the test above knows how to run
        assert all(cell["source"][0] == SHELL for cell in code if SHELL in cell["source"])
