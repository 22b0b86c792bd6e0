"""Fine-tuning: what a model knew stays, to the bit where its weights are frozen, and the vocabulary grows."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from local_conversion import convert_locally
from small_screens import small_config

from tadvae.base.checksums import sha256
from tadvae.base.filesystem import Location
from tadvae.cells.ragged import Cells
from tadvae.data.build_vocabulary import context_rows
from tadvae.data.reader import CellReader, load_controls
from tadvae.data.store_of_model import StoreOfModel, open_store
from tadvae.data.views import views_of
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.tadvae import TADVAE
from tadvae.nn.causal import Intervention
from tadvae.nn.growth import grow, places_of_edges, rows_of
from tadvae.nn.network import TADVAEModule
from tadvae.nn.packed import PackedCells
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.fit import fit
from tadvae.training.former_weights import FormerWeights, former_genes
from tadvae.training.learner import build_module
from tadvae.training.prepare import prepare_training
from tadvae.training.pretrained import Pretrained

pytestmark = pytest.mark.usefixtures("one_thread")


def fine_config(place, *settings: str) -> ExperimentConfig:
    base = Pretrained.load(str(place / "up-model")).settings()
    return ExperimentConfig.load(None, ["train.epochs=1", *settings], base)


@pytest.fixture(scope="module")
def place(screens_apart):
    return screens_apart


@pytest.fixture(scope="module")
def former(place) -> TADVAE:
    return TADVAE.from_pretrained(place / "up-model")


@pytest.fixture(scope="module")
def fine(place) -> TADVAE:
    model, _ = fit(Store.open(str(place / "down")), fine_config(place, "split.kind=none"))
    model.save_pretrained(place / "fine")
    return TADVAE.from_pretrained(place / "fine")


def test_the_vocabulary_grows(place, former, fine):
    old, new, down = former.vocabulary, fine.vocabulary, Store.open(str(place / "down"))
    assert new.hash == Store.open(str(place / "both")).manifest.vocabulary_hash
    assert [entry.name for entry in new.datasets] == ["up", "down"]
    keys = [words.genes["gene"].to_numpy() for words in (old, new)]
    assert set(keys[0]) < set(keys[1])
    for name in ("datasets", "contexts", "targets", "modalities"):
        entries = getattr(old, name)
        kept = getattr(new, name)[: len(entries)]
        assert [getattr(e, "name", e) for e in kept] == [getattr(e, "name", e) for e in entries]
    np.testing.assert_array_equal(keys[0][old.datasets[0].genes], keys[1][new.datasets[0].genes])
    seen = {t.name for t in new.targets if t.seen}
    assert seen == {t.name for t in old.targets} | {t for each in down.perturbations["targets"] for t in each}
    assert new.origin.name == "up-model"
    assert new.origin.sha256 == sha256((place / "up-model/model.safetensors").read_bytes())
    card = (place / "fine/README.md").read_text()
    said = "fine-tuned (frozen former weights) from the model up-model (sha256 of its weights"
    assert f"{said} {new.origin.sha256[:16]}" in card
    assert "fine-tuned" not in (place / "up-model/README.md").read_text()


def test_new_genes_join_the_pathways_that_list_them(place, former, fine):
    old, new = former.vocabulary.membership, fine.vocabulary.membership
    assert new.pathway_ids == old.pathway_ids
    keys = fine.vocabulary.genes["gene"].to_numpy()
    listed = {}
    for line in (place / "screens/pathways.gmt").read_text().splitlines():
        name, _, *genes = line.split("\t")
        listed[name] = set(genes)
    known = former_genes(fine.vocabulary)
    was = {(p, former.vocabulary.genes["gene"][g]) for p, g in zip(old.pathway, old.gene, strict=True)}
    for p, gene, late in zip(new.pathway, new.gene, new.late, strict=True):
        assert keys[gene] in listed[new.pathway_ids[p]]
        assert late == ((p, keys[gene]) not in was)
        assert not (late and known[gene])
    panel = fine.vocabulary.datasets[1].genes
    joined = {(p, keys[g]) for p, g in zip(new.pathway, new.gene, strict=True)}
    for p, name in enumerate(new.pathway_ids):
        assert {(p, keys[g]) for g in panel if keys[g] in listed[name]} <= joined
    assert new.late.any()


def network_of(model: TADVAE, words: Vocabulary, store: Store, names: list[str]):
    """What the network alone predicts for cells of the former store, and their activities."""
    opened = StoreOfModel(store, words)
    reader = CellReader(opened, views_of(opened, words), model.config.split)
    (key, cells), *_ = load_controls(reader, opened.bags, 20).items()
    model.predictor.effects = None
    genes = words.datasets[0].genes
    asked = [[(words.target_index[name], words.datasets[0].modality)] for name in names]
    profile = words.contexts[context_rows(opened, words)[key]].profile
    cells_after = model.predictor.counterfactual(cells, genes, profile, 0, asked, 0)
    packed = PackedCells.of(cells, torch.device("cpu"), panels=[genes])
    return cells_after, model.module.pathway(packed).detach().numpy()


def test_frozen_weights_predict_the_former_screens_as_before(place, former):
    model, _ = fit(Store.open(str(place / "down")), fine_config(place, "split.kind=none"))
    before = TADVAE.from_pretrained(place / "up-model")
    names = [target.name for target in before.vocabulary.targets][:3]
    up = Store.open(str(place / "up"))
    for old, new in zip(
        network_of(before, before.vocabulary, up, names),
        network_of(model, model.vocabulary, up, names),
        strict=True,
    ):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)
    start = prepare_training(Store.open(str(place / "down")), model.config).start
    trained = model.module.state_dict()
    changed = {name for name, value in start.items() if not torch.equal(value, trained[name])}
    assert {"causal.size", "causal.dataset", "decoder.gene"} <= changed <= set(rows_of(model.module))


def test_the_regression_is_that_of_both_screens_together(place, fine):
    config = small_config(place / "screens", "split.kind=none")
    both = prepare_training(Store.open(str(place / "both")), config)
    words = {"both": both.vocabulary, "fine": fine.vocabulary}
    effects = {"both": both.effects, "fine": fine.effects}
    for name in ("up", "down"):
        found = {}
        for kind, vocabulary in words.items():
            d = [entry.name for entry in vocabulary.datasets].index(name)
            row = next(i for i, c in enumerate(vocabulary.contexts) if c.dataset == d)
            entry = vocabulary.datasets[d]
            index, m = vocabulary.target_index, entry.modality
            named = sorted(index)
            asked = [[(index[t], m)] for t in named] + [[(index[t], m) for t in named[:2]]]
            found[kind] = effects[kind].predict(d, row, asked, entry.genes)
        np.testing.assert_allclose(found["fine"], found["both"], rtol=1e-3, atol=2e-4)


MASKINGS = [
    "{masking: members}",
    "{masking: hard, pathway_init: members}",
    "{masking: soft_log, candidates: all}",
    "{masking: soft}",
    "{masking: linear}",
    "{masking: linear, leak: 0.1}",
    "{masking: none, tokens: all}",
]


@pytest.mark.parametrize("targets", ["identity", "gene"])
@pytest.mark.parametrize("pathway", MASKINGS)
def test_every_strategy_grows_and_keeps_what_it_computed(place, former, fine, pathway, targets):
    settings = [f"model.pathway={pathway}", "model.pathway.d_embed=8", "model.pathway.n_heads=2"]
    settings += [f"model.causal={{n_factors: 3, hidden: 8, targets: {targets}, interaction: pairwise}}"]
    config = ExperimentConfig.load(None, [*settings, "model.decoder={d_gene: 8, hidden: 8}"])
    old, new = former.vocabulary, fine.vocabulary
    torch.manual_seed(1)
    before = TADVAEModule(config.model, config.loss, old)
    with torch.no_grad():
        for value in before.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    after = build_module(config, new)
    assert all(
        name in rows_of(after) or value.shape == before.state_dict()[name].shape
        for name, value in after.state_dict().items()
    )
    gene = np.searchsorted(new.genes["gene"].to_numpy(str), old.genes["gene"].to_numpy(str))
    places = {
        "gene": torch.from_numpy(gene),
        "edge": places_of_edges(before.pathway.edges, after.pathway.edges, gene),
        **{kind: torch.arange(len(getattr(old, f"{kind}s"))) for kind in ("target", "dataset")},
        "modality": torch.arange(len(old.modalities)),
    }
    learned = torch.from_numpy(former_genes(new))
    grow(before.state_dict(), after, places, learned)
    assert not after.decoder.gene[~learned].any()
    assert after.decoder.gene[learned].all()
    rng = np.random.default_rng(0)
    panel = old.datasets[0].genes
    expressed = [np.sort(rng.choice(panel, 20, replace=False)) for _ in range(5)]
    cells = Cells(
        np.concatenate(expressed),
        rng.gamma(2.0, 1.0, 100).astype(np.float32),
        np.arange(0, 101, 20),
        np.ones(5),
    )
    moved = replace(cells, gene_ids=gene[cells.gene_ids])
    device = torch.device("cpu")
    found = []
    for module, part, genes in ((before, cells, panel), (after, moved, gene[panel])):
        available = torch.ones(5, before.factors.n_pathways, dtype=torch.bool)
        packed = PackedCells.of(part, device, panels=[genes])
        activity, mean, _ = module.encode(packed, available)
        n = len(old.targets)
        target = torch.arange(n)
        asked = Intervention(
            target, torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64), target // 2, n
        )
        shifts = module.causal.shifts(asked, module.decoder.gene, 2.0)
        values = module.decode(
            module.decoder.hidden(mean + shifts[:1]), torch.from_numpy(genes), torch.zeros(len(genes))
        )
        found.append([activity, mean, shifts, values])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["frozen", "anchored"])
def test_gradients_of_former_weights_by_definition(place, fine, mode):
    config = fine_config(place, f"train.former={mode}", "train.anchor=0.5", "model.pathway.masking=members")
    words = fine.vocabulary
    module = build_module(config, words)
    held = FormerWeights(module, words, config)
    start = {name: value.detach().clone().double() for name, value in module.named_parameters()}
    torch.manual_seed(0)
    known = torch.from_numpy(former_genes(words))
    is_former = {name: torch.ones_like(value, dtype=torch.bool) for name, value in start.items()}
    is_former["decoder.gene"] = known[:, None].expand_as(start["decoder.gene"])
    is_former["decoder.bias"] = known
    is_former["pathway.gene"] = known[:, None].expand_as(start["pathway.gene"])
    n = words.origin
    is_former["causal.size"] = torch.arange(len(words.targets)) < n.n_targets
    for name in ("causal.assign.0.weight", "causal.free.weight"):
        is_former[name] = is_former["causal.size"].expand_as(start[name])
    is_former["causal.dataset"] = torch.arange(len(words.datasets)) < n.n_datasets
    is_former["causal.modality"] = torch.arange(len(words.modalities)) < n.n_modalities
    gradients = {}
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.add_(torch.randn(value.shape))
            value.grad = torch.randn(value.shape)
            gradients[name] = value.grad.clone().double()
    held.hold(module)
    for name, value in module.named_parameters():
        pull = 0.5 * (value.detach().double() - start[name])
        kept = torch.zeros_like(pull) if mode == "frozen" else gradients[name] + pull
        expected = torch.where(is_former[name], kept, gradients[name])
        torch.testing.assert_close(value.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_settings_come_from_the_model_and_schedules_stand_at_their_end(place, former):
    config, before = fine_config(place), former.config
    assert config.model == before.model
    assert config.origin.endswith("up-model")
    at_end = before.loss.temperature.at(before.train.epochs)
    assert {config.loss.temperature.at(epoch) for epoch in (0, 1, 100)} == {at_end}
    assert config.split == ExperimentConfig().split


def test_a_second_fine_tuning_begins_with_the_first(place, fine, refused):
    spec = yaml.safe_load((place / "screens/up.yaml").read_text())
    spec["datasets"][0]["name"] = "again"
    (place / "screens/again.yaml").write_text(yaml.safe_dump(spec))
    convert_locally(place / "screens/again.yaml", Location.of(place / "again"))
    said = refused(lambda: open_store(str(place / "again"), fine.vocabulary))
    assert "dataset 'again' was not in training" in said
    base = Pretrained.load(str(place / "fine")).settings()
    config = ExperimentConfig.load(None, ["train.epochs=1", "split.kind=none"], base)
    prepared = prepare_training(Store.open(str(place / "again")), config)
    assert [entry.name for entry in prepared.vocabulary.datasets] == ["up", "down", "again"]
    assert prepared.vocabulary.origin.n_datasets == 2
    n = len(fine.effects.observed.effects)
    assert len(prepared.effects.observed.effects) == 2 * n - sum(
        fine.effects.observed.conditions.dataset == 1
    )


def test_bad_input_is_refused_with_one_sentence(place, tmp_path, refused):
    down, up = (Store.open(str(place / name)) for name in ("down", "up"))

    def sentence(store, *settings, **changed):
        config = fine_config(place, *settings)
        return refused(lambda: prepare_training(store, config.model_copy(update=changed)))

    assert "dataset 'up' has the name of a dataset of" in sentence(up)
    said = sentence(down, "model.causal.n_factors=5")
    assert re.search(r"model.causal.n_factors: a fine-tuned model keeps .* has 3, asked for 5", said)
    assert "preprocess.normalize: a fine-tuned" in sentence(down, "preprocess.normalize=cpm")
    assert "not a model folder" in sentence(down, origin=str(tmp_path))
    other = SimpleNamespace(folder="S", reference="human", manifest=down.manifest, genes=down.genes)
    model = Pretrained.load(str(place / "up-model"))
    assert "gene reference 'human'" in refused(lambda: model.require_fits(other))
    other = SimpleNamespace(
        folder="S", reference="none", manifest=down.manifest, genes=down.genes.assign(gene="other")
    )
    assert "none of its genes is known" in refused(lambda: model.require_fits(other))
    entries = [entry.model_copy(update={"values": "effects"}) for entry in down.manifest.datasets]
    other = SimpleNamespace(
        folder="S",
        reference="none",
        manifest=down.manifest.model_copy(update={"datasets": entries}),
        genes=down.genes,
    )
    assert "learned from expression only" in refused(lambda: model.require_fits(other))
    model.model.effects.observed = None
    assert "did not keep the mean effects" in refused(lambda: model.observed(model.model.vocabulary))
