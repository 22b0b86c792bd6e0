"""The folder of a run as it is before its first step."""

from dataclasses import asdict

from safetensors.torch import save

from tadvae.base.version import __version__
from tadvae.data.plan import rank_bags, steps_per_epoch
from tadvae.effects.file import save_effects
from tadvae.model.card import write_card
from tadvae.model.run_folder import RunFolder
from tadvae.model.weights import CONFIG, begin_model
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.prepare import Preparation
from tadvae.training.training_set import planned_bags


def begin_run(
    run: RunFolder,
    store_path: str,
    config: ExperimentConfig,
    prepared: Preparation,
    workers: int | tuple[int, int],
    gpu: bool,
) -> None:
    """Write all of a run's folder but its weights and its log.

    Parameters
    ----------
    store_path
        Where the store is, for those who look for it later.
    workers, gpu
        What the run was asked to train on; only written down.
    """
    vocabulary = prepared.vocabulary
    bags = planned_bags(prepared.store, prepared.groups, config)
    most = workers[1] if isinstance(workers, tuple) else workers
    _, repeated = rank_bags(bags, config.seed, 0, 0, most)
    run.model.make_folder()
    vocabulary.save(run.model)
    if prepared.effects is not None:
        save_effects(prepared.effects, run.model)
    write_card(run.model, vocabulary, config)
    (run.model / CONFIG).write_text(config.to_yaml())
    begin_model(run.model)
    run.begin(
        config,
        prepared.groups,
        prepared.controls,
        {
            "tadvae_version": __version__,
            "store": store_path,
            "vocabulary_hash": vocabulary.hash,
            "workers": workers if isinstance(workers, int) else "{}:{}".format(*workers),
            "gpu": gpu,
            "bags": len(bags),
            "steps_per_epoch": steps_per_epoch(len(bags), config.stream, most),
            "bags_repeated_per_epoch": repeated,
            "pathways": str(vocabulary.membership.coverage),
            "permuted_pathways": vocabulary.membership.permuted,
            "origin": None if vocabulary.origin is None else asdict(vocabulary.origin),
        },
        None if prepared.start is None else save(prepared.start),
    )
