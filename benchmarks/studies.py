"""The studies behind docs/results.md: which screens, which splits, which settings."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from pipelines.convert import convert
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.files import simulate_to

DATA = Path(os.environ.get("TADVAE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Split:
    """One way of holding out; every fold of it is trained and scored."""

    settings: str
    folds: int
    extra: tuple[str, ...] = ()
    calibrated: bool = True


@dataclass(frozen=True)
class Study:
    """Screens that one model is trained on; ``screens`` None: the default simulation.

    A study that is ``part_of`` another has some of its screens, and holds out what the other does of them.
    """

    about: str
    screens: list[dict] | None
    splits: dict[str, Split]
    settings: tuple[str, ...] = ()
    epochs: int = 50
    reference: str = "human"
    part_of: str | None = None

    @property
    def at_hand(self) -> bool:
        """Whether its data are available."""
        return self.screens is None or DATA.is_dir()


def _screen(name: str, file: str, modality: str | dict, context: dict, **more: object) -> dict:
    by_condition = {"column": "condition", "control": "control", "separator": "+"}
    screen = {"name": name, "path": str(DATA / file), "perturbation": by_condition}
    return screen | {"modality": modality, "context": context} | more


_BY_GENE = ("model.causal.targets=gene",)  # an untested target can then be answered for
_CELLS = Split("kind: cells", 5, calibrated=False)
_NORMAN = _screen("norman19", "screens/norman19_k562_crispra.h5ad", "CRISPRa", {"column": "cell_type"})
_MCFALINE = _screen("mcfaline23", "screens/mcfaline23_gbm_crispri.h5ad", "CRISPRi", {"column": "cell_type"})
_COMBO, _SINGLE = Split("kind: combo", 5), Split("kind: single", 5, _BY_GENE)

STUDIES = {
    "simulated": Study("two simulated screens with a known truth", None, {"combo": _COMBO}),
    "carpool": Study(
        "CaRPool-seq (Wessels 2023), THP-1, Cas13d: mean profiles of 28 singles and 60 doubles",
        [
            _screen(
                "carpool23", "profiles/carpool23_thp1_cas13d_means.h5ad", "Cas13d", {"column": "cell_type"}
            )
            | {"kind": "profiles", "values": "log1p"}
            | {"perturbation": {"column": "perturbation", "control": "control", "separator": "+"}}
        ],
        {"combo": _COMBO},
        ("model.pathway={d_embed: 32, n_heads: 2}",),
    ),
    "norman_mcfaline": Study(
        "Norman 2019 (K562, CRISPRa) and McFaline-Figueroa 2023 (three glioblastoma lines, CRISPRi) together",
        [_NORMAN, _MCFALINE],
        {
            "combo": _COMBO,
            "single": _SINGLE,
            "context": Split("kind: context, datasets: [mcfaline23]", 3),
            "dataset": Split("kind: dataset", 2),
            "cells": _CELLS,
        },
        ("model.pathway={d_embed: 32, n_heads: 2}",),
        30,
    ),
    "norman_alone": Study(
        "Norman 2019 without McFaline-Figueroa 2023",
        [_NORMAN],
        {"combo": replace(_COMBO, calibrated=False), "single": replace(_SINGLE, calibrated=False)},
        ("model.pathway={d_embed: 32, n_heads: 2}",),
        30,
        part_of="norman_mcfaline",
    ),
    "mcfaline_alone": Study(
        "McFaline-Figueroa 2023 without Norman 2019",
        [_MCFALINE],
        {"single": replace(_SINGLE, calibrated=False)},
        ("model.pathway={d_embed: 32, n_heads: 2}",),
        30,
        part_of="norman_mcfaline",
    ),
    "datlinger": Study(
        "Datlinger 2021, Jurkat knock-outs with and without stimulation of the T cell receptor",
        [
            _screen(
                "datlinger21", "screens/datlinger21_jurkat_crispr_tcr.h5ad",
                {"default": "CRISPRko", "TCR": "stimulation"}, {"value": "Jurkat"},
            )
        ],
        {"combo": _COMBO, "single": _SINGLE, "cells": _CELLS},
        ("model.pathway={d_embed: 32, n_heads: 2}",),
        20,
    ),
    "papalexi": Study(
        "Papalexi 2021, THP-1 knock-outs, a panel of 299 genes",
        [
            _screen(
                "papalexi21", "screens/papalexi21_thp1_eccite.h5ad", "CRISPRko", {"value": "THP1"},
                batch={"column": "bio_rep"}, total_counts="cov_response_n_umis",
            )
        ],
        {"single": _SINGLE, "cells": _CELLS},
        ("model.pathway={d_embed: 32, n_heads: 2}",),
        20,
    ),
    "kang": Study(
        "Kang 2018, PBMC with and without IFN-beta",
        [_screen("kang18", "screens/kang18_pbmc_ifnb.h5ad", "ligand", {"value": "PBMC"})],
        {"cells": _CELLS},
        ("model.pathway={d_embed: 32, n_heads: 2}", "preprocess.n_top_genes=2000"),
        20,
    ),
    "kang_types": Study(
        "Kang 2018, IFN-beta in five types of blood cells, each held out in turn but for its controls",
        [
            _screen(
                "kang18", "screens/kang18_pbmc_ifnb_5celltypes.h5ad", "ligand", {"column": "cell_type"}
            )
        ],
        {"context": Split("kind: context", 5, calibrated=False)},
        ("model.pathway={d_embed: 32, n_heads: 2}",),
        20,
    ),
}  # fmt: skip


def make_store(study: Study, folder: Path) -> tuple[Path, list[str]]:
    """Convert a study's screens once; returns the store and its settings."""
    store, extra = folder / "store", []
    if study.screens is None:
        if not (folder / "screens").exists():
            simulate_to(folder / "screens", SimulationConfig())
        spec = folder / "screens" / "spec.yaml"
        extra = [f"pathways.file={folder / 'screens' / 'pathways.gmt'}"]
    else:
        spec = folder / "spec.yaml"
        genes = {"reference": study.reference}
        spec.write_text(yaml.safe_dump({"datasets": study.screens, "genes": genes}))
    if not store.exists():
        convert(str(spec), str(store))
    return store, [*study.settings, *extra]
