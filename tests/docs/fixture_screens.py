"""Test fixtures: small simulated screens with the columns, labels and human genes of the README's two."""

from pathlib import Path

import numpy as np

from tadvae.pathways.default import packaged
from tadvae.simulation.config import ScreenConfig, SimulationConfig
from tadvae.simulation.simulate import simulate

SCREENS = SimulationConfig(
    seed=5,
    n_genes=130,
    n_factors=3,
    n_pathways=6,
    genes_per_pathway=(8, 12),
    n_targets=7,
    truth_cells=5,
    screens=(
        ScreenConfig(
            name="norman19",
            contexts=("k562",),
            n_genes=120,
            n_singles=7,
            n_doubles=12,
            control_cells=60,
            cells_per_condition=15,
        ),
        ScreenConfig(
            name="kang18",
            contexts=("PBMC",),
            n_genes=110,
            n_singles=1,
            n_doubles=0,
            control_cells=60,
            cells_per_condition=60,
        ),
    ),
)
PATHWAY = "GO:0034340"
TARGETS = ["KLF1", "MAP2K6", "SET", "CEBPE", "FOSB", "ZBTB10", "CBL"]


def write_fixture_screens(folder: Path) -> None:
    """Write ``norman19.h5ad``, ``kang18.h5ad`` and ``sets.gmt``."""
    sets = packaged().sets()
    rows = [sets.ids.index(PATHWAY), *np.argsort([-len(genes) for genes in sets.genes])[:3]]
    known = list(dict.fromkeys(gene for row in rows for gene in sets.genes[row]))
    simulation = simulate(SCREENS)
    pair = next(label for label in simulation.screens[0].obs["condition"].unique() if "+" in label)
    singles = [label for label in simulation.screens[0].obs["condition"].unique() if label != "control"]
    targets = list(dict.fromkeys([*pair.split("+"), *(s for s in singles if "+" not in s)]))
    symbol = dict(zip(targets, TARGETS, strict=True)) | {"control": "control"}
    free = iter(gene for gene in known if gene not in TARGETS)
    for gene in sorted({g for screen in simulation.screens for g in screen.var_names}):
        symbol[gene] = symbol.get(gene) or next(free)
    for name, screen in zip(("norman19", "kang18"), simulation.screens, strict=True):
        screen.var_names = [symbol[gene] for gene in screen.var_names]
        labels = screen.obs["condition"].astype(str)
        screen.obs["condition"] = ["+".join(symbol[part] for part in label.split("+")) for label in labels]
        screen.write_h5ad(folder / f"{name}.h5ad")
    small = [row for row in range(len(sets.ids)) if 10 <= len(sets.genes[row]) <= 25][:6]
    lines = ["\t".join([sets.ids[row], sets.names[row], *sets.genes[row]]) for row in small]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")
