"""What the tests share: one Ray, one simulated pair of screens, and a small screen to spoil."""

import os

from ray_environment import ENVIRONMENT

os.environ.update(ENVIRONMENT)  # Ray reads it when it is first imported
os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton too; torch may import it

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import hypothesis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from leb128 import leb128
from local_conversion import convert_locally
from scipy import sparse

from pipelines.cluster import connection
from pipelines.cluster.connection import start_local_ray
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.simulation.config import ScreenConfig, SimulationConfig
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import Simulation, simulate
from tadvae.store.reader import Store

# No test is about wall time. By default every run has the same examples; look for others with
# `pytest --hypothesis-profile search`.
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeat")

USES_RAY = {"ray_cluster", "driver"}
"""Fixtures that start Ray, in this process or in others; all others that do so ask for one of these."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses Ray, and see that the part ``cluster`` is in its folder (``scripts/run_tests.py``)."""
    for item in items:
        if USES_RAY & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("cluster") and "cluster" not in item.path.parts:
            raise pytest.UsageError(f"{item.nodeid}: tests marked cluster belong into tests/cluster")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests took of the processors, which other work on the machine hardly changes."""
    used = sum(os.times()[:4])
    terminalreporter.write_line(f"CPU time, with that of processes that have ended: {used:.0f} s")


@pytest.fixture(autouse=True)
def ray_is_asked_for(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test without the marker leaves Ray as it was."""
    before = _ray_is_there()
    yield
    if request.node.get_closest_marker("ray") is None:
        assert _ray_is_there() == before, "this test starts Ray: let it ask for ray_cluster"


def _ray_is_there() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


SIMULATION = SimulationConfig(
    n_genes=160,
    n_factors=3,
    n_pathways=9,
    genes_per_pathway=(8, 16),
    n_targets=6,
    truth_cells=50,
    screens=(
        ScreenConfig(
            name="up", n_genes=120, n_singles=4, n_doubles=3, control_cells=150, cells_per_condition=40
        ),
        ScreenConfig(
            name="down",
            modality="CRISPRi",
            contexts=("SIMLINE1", "SIMLINE2"),
            n_genes=110,
            n_singles=4,
            n_doubles=2,
            control_cells=100,
            cells_per_condition=30,
        ),
    ),
)


@dataclass(frozen=True)
class Simulated:
    """Two simulated screens on disk, and the truth behind them."""

    simulation: Simulation
    folder: Path
    """Holds ``up.h5ad``, ``down.h5ad``, ``pathways.gmt``, ``truth.npz``, ``truth.json``, ``spec.yaml``."""

    @property
    def spec(self) -> Path:
        return self.folder / "spec.yaml"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch, as a Ray task has: with two, sums round differently."""
    import torch  # seconds, which tests without it need not wait

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """The one Ray of the test session, started when a test first asks for it."""
    import ray

    start_local_ray(num_cpus=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "SMALL", 0)  # by tasks whatever is read
        yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The one browser of the test session, without a window."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("apt install chromium chromium-driver to draw the page")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.binary_location = shutil.which("chromium")
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """The browser, whose window and medium are again the usual ones after the test."""
    yield chromium
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


PHONE = {"width": 375, "height": 667, "deviceScaleFactor": 1, "mobile": True}
BEYOND = """
for (const part of document.querySelectorAll("details")) part.open = true;
const wide = document.documentElement.scrollWidth > 375;
return [...document.querySelectorAll("body *")].filter((e) => wide && !e.parentElement.closest(".wide, pre")
  && e.getBoundingClientRect().right > 376).map((e) => e.outerHTML.slice(0, 90));
"""


@pytest.fixture
def on_a_phone(browser: Any, tmp_path: Path) -> Callable[[str], list[str]]:
    """Open a page in 375 pixels, everything unfolded; what makes the page itself wider than that."""

    def on_a_phone(html: str) -> list[str]:
        (tmp_path / "phone.html").write_text(html)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        browser.get((tmp_path / "phone.html").as_uri())
        found: list[str] = browser.execute_script(BEYOND)
        errors = browser.get_log("browser")
        return [*found, *(error["message"] for error in errors)]

    return on_a_phone


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    simulation = simulate(SIMULATION)
    folder = tmp_path_factory.mktemp("simulated") / "screens"
    write_simulation(simulation, folder)
    return Simulated(simulation, folder)


@pytest.fixture(scope="session")
def store(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The simulated screens as a store; tests only read it. Ray's tasks write the same bytes."""
    return convert_locally(simulated.spec, Location.of(tmp_path_factory.mktemp("converted") / "store"))


