"""What the tests share: one Ray, one simulated pair of screens, and a small screen to spoil."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse

from tadvae.errors import UserError
from tadvae.filesystem import Location
from tadvae.simulate import ScreenConfig, Simulation, SimulationConfig, simulate, write_simulation
from tadvae.store.reader import Store

SIMULATION = SimulationConfig(
    n_genes=160,
    n_factors=3,
    n_pathways=9,
    genes_per_pathway=(8, 16),
    n_targets=6,
    truth_cells=50,
    screens=(
        ScreenConfig(name="up", n_genes=120, n_singles=4, n_doubles=3, control_cells=150, cells_per_condition=40),
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


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """The one Ray of the test session, started when a test first asks for it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    simulation = simulate(SIMULATION)
    folder = tmp_path_factory.mktemp("simulated") / "screens"
    write_simulation(simulation, folder)
    return Simulated(simulation, folder)


@pytest.fixture(scope="session")
def store(ray_cluster: Any, simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The simulated screens as a store; tests only read it."""
    from pipelines.convert import convert

    out = tmp_path_factory.mktemp("converted") / "store"
    convert(str(simulated.spec), str(out))
    return Store.open(str(out))


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

    Settings are those of the datasets; ``genes`` and ``layout`` of the whole spec; None takes one out.
    """

    def write(
        *screens: ad.AnnData, genes: dict | None = None, layout: dict | None = None, **settings: Any
    ) -> Path:
        datasets = []
        for i, screen in enumerate(screens):
            screen.write_h5ad(tmp_path / f"screen{i}.h5ad")
            chosen = {**SCREEN_SETTINGS, **settings}
            chosen = {key: value for key, value in chosen.items() if value is not None}
            datasets.append({"name": f"screen{i}", "path": f"screen{i}.h5ad", **chosen})
        spec = {"datasets": datasets, "genes": genes or {"reference": "none"}, "layout": layout or {}}
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        return tmp_path / "spec.yaml"

    return write


@pytest.fixture
def refusal(ray_cluster: Any, tmp_path: Path) -> Callable[[Path], str]:
    """Convert what cannot be converted: the one sentence that says why, after which nothing is left."""
    from pipelines.convert import convert

    def refuse(spec: Path) -> str:
        folder = tmp_path / "out"
        folder.mkdir()
        with pytest.raises(UserError) as caught:
            convert(str(spec), str(folder / "store"))
        assert not list(folder.iterdir())
        return one_sentence(caught.value)

    return refuse


def one_sentence(error: UserError) -> str:
    text = str(error)
    assert text.endswith(".")
    assert "\n" not in text
    assert not re.search(r"[.!?]\s+[A-Z]", text), text
    assert len(text) < 600
    return text


__all__ = ["Location"]
