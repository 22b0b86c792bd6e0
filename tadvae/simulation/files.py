"""Writing a simulation: screens, their spec, their pathways and the true parameters."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from tadvae.base.errors import UserError
from tadvae.pathways.gmt import write_gmt
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.simulate import CONTROL, ScreenTruth, Simulation, Truth, simulate


def simulate_to(out: Path, config: SimulationConfig) -> Path:
    """Simulate into the new or empty folder ``out``; see :func:`write_simulation`."""
    _require_empty(out)  # checked before the simulation, which takes time
    return write_simulation(simulate(config), out)


def write_simulation(simulation: Simulation, out_dir: Path) -> Path:
    """Write screens (``NAME.h5ad``), ``pathways.gmt``, ``truth.npz``, ``truth.json`` and ``spec.yaml``.

    The folder is written atomically. ``truth.npz`` holds the arrays of :class:`Truth` by name and
    those of its screens as ``NAME.field``; ``truth.json`` the lists of names and the config.

    Returns
    -------
    Path
        ``out_dir/spec.yaml``, which the converter reads.

    Raises
    ------
    UserError
        If ``out_dir`` is a file or a folder that is not empty, or cannot be written.
    """
    out = _require_empty(out_dir)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        _write_files(simulation, partial)
        partial.replace(out)  # on POSIX an empty folder may be replaced
    except OSError as error:
        raise UserError(f"{out_dir}: cannot be written ({error}); give a writable folder.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Path(out_dir) / "spec.yaml"


def _require_empty(out_dir: Path) -> Path:
    out = Path(out_dir).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = "a folder that is not empty" if out.is_dir() else "a file"
        raise UserError(f"{out_dir}: expected a new or empty folder, found {found}; give another one.")
    return out


def _write_files(simulation: Simulation, folder: Path) -> None:
    def split(record: Truth | ScreenTruth) -> tuple[dict[str, Any], dict[str, Any]]:
        fields = {key: value for key, value in vars(record).items() if key != "screens"}
        arrays = {key: value for key, value in fields.items() if isinstance(value, np.ndarray)}
        return arrays, {key: value for key, value in fields.items() if key not in arrays}

    arrays, lists = split(simulation.truth)
    lists |= {"config": simulation.config.model_dump(mode="json"), "screens": []}
    spec = "genes: {reference: none}\ndatasets:\n"
    for adata, screen in zip(simulation.screens, simulation.config.screens, strict=True):
        adata.write_h5ad(folder / f"{screen.name}.h5ad", compression="gzip")
        spec += (
            f'  - name: "{screen.name}"\n    path: "{screen.name}.h5ad"\n    modality: {screen.modality}\n'
            f'    perturbation: {{column: condition, control: {CONTROL}, separator: "+"}}\n'
            "    context: {column: cell_type}\n    batch: {column: batch}\n"
        )
        if screen.doses:
            spec += "    covariates: {dose: {column: dose, unit: uM}}\n"
    for part in simulation.truth.screens:
        more, described = split(part)
        arrays |= {f"{part.name}.{key}": value for key, value in more.items()}
        lists["screens"].append(described)
    write_gmt(simulation.sets, folder / "pathways.gmt")
    np.savez_compressed(folder / "truth.npz", allow_pickle=False, **arrays)
    (folder / "truth.json").write_text(json.dumps(lists, indent=1) + "\n", encoding="utf-8")
    (folder / "spec.yaml").write_text(spec, encoding="utf-8")
