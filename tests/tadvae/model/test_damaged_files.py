"""Whatever happens to a file of a store, a run or a model: one sentence, or the same results."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_conversion import convert_locally
from safetensors.torch import load_file, save_file
from small_screens import SCREENS, small_config

from tadvae.base.checksums import SUMS
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.data.decode import COLUMNS, DatasetView, decode
from tadvae.model.controls import profile_cell
from tadvae.model.run_folder import RunFolder
from tadvae.model.tadvae import TADVAE
from tadvae.model.weights import WEIGHTS
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import simulate
from tadvae.store.reader import Store
from tadvae.training.begin_run import begin_run
from tadvae.training.checkpoint import Position, load_checkpoint, save_checkpoint
from tadvae.training.fit import fit
from tadvae.training.learner import Learner, build_module
from tadvae.training.prepare import Preparation

pytestmark = pytest.mark.usefixtures("one_thread")
CHECKPOINT = "checkpoints/step-000000002"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store, a finished run with a log, scores and a checkpoint, and a model folder."""
    place = tmp_path_factory.mktemp("damaged")
    write_simulation(simulate(SCREENS), place / "screens")
    store = convert_locally(place / "screens" / "spec.yaml", Location.of(place / "store"))
    config = small_config(place / "screens", "train.epochs=1", "split={kind: combo, folds: 4}")
    model, groups = fit(store, config)
    run = RunFolder(place / "run")
    prepared = Preparation(groups, model.vocabulary, model.controls, model.effects, store)
    begin_run(run, str(place / "store"), config, prepared, workers=1, gpu=False)
    run.write_steps([{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.5}])
    model.save_pretrained(place / "model")
    model.save_pretrained(str(run.model))
    run.finish((place / "model" / WEIGHTS).read_bytes())
    run.write_scores("all", groups[["n_cells"]], {"summary": 1})
    (place / "run" / CHECKPOINT).mkdir(parents=True)
    learner = learner_of(model)
    save_checkpoint(place / "run" / CHECKPOINT, learner.module, learner.optimizer, Position(vocabulary="v"))
    return place


def learner_of(model):
    return Learner(model.config, build_module(model.config, model.vocabulary))


def use_store(folder):
    """All that a store says: its tables, and its cells."""
    store = Store.open(str(folder))
    store.verify_tables()
    found = [store.manifest.model_dump_json(), store.genes.to_json(), store.bags.to_json(), store.reference]
    found += [store.perturbations.to_json(), *(store.panel(d).to_json() for d in range(2))]
    for shard in range(len(store.manifest.shards)):
        store.verify(shard, tokens=True)
    for read in store.row_groups(store.bags):
        table, _ = store.read_bags(*read, COLUMNS)
        cells = decode(table, DatasetView(np.arange(store.manifest.n_genes), "cp10k"), store.manifest.n_genes)
        found += [cells.gene_ids.tobytes(), cells.values.tobytes(), cells.total_counts.tobytes()]
    return found


def use_model(folder):
    """What a model says: its settings and names, and predictions of a single and of a combination."""
    model = TADVAE.from_pretrained(folder)
    vocabulary, entry = model.vocabulary, model.vocabulary.contexts[0]
    dataset = vocabulary.datasets[entry.dataset]
    cells = model.controls.get(0, profile_cell(entry.profile, dataset.genes))
    asked = [[(0, dataset.modality)], [(0, dataset.modality), (1, dataset.modality)]]
    means = model.counterfactual(cells, dataset.genes, entry.profile, entry.dataset, asked, 0)
    names = [vocabulary.targets, vocabulary.modalities, vocabulary.signs, vocabulary.reference]
    names += [vocabulary.membership.names, vocabulary.genes.to_json(), dataset.name, dataset.target_modality]
    return [model.config.to_yaml(), str(names), means.tobytes()]


def use_run(folder):
    """All that a run says: what it predicts, its settings, split, log, scores and checkpoint."""
    run = RunFolder(folder)
    learner = learner_of(TADVAE.from_pretrained(folder))
    position = load_checkpoint(folder / CHECKPOINT, learner.module, learner.optimizer, "v")
    found = [str(run.about()), run.config().to_yaml(), run.split().to_json(), str(run.steps()), str(position)]
    found += [run.scores().to_json(), *(v.numpy().tobytes() for v in learner.module.state_dict().values())]
    return [*found, *use_model(folder)]


USE = {"store": use_store, "run": use_run, "model": use_model}


@pytest.fixture(scope="module")
def expected(place):
    return {kind: use(place / kind) for kind, use in USE.items()}


