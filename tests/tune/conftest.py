"""A sweep that takes two minutes: eight trials over every masking strategy, some of them stopped."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from placement import actor_class, group_of, kill

SPACE: dict[str, Any] = {
    "trials": 8,
    "max_concurrent": 2,
    "seed": 1,
    "scheduler": {"grace_epochs": 1, "reduction_factor": 2},
    "experiment": {
        "stream": {"bags_per_batch": 4, "shuffle_window": 3},
        "model": {
            "pathway": {"d_embed": 16, "n_heads": 1},
            "causal": {"n_factors": 4, "hidden": 16},
            "decoder": {"d_gene": 16, "hidden": 16},
        },
        "train": {"epochs": 3, "checkpoint_every": None},
        "validation": {"every": 1, "folds": 2},
    },
    "parameters": {
        "model.pathway.masking": {"choice": ["hard", "soft", "soft_log", "linear", "none"]},
        "model.pathway.d_embed": {
            "choice": [16, 32],
            "when": {"model.pathway.masking": ["hard", "soft", "soft_log", "none"]},
        },
        "train.learning_rate": {"loguniform": [1e-5, 3e-2]},
    },
    "derived": {"model.pathway.n_heads": {"key": "model.pathway.d_embed", "divide_by": 16}},
}


@pytest.fixture(scope="session")
def small_space() -> dict[str, Any]:
    """The settings of the small sweep."""
    return SPACE


@pytest.fixture(scope="session")
def space_file(simulated: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small space as a file, on the simulated screens' pathways, which it names from its own folder."""
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    pathways = {"file": os.path.relpath(simulated.folder / "pathways.gmt", path.parent)}
    experiment = {**SPACE["experiment"], "pathways": pathways}
    path.write_text(yaml.safe_dump({**SPACE, "experiment": experiment}))
    return path


@pytest.fixture(scope="session")
def earlier_groups(ray_cluster: Any) -> set[str]:
    """Placement groups that there were before the sweep."""
    return set(ray_cluster.util.placement_group_table())


@pytest.fixture(scope="session")
def abandoned(ray_cluster: Any) -> Any:
    """What a training holds whose controller and workers died, from before the sweep."""
    group, workers = group_of(actor_class("RayTrainWorker"))
    kill(workers)
    return group


@pytest.fixture(scope="session")
def swept(
    store: Any,
    space_file: Path,
    abandoned: Any,
    earlier_groups: set[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of the sweep."""
    from tune.config import SweepConfig
    from tune.sweep import run_sweep

    out = tmp_path_factory.mktemp("swept") / "sweep"
    config = SweepConfig.load(space_file)
    with pytest.MonkeyPatch.context() as patch:  # a relative path, though trials have other working folders
        patch.chdir(space_file.parent)
        pathways = os.path.relpath(str(config.experiment.pathways.file))
        run_sweep(
            str(store.folder),
            str(out),
            SweepConfig.load(space_file, [f"experiment.pathways.file={pathways}"]),
        )
    return out
