"""The training loss of a batch against loops over cells, genes and pairs in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tadvae.cells.ragged import Cells
from tadvae.data.batches import Batch
from tadvae.nn.causal import CausalConfig, Intervention
from tadvae.nn.decoder import DecoderConfig
from tadvae.nn.losses import LossConfig, Schedule
from tadvae.nn.network import ModelConfig, TADVAEModule
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.base import PathwayConfig

K = 4
LOSS = LossConfig(
    alpha=Schedule(high=0.7, end=4),
    beta=Schedule(high=0.3, end=6),
    temperature=Schedule(low=1.0, high=3.0, end=4),
    sparsity=0.05,
    mean_match=0.4,
)
BIASED = LossConfig(**{**LOSS.model_dump(), "mmd": "biased", "sigma": 20.0})
HARD = PathwayConfig(masking="hard", d_embed=8, n_heads=2, pathway_init="learned")
LINEAR = PathwayConfig(masking="linear")
LEAKING = PathwayConfig(masking="linear", leak=0.2)
DIRECT = {"decode": "direct", "counterfactual": "mean"}


def build(vocabulary, pathway=HARD, targets="identity", loss=LOSS, seed=0, trained=True, **decoder):
    """A module in float64; ``trained``: with nothing left at its initial zeros."""
    torch.manual_seed(seed)
    config = ModelConfig(
        pathway=pathway,
        causal=CausalConfig(n_factors=K, hidden=6, targets=targets),
        decoder=DecoderConfig(d_gene=5, hidden=6, **decoder),
    )
    module = TADVAEModule(config, loss, vocabulary).double()
    if trained:
        for parameter in module.parameters():
            with torch.no_grad():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def noise(seed=5):
    return torch.Generator().manual_seed(seed)


def mmd_by_loops(x, y, settings):
    def distance(a, b):
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))

    if settings.mmd == "biased":
        bandwidths = [settings.sigma / 32 * 2**i for i in range(10)]
    else:
        pairs = sorted(distance(y[i], y[j]) for i in range(len(y)) for j in range(i))
        bandwidths = [pairs[(len(pairs) - 1) // 2] * 2.0**i for i in range(-2, 3)]  # the lower median

    def mean(a, b, unbiased):
        values = [
            sum(math.exp(-distance(p, q) / width) for width in bandwidths)
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (unbiased and i == j)
        ]
        return sum(values) / len(values)

    unbiased = settings.mmd == "unbiased"
    return mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, False)


def loss_by_loops(module, vocabulary, batch, interventions, context_row, epoch, seed):
    """Terms of the loss from the store's batch, one cell after the other.

    Of the module's own parts it uses the pathway layer, the loadings and the shift of a single target,
    each of which has its own test; and the parameters.
    """
    settings, decoder = module.loss_config, module.config.decoder
    G = np.triu(module.causal.graph.detach().numpy(), 1)
    inverse = np.linalg.inv(np.eye(K) - G)
    D, b = module.decoder.gene.detach().numpy(), module.decoder.bias.detach().numpy()

    def values(u, genes, profile):
        h = (module.decoder.linear(u) + module.decoder.network(u)).numpy()
        offset = profile if decoder.decode == "residual" else np.zeros(len(genes))
        return [h @ D[g] + b[g] + offset[j] for j, g in enumerate(genes)]

    latent = []  # of every encoded cell, in order
    for bag in batch.bags:
        encoded = bag.cells if bag.controls is None else bag.controls
        available = torch.from_numpy(vocabulary.available[[bag.dataset]])
        for i in range(len(encoded)):
            packed = PackedCells.of(encoded[i : i + 1])
            activity = module.pathway(replace(packed, values=packed.values.double()))
            latent.append([part[0] for part in module.factors(activity, available)])
    eps = torch.randn(len(latent), K, generator=noise(seed), dtype=torch.float64)
    z = [
        mean + math.e ** (0.5 * log_variance) * e for (mean, log_variance), e in zip(latent, eps, strict=True)
    ]

    reconstruction, matching, discrepancy, at = [], [], [], 0
    for bag in batch.bags:
        genes = vocabulary.datasets[bag.dataset].genes.tolist()
        profile = vocabulary.contexts[context_row[bag.dataset, bag.context]].profile.astype(np.float64)
        shift = torch.zeros(K, dtype=torch.float64)
        for target, modality in interventions[bag.perturbation]:
            t, m, d, first = (torch.tensor([i]) for i in (target, modality, bag.dataset, 0))
            one = Intervention(t, m, d, first, 1)
            shift = shift + module.causal.shifts(one, module.decoder.gene, settings.temperature.at(epoch))[0]
        encoded = bag.cells if bag.controls is None else bag.controls
        predicted, errors = [], []
        for i in range(len(encoded)):
            cell = dict(
                zip(encoded[i : i + 1].gene_ids.tolist(), encoded[i : i + 1].values.tolist(), strict=True)
            )
            before = torch.from_numpy(z[at + i].numpy() @ inverse)
            after = torch.from_numpy((z[at + i] + shift).numpy() @ inverse)
            decoded, moved = values(before, genes, profile), values(after, genes, profile)
            errors += [(decoded[j] - cell.get(g, 0.0)) ** 2 for j, g in enumerate(genes)]
            if decoder.counterfactual == "abduction":
                moved = [cell.get(g, 0.0) + moved[j] - decoded[j] for j, g in enumerate(genes)]
            predicted.append(moved)
        at += len(encoded)
        reconstruction.append(np.mean(errors))
        if bag.controls is None:
            continue
        observed = bag.cells.dense(np.array(genes)).astype(np.float64).tolist()
        gap = np.mean(predicted, axis=0) - np.mean(observed, axis=0)
        matching.append(np.mean(gap**2))
        if len(observed) > 1:
            discrepancy.append(mmd_by_loops(predicted, observed, settings))
    kl = [0.5 * (m**2 + lv.exp() - 1 - lv).sum().item() for m, lv in latent]
    terms = {
        "reconstruction": np.mean(reconstruction),
        "mmd": np.mean(discrepancy),
        "mean_match": np.mean(matching),
        "kl": np.mean(kl),
        "sparsity": np.abs(G).sum(),
    }
    weights = {
        "reconstruction": 1.0,
        "mmd": settings.alpha.at(epoch),
        "mean_match": settings.mean_match,
        "kl": settings.beta.at(epoch),
        "sparsity": settings.sparsity,
    }
    return terms | {"loss": sum(weights[name] * value for name, value in terms.items())}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pathway": HARD.model_copy(update={"pathway_init": "members"}), "loss": BIASED},
        {"pathway": LINEAR, "targets": "gene"},
        {"pathway": LEAKING, "loss": BIASED, **DIRECT},
        {"targets": "gene", "counterfactual": "mean"},
    ],
    ids=["hard", "members, biased", "linear, gene", "leaking, biased, direct", "gene, mean"],
)
@pytest.mark.parametrize("epoch", [0.0, 1.5, 9.0])
def test_loss_equation(small_vocabulary, small_batch, pack_small, small_interventions, options, epoch):
    module = build(small_vocabulary, **options)
    with torch.no_grad():
        expected = loss_by_loops(
            module, small_vocabulary, small_batch, *small_interventions, epoch=epoch, seed=5
        )
        total, terms = module(pack_small(small_batch), epoch, noise())
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-8)
    assert terms["loss"] is total


def test_terms_are_all_there(small_vocabulary, small_batch, pack_small):
    """None of the terms of the comparison above is trivially zero."""
    _, terms = build(small_vocabulary)(pack_small(small_batch), 1.5, noise())
    assert all(abs(value.item()) > 1e-3 for value in terms.values())


def as_rows(rows):
    """The values, which are also those of the tokens."""
    by_token = torch.zeros_like(rows.values)
    for i, row in enumerate(by_token):
        own = slice(rows.starts[i], rows.starts[i + 1])
        row[rows.column[own]] = rows.tokens[own]
    assert torch.equal(by_token, rows.values)
    return rows.values


def test_pack(small_vocabulary, small_batch, pack_small):
    packed, module = pack_small(small_batch), build(small_vocabulary)
    assert packed.cells.n_cells == sum(len(bag.controls or bag.cells) for bag in small_batch.bags)
    assert packed.dataset.tolist() == [0] * 10 + [1] * 3
    screen, means = packed.datasets
    assert (screen.dataset, screen.cells, means.dataset, means.cells) == (0, slice(0, 10), 1, slice(10, 13))
    assert screen.contexts[screen.context].tolist() == [0] * 7 + [1] * 3
    assert screen.perturbed.sets == (
        (slice(0, 4), slice(0, 1)),
        (slice(7, 9), slice(1, 2)),
        (slice(9, 10), slice(2, 3)),
    )
    assert screen.perturbed.context.tolist() == [0, 1, 1]
    assert screen.perturbed.start.tolist() == [[0, 1, 2, 3], [7, 8, 7, 7], [9, 9, 9, 9]]
    assert (screen.perturbed.start_weight > 0).sum(1).tolist() == [4, 2, 1]
    assert torch.equal(screen.perturbed.start_weight.sum(1), torch.ones(3, dtype=torch.float64))
    assert screen.perturbed.mmd_weight.tolist() == [1, 1, 0]
    assert screen.perturbed.n_mmd == 2
    assert means.perturbed.start.tolist() == [[0], [1]]
    assert means.perturbed.n_mmd == 0
    assert packed.start.tolist() == [*screen.perturbed.start.flatten().tolist(), 10, 11]
    assert packed.start_bag.tolist() == [0] * 4 + [2] * 4 + [3] * 4 + [4, 5]
    weights = torch.cat([part.weight for part in packed.datasets])
    expected = [1 / 4] * 4 + [1 / 3] * 3 + [1 / 2] * 2 + [1] * 4  # over cells of a bag, then over bags
    np.testing.assert_allclose(weights, np.array(expected) / 7, rtol=1e-6)
    assert packed.intervention.target.tolist() == [1, 2, 3, 1, 1, 1, 2]
    assert packed.intervention.modality.tolist() == [1, 1, 2, 0, 0, 1, 1]
    assert packed.intervention.dataset.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert packed.intervention.bag.tolist() == [0, 0, 2, 3, 4, 5, 5]
    filled = packed.layout.fill(packed.tokens, module.columns)
    for part in packed.datasets:
        genes = small_vocabulary.datasets[part.dataset].genes
        bags = [bag for bag in small_batch.bags if bag.dataset == part.dataset]
        encoded = Cells.concat([bag.controls or bag.cells for bag in bags])
        found = as_rows(filled.rows(part.encoded))
        np.testing.assert_array_equal(found.float(), encoded.dense(genes))
        found = as_rows(filled.rows(part.perturbed.observed))
        is_cell = part.perturbed.observed_weight.flatten() > 0
        observed = Cells.concat([bag.cells for bag in bags if bag.controls is not None])
        np.testing.assert_array_equal(found[is_cell].float(), observed.dense(genes))
        assert not found[~is_cell].any()


@pytest.mark.parametrize("likelihood", ["gaussian", "negative_binomial"])
def test_shared_controls_are_encoded_once(small_vocabulary, small_batch, pack_small, likelihood):
    """Bags that share controls have the loss of bags with copies of them, but for the mean of the KL."""
    settings = LossConfig(**{**LOSS.model_dump(), "likelihood": likelihood})
    module = build(small_vocabulary, loss=settings)
    first, *rest = [bag for bag in small_batch.bags if bag.dataset == 0]
    own = [bag for bag in rest if bag.context == first.context and bag.controls is None]
    more = replace(first, bag=4, perturbation=1, cells=first.cells[1:3])
    shared = pack_small(Batch([first, more, *own]))
    copied = pack_small(Batch([first, replace(more, controls=first.controls[:]), *own]))
    assert copied.cells.n_cells - shared.cells.n_cells == len(first.controls)
    _, found = module(shared, 1.5, None)
    _, expected = module(copied, 1.5, None)
    for name in ("reconstruction", "mmd", "mean_match", "sparsity"):
        torch.testing.assert_close(found[name], expected[name], msg=name)
    assert found["mmd"].item() != 0.0


def test_half_precision_ends_before_the_differences(small_vocabulary, small_batch, pack_small):
    """Under autocast the MMD of a planted shift is that of single precision within 1 percent."""
    module = build(small_vocabulary, seed=3).float()
    batch = pack_small(small_batch, torch.float32)
    _, expected = module(batch, 9.0, None)
    with torch.autocast("cpu", torch.bfloat16):
        _, found = module(batch, 9.0, None)
    assert found["mmd"].dtype == torch.float32
    assert found["mmd"].item() == pytest.approx(expected["mmd"].item(), rel=0.01)


@pytest.mark.parametrize("pathway", [HARD, LINEAR, LEAKING], ids=["hard", "linear", "leaking"])
@pytest.mark.parametrize("targets", ["identity", "gene"])
@pytest.mark.parametrize("dataset", [0, 1])
def test_no_gene_outside_the_panel_enters(
    small_vocabulary, small_batch, pack_small, pathway, targets, dataset
):
    """Unmeasured genes: no gradient, and whatever their parameters, the same loss to the last bit.

    Two things know genes by identity and are meant to: the queries of ``pathway_init="members"``, and the
    code of a target under ``targets="gene"``. So the first is off here and target genes are left alone.
    """
    module = build(small_vocabulary, pathway, targets)
    batch = pack_small(Batch([bag for bag in small_batch.bags if bag.dataset == dataset]))
    total, _ = module(batch, 9.0, noise())
    total.backward()
    outside = torch.ones(small_vocabulary.n_genes, dtype=torch.bool)
    outside[small_vocabulary.datasets[dataset].genes] = False
    not_a_target = outside.clone()
    not_a_target[[0, 9]] = False
    by_gene = {"decoder.gene": not_a_target if targets == "gene" else outside, "decoder.bias": outside}
    if pathway is HARD:
        by_gene["pathway.gene"] = outside
    else:
        by_gene["pathway.weight"] = outside if pathway is LEAKING else outside[module.pathway.edges.gene]
    parameters = dict(module.named_parameters())
    for name, rows in by_gene.items():
        assert rows.any()
        assert not parameters[name].grad[rows].any(), name
        assert parameters[name].grad[~rows].any(), name
        with torch.no_grad():
            parameters[name][rows] = 1e6
    again, _ = module(batch, 9.0, noise())
    assert torch.equal(again, total)


def test_deterministic_given_the_generator(small_vocabulary, small_batch, pack_small):
    module, batch = build(small_vocabulary), pack_small(small_batch)
    loss, _ = module(batch, 9.0, noise(1))
    torch.manual_seed(99)  # the global generator has no part in it
    assert torch.equal(module(batch, 9.0, noise(1))[0], loss)
    assert not torch.equal(module(batch, 9.0, noise(2))[0], loss)
    mean, _ = module(batch, 9.0, None)
    assert torch.equal(module(batch, 9.0, None)[0], mean)
    other_order = pack_small(Batch(small_batch.bags[::-1]))
    torch.testing.assert_close(module(other_order, 9.0, None)[0], mean)


@pytest.mark.parametrize("loss", [LOSS, BIASED], ids=["unbiased", "biased"])
def test_single_precision(small_vocabulary, small_batch, pack_small, loss):
    module = build(small_vocabulary, loss=loss)
    expected, _ = module(pack_small(small_batch), 9.0, None)
    found, _ = module.float()(pack_small(small_batch, torch.float32), 9.0, None)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("pathway", [HARD, LINEAR, LEAKING], ids=["hard", "linear", "leaking"])
@pytest.mark.parametrize("targets", ["identity", "gene"])
def test_every_parameter_learns(small_vocabulary, small_batch, pack_small, pathway, targets):
    module, batch = build(small_vocabulary, pathway, targets, trained=False), pack_small(small_batch)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        module(batch, 2.0, noise(step))[0].backward()
        assert all(p.grad is not None for p in module.parameters())  # DDP waits for every one
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("targets", ["identity", "gene"])
def test_training_lowers_the_loss(small_vocabulary, small_batch, pack_small, targets):
    module, batch = build(small_vocabulary, targets=targets, trained=False), pack_small(small_batch)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-2)
    losses = []
    for _ in range(40):
        loss, _ = module(batch, 9.0, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_profiles_match_means_instead_of_mmd(small_vocabulary, small_batch, pack_small):
    batch = pack_small(Batch([bag for bag in small_batch.bags if bag.dataset == 1]))
    total, terms = build(small_vocabulary)(batch, 9.0, noise())
    assert terms["mmd"].item() == 0.0
    assert terms["mean_match"].item() > 0.0
    assert total.isfinite()


@pytest.mark.parametrize("targets", ["identity", "gene"])
def test_control_bags_alone(small_vocabulary, small_batch, pack_small, targets):
    module = build(small_vocabulary, targets=targets)
    batch = pack_small(Batch([bag for bag in small_batch.bags if bag.controls is None]))
    total, terms = module(batch, 9.0, noise())
    assert terms["mmd"].item() == terms["mean_match"].item() == 0.0
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("targets", ["identity", "gene"])
def test_no_perturbation_in_any_screen(small_vocabulary, small_batch, pack_small, targets):
    module = build(replace(small_vocabulary, targets=[], modalities=[], signs=[]), targets=targets)
    batch = pack_small(Batch([bag for bag in small_batch.bags if bag.controls is None]))
    total, _ = module(batch, 9.0, noise())
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_state_is_parameters_alone(small_vocabulary):
    """Buffers come from the vocabulary, so weights of another vocabulary cannot bring their own."""
    module = build(small_vocabulary)
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}