@st.composite
def damages(draw, data: bytes) -> bytes:
    """The content of a file with a flipped bit, without its end, or with other bytes in the middle."""
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    kind = draw(st.sampled_from(["flip", "cut", "overwrite"]))
    if kind == "cut" or not data:
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
    other = draw(st.binary(min_size=1, max_size=8))
    return (data[:at] + other + data[at + len(other) :])[: len(data)]


@pytest.mark.parametrize("with_sums", [True, False], ids=["with checksums", "of an earlier version"])
@settings(max_examples=40, derandomize=True)
@given(st.data())
def test_damage_is_refused_or_changes_nothing(place, expected, with_sums, data):
    """Without checksums, results may differ, but nothing else than a sentence may end the program."""
    kind = data.draw(st.sampled_from(sorted(USE)))
    folder = place / kind
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path: path.read_bytes() for path in files if path.name == SUMS}
    path = data.draw(st.sampled_from([path for path in files if with_sums or path not in sums]))
    content, around = path.read_bytes(), sorted(place.rglob("*"))
    try:
        if not with_sums:
            for each in sums:
                each.unlink()
        path.write_bytes(data.draw(damages(content)))
        found = expected[kind]
        with suppress(UserError):
            found = USE[kind](folder)
        assert not with_sums or found == expected[kind]
    finally:
        for each, before in {**sums, path: content}.items():
            each.write_bytes(before)
    assert sorted(place.rglob("*")) == around


@pytest.fixture
def copy(place, tmp_path):
    """Copies of all folders, to spoil."""
    for kind in USE:
        shutil.copytree(place / kind, tmp_path / kind)
    return tmp_path


@pytest.mark.parametrize("kind", sorted(USE))
def test_folders_without_checksums_are_read(copy, expected, kind):
    for path in copy.rglob(SUMS):
        path.unlink()
    assert USE[kind](copy / kind) == expected[kind]


@pytest.mark.parametrize("kind", sorted(USE))
def test_every_file_but_the_card_has_a_checksum(place, kind):
    """In the format that ``sha256sum -c`` reads."""
    files = {
        path for path in (place / kind).rglob("*") if path.is_file() and path.name not in (SUMS, "README.md")
    }
    listed = {
        sums.parent / line.split("  ", 1)[1]
        for sums in (place / kind).rglob(SUMS)
        for line in sums.read_text().splitlines()
    }
    assert files == listed


@pytest.mark.parametrize("name", ["model/vocabulary.json", "config.yaml", "split.parquet", "run.json"])
@pytest.mark.parametrize("what", ["pipe", "device"])
def test_pipes_and_devices_are_not_opened(copy, refused, name, what):
    path = copy / "run" / name
    path.unlink()
    os.mkfifo(path) if what == "pipe" else path.symlink_to("/dev/zero")
    assert "expected a regular file" in refused(use_run, copy / "run")


def without_sums(folder: Path) -> Path:
    """A folder whose checksums are not asked, as those of someone who made them anew."""
    for path in folder.rglob(SUMS):
        path.unlink()
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(copy, refused, value):
    folder = without_sums(copy / "model")
    weights = load_file(folder / WEIGHTS)
    weights["decoder.bias"][0] = value
    save_file(weights, folder / WEIGHTS)
    assert "not finite numbers" in refused(TADVAE.from_pretrained, folder)


@pytest.mark.parametrize(
    ("section", "setting"), [("causal", "n_factors"), ("pathway", "d_embed"), ("decoder", "hidden")]
)
def test_sizes_are_compared_before_memory_is_taken(copy, refused, monkeypatch, section, setting):
    folder = without_sums(copy / "model")
    config = TADVAE.from_pretrained(folder).config.model_dump(mode="json")
    config["model"]["pathway"]["masking"] = "members"  # which has embeddings
    config["model"][section][setting] = 10**6
    (folder / "config.yaml").write_text(json.dumps(config))
    on_meta = []
    build = torch.nn.Parameter.__new__

    def new(cls, data=None, requires_grad=True):
        on_meta.append(data is None or data.is_meta)
        return build(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", new)
    assert "belong to another model" in refused(TADVAE.from_pretrained, folder)
    assert on_meta
    assert all(on_meta)


@pytest.mark.parametrize("reference", ["/etc/passwd", "genes.tsv", "Human", 3, None])
def test_a_model_names_no_file_as_its_reference(copy, refused, reference):
    path = without_sums(copy / "model") / "vocabulary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reference": reference}))
    assert "unknown gene reference" in refused(TADVAE.from_pretrained, copy / "model")