@pytest.fixture(scope="session")
def screens_apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of two screens, ``up`` and ``down``, apart and as ``both``, and ``up-model`` of the first."""
    from small_screens import SCREENS, small_config

    from tadvae.training.fit import fit

    place = tmp_path_factory.mktemp("apart")
    write_simulation(simulate(SCREENS), place / "screens")
    spec = yaml.safe_load((place / "screens/spec.yaml").read_text())
    for name in ("up", "down"):
        part = spec | {"datasets": [each for each in spec["datasets"] if each["name"] == name]}
        (place / f"screens/{name}.yaml").write_text(yaml.safe_dump(part))
    for name, file in (("up", "up"), ("down", "down"), ("both", "spec")):
        convert_locally(place / f"screens/{file}.yaml", Location.of(place / name))
    config = small_config(place / "screens", "train.epochs=1", "split.kind=none")
    fit(Store.open(str(place / "up")), config)[0].save_pretrained(place / "up-model")
    return place


@pytest.fixture
def screen() -> ad.AnnData:
    """48 cells × 10 genes of raw counts that convert as they are; a test may spoil it first."""
    rng = np.random.default_rng(7)
    counts = rng.poisson(rng.gamma(2.0, 2.0, 10), (48, 10)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "condition": np.tile(["control", "G1", "G2", "G1+G2"], 12),
            "line": np.repeat(["K562", "A549"], 24),
            "lane": np.tile(["l1", "l1", "l2"], 16),
            "depth": counts.sum(axis=1) + 100.0,
        },
        index=[f"cell{i:02d}" for i in range(48)],
    )
    var = pd.DataFrame(index=[f"G{g}" for g in range(1, 11)])
    return ad.AnnData(X=sparse.csr_matrix(counts), obs=obs, var=var)


SCREEN_SETTINGS = {
    "perturbation": {"column": "condition", "control": "control", "separator": "+"},
    "context": {"column": "line"},
    "modality": "CRISPRi",
}


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[..., Path]:
    """Write screens and the spec that converts them: ``write_spec(screen, counts={"layer": "raw"})``.

    Settings are those of the datasets; None takes one out.
    """

    def write(
        *screens: ad.AnnData,
        reference: str = "none",
        max_unknown: float = 0.5,
        layout: dict | None = None,
        **settings: Any,
    ) -> Path:
        datasets = []
        for i, screen in enumerate(screens):
            screen.write_h5ad(tmp_path / f"screen{i}.h5ad")
            chosen = {**SCREEN_SETTINGS, **settings}
            chosen = {key: value for key, value in chosen.items() if value is not None}
            datasets.append({"name": f"screen{i}", "path": f"screen{i}.h5ad", **chosen})
        genes = {"reference": reference, "max_unknown": max_unknown}
        spec = {"datasets": datasets, "genes": genes, "layout": layout or {}}
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        return tmp_path / "spec.yaml"

    return write


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Make a call that must end with a UserError; return its one sentence."""

    def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            call(*arguments, **options)
        sentence = str(caught.value)
        assert sentence.endswith(".")
        assert "\n" not in sentence
        own = re.sub(r"\([^()]*\)", "", sentence)  # without what a library says, in parentheses
        assert not re.search(r"[.!?]\s+[A-Z]", own)
        assert len(sentence) < 700
        return sentence

    return refused


@pytest.fixture
def not_converted(tmp_path: Path, refused: Callable[..., str]) -> Callable[[str | Path], str]:
    """Convert what cannot be converted, see that nothing is left of it, and return the sentence."""
    from pipelines.convert import convert

    def not_converted(spec: str | Path) -> str:
        folder = tmp_path / "out"
        folder.mkdir()
        sentence = refused(convert, str(spec), str(folder / "store"))
        assert not list(folder.iterdir())
        return sentence

    return not_converted


@pytest.fixture
def convert_here(tmp_path: Path) -> Callable[..., Store]:
    """Convert in this process, without Ray: what ``tadvae`` does by itself."""

    def convert_here(spec: str | Path, name: str = "store") -> Store:
        return convert_locally(spec, Location.of(tmp_path / name))

    return convert_here


@pytest.fixture(scope="session")
def stored_cells() -> Callable[[Store, int], tuple[pd.DataFrame, sparse.csr_matrix]]:
    """Read a dataset's shards with pyarrow alone: labels and values (cells × vocabulary), as stored."""

    def stored_cells(store: Store, dataset: int) -> tuple[pd.DataFrame, sparse.csr_matrix]:
        paths = [entry.path for entry in store.manifest.shards if entry.dataset == dataset]
        tables = [pq.read_table(f"{store.folder}/{path}", partitioning=None) for path in paths]
        table = pa.concat_tables(tables).combine_chunks()
        whole = table.schema.field("counts").metadata[b"encoding"] == b"varint"
        rows, columns, counts = [], [], []
        for row, (ids, values) in enumerate(
            zip(table["gene_ids"].to_pylist(), table["counts"].to_pylist(), strict=True)
        ):
            genes = np.cumsum(leb128(ids), dtype=np.int64)
            rows.append(np.full(len(genes), row))
            columns.append(genes)
            counts.append(np.asarray(leb128(values) if whole else np.frombuffer(values, "<f4"), np.float64))
        entries = [np.concatenate(part) for part in (counts, rows, columns)]
        assert table["n_tokens"].to_pylist() == [len(each) for each in columns]
        values = sparse.csr_matrix(
            (entries[0], (entries[1], entries[2])), shape=(table.num_rows, store.manifest.n_genes)
        )
        return table.drop_columns(["gene_ids", "counts"]).to_pandas(), values

    return stored_cells
