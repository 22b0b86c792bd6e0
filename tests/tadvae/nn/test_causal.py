"""The causal layer against numpy in float64: the graph, the shifts, and the codes of targets."""

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.nn.causal import CausalConfig, CausalLayer, Intervention

SEEDED = settings(max_examples=40, deadline=None, derandomize=True)
TARGET_GENE = [4, 2, -1, 0]  # the third is no gene
SIGNS = [1, -1, 0]
N_GENES, D_GENE, N_DATASETS = 7, 5, 2


def make_layer(targets="identity", n_factors=4, seed=0, target_gene=TARGET_GENE, signs=SIGNS, **options):
    """A layer in float64 with nothing left at its initial zeros and ones."""
    torch.manual_seed(seed)
    layer = CausalLayer(
        CausalConfig(n_factors=n_factors, targets=targets, hidden=6, **options),
        torch.tensor(target_gene, dtype=torch.int64),
        torch.tensor(signs),
        N_DATASETS,
        D_GENE,
    ).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def embedding(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N_GENES, D_GENE, generator=generator, dtype=torch.float64)


def intervention(rows, n_bags):
    """From (bag, target, modality, dataset) rows."""
    bag, target, modality, dataset = (
        torch.tensor([row[i] for row in rows], dtype=torch.int64) for i in range(4)
    )
    return Intervention(target, modality, dataset, bag, n_bags)


def shift_of_one(layer, genes, temperature, target, modality, dataset):
    """v = b · s of one target (and its free part), in numpy, from the equation."""
    p = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    if layer.config.targets == "identity":
        code = np.eye(len(TARGET_GENE))[target]
        size = p["size"][target]
    else:
        named = target < len(TARGET_GENE)
        gene = TARGET_GENE[target] if named else target - len(TARGET_GENE)
        code = genes[gene].numpy() if gene >= 0 else np.zeros(D_GENE)
        code = code + p["own"][target] if named else code
        size = (p["size_of_code.weight"] @ code + p["size_of_code.bias"]).item()
    hidden = p["assign.0.weight"] @ code + p["assign.0.bias"]
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    logits = temperature * (p["assign.2.weight"] @ hidden + p["assign.2.bias"])
    b = np.exp(logits - logits.max())
    sign = -1.0 if SIGNS[modality] < 0 else 1.0
    free = p["free.weight"] @ code if layer.config.shift == "free" else 0.0
    return sign * math.exp(p["modality"][modality] + p["dataset"][dataset]) * (size * b / b.sum() + free)


row = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2), st.integers(0, 1))
row_of_any_gene = st.tuples(
    st.integers(0, 2), st.integers(0, 3 + N_GENES), st.integers(0, 2), st.integers(0, 1)
)


def check_shifts(targets, rows, temperature, seed):
    """Σ_i v_i + Σ_{i<j} Q (P v_i ⊙ P v_j) of each bag, with and without the second sum."""
    genes = embedding()
    for shift, interaction in product(("assigned", "free"), ("additive", "pairwise")):
        layer = make_layer(targets, seed=seed, shift=shift, interaction=interaction, interaction_rank=3)
        each = [(bag, shift_of_one(layer, genes, temperature, *one)) for bag, *one in rows]
        expected = np.zeros((3, 4))
        for bag, v in each:
            expected[bag] += v
        if interaction == "pairwise":
            P, Q = (part.weight.detach().numpy() for part in (layer.pair_in, layer.pair_out))
            for (bag, v), (other, w) in combinations(each, 2):
                if bag == other:
                    expected[bag] += Q @ ((P @ v) * (P @ w))
        found = layer.shifts(intervention(rows, 3), genes, temperature).detach().numpy()
        scale = max(1.0, np.abs(expected).max(), max((np.abs(v).max() ** 2 for _, v in each), default=0.0))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * scale)


@SEEDED
@given(st.lists(row, max_size=6), st.floats(0.1, 20), st.integers(0, 99))
def test_shifts_of_targets_by_identity(rows, temperature, seed):
    check_shifts("identity", rows, temperature, seed)


@SEEDED
@given(st.lists(row_of_any_gene, max_size=6), st.floats(0.1, 20), st.integers(0, 99))
def test_shifts_of_targets_by_gene(rows, temperature, seed):
    check_shifts("gene", rows, temperature, seed)


@pytest.mark.parametrize("targets", ["identity", "gene"])
def test_free_shifts_and_interactions_start_at_zero(targets):
    plan = intervention([(0, 1, 1, 0), (0, 3, 0, 1), (0, 2, 2, 1)], 1)
    layer = make_layer(targets, shift="free", interaction="pairwise")
    with torch.no_grad():
        layer.free.weight.zero_()
        layer.pair_out.weight.zero_()
    published = make_layer(targets)
    published.load_state_dict(layer.state_dict(), strict=False)
    assert torch.equal(layer.shifts(plan, embedding(), 2.0), published.shifts(plan, embedding(), 2.0))
    fresh = CausalLayer(
        CausalConfig(targets=targets, shift="free", interaction="pairwise"),
        torch.tensor(TARGET_GENE),
        torch.tensor(SIGNS),
        N_DATASETS,
        D_GENE,
    )
    assert not fresh.free.weight.any()
    assert not fresh.pair_out.weight.any()


@pytest.mark.parametrize("targets", ["identity", "gene"])
def test_interactions_are_of_pairs_alone(targets):
    layer, genes = make_layer(targets, interaction="pairwise"), embedding()
    without = make_layer(targets)
    without.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("pair")})
    single, double = intervention([(0, 1, 0, 0)], 1), intervention([(0, 1, 0, 0), (0, 3, 0, 0)], 1)
    torch.testing.assert_close(layer.shifts(single, genes, 1.0), without.shifts(single, genes, 1.0))
    assert not torch.allclose(layer.shifts(double, genes, 1.0), without.shifts(double, genes, 1.0))
    swapped = intervention([(0, 3, 0, 0), (0, 1, 0, 0)], 1)
    torch.testing.assert_close(layer.shifts(double, genes, 1.0), layer.shifts(swapped, genes, 1.0))


@SEEDED
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 99))
def test_solves_the_graph(n_factors, n_cells, seed):
    layer = make_layer(n_factors=n_factors, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n_cells, n_factors, generator=generator, dtype=torch.float64)
    shift = torch.randn(n_cells, n_factors, generator=generator, dtype=torch.float64)
    G = np.triu(layer.graph.detach().numpy(), 1)
    np.testing.assert_array_equal(layer.adjacency().detach().numpy(), G)
    inverse = np.linalg.inv(np.eye(n_factors) - G)
    u = layer(z + shift)
    np.testing.assert_allclose(u.detach().numpy(), (z + shift).numpy() @ inverse, rtol=1e-9, atol=1e-9)

    # dL = Rᵀ du and du = u dG (I − G)⁻¹, of which the strict upper triangle can move.
    R = torch.randn(n_cells, n_factors, generator=generator, dtype=torch.float64)
    (u * R).sum().backward()
    expected = np.triu(u.detach().numpy().T @ (R.numpy() @ inverse.T), 1)
    np.testing.assert_allclose(layer.graph.grad.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert not torch.tril(layer.graph.grad).any()


def test_an_effect_runs_from_row_to_column():
    layer = make_layer(n_factors=3)
    with torch.no_grad():
        layer.graph.copy_(torch.tensor([[9.0, 2.0, 0.0], [9.0, 9.0, 3.0], [9.0, 9.0, 9.0]]))
    z = torch.eye(3, dtype=torch.float64)
    expected = [[1.0, 2.0, 6.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]]
    assert layer(z).tolist() == expected


@pytest.mark.parametrize("targets", ["identity", "gene"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_any_number_of_targets_is_additive(targets, n):
    layer, genes = make_layer(targets), embedding()
    together = [(0, t, t % 3, 1) for t in range(n)]
    apart = [(t, t, t % 3, 1) for t in range(n)]
    shift = layer.shifts(intervention(together, 1), genes, 2.0)
    each = layer.shifts(intervention(apart, n), genes, 2.0)
    torch.testing.assert_close(shift[0], each.sum(0))
    z = torch.ones(1, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(z + shift) - layer(z), (layer(z + each) - layer(z)).sum(0, keepdim=True))


@pytest.mark.parametrize("targets", ["identity", "gene"])
def test_modality_decides_the_sign(targets):
    layer, genes = make_layer(targets), embedding()
    with torch.no_grad():
        layer.modality.fill_(0.3)
    # one at a time: the rows of one matrix product differ in their last bits on some processors
    up, down, unsigned = (
        layer.shifts(intervention([(0, 1, modality, 0)], 1), genes, 1.0) for modality in range(3)
    )
    assert up.abs().min() > 0
    assert torch.equal(up, -down)
    assert torch.equal(up, unsigned)  # a modality without a sign is not the opposite of anything
    *_, none = layer.shifts(intervention([(0, 1, 0, 0), (1, 1, 1, 0), (2, 1, 2, 0)], 4), genes, 1.0)
    assert not none.any()


def test_modalities_and_datasets_scale():
    layer, genes = make_layer(), embedding()
    shifts = layer.shifts(intervention([(0, 1, 0, 0), (1, 1, 0, 1), (2, 1, 2, 0)], 3), genes, 1.0)
    by_dataset = torch.exp(layer.dataset[1] - layer.dataset[0])
    by_modality = torch.exp(layer.modality[2] - layer.modality[0])
    torch.testing.assert_close(shifts[1], shifts[0] * by_dataset)
    torch.testing.assert_close(shifts[2], shifts[0] * by_modality)


def test_published_start():
    """One-hot codes of size 1 acting at full strength: no scale by modality or dataset at the start."""
    torch.manual_seed(0)
    layer = CausalLayer(CausalConfig(), torch.tensor(TARGET_GENE), torch.tensor(SIGNS), N_DATASETS, D_GENE)
    genes = embedding().float()
    shifts = layer.shifts(intervention([(0, 0, 0, 0), (1, 1, 1, 1)], 2), genes, 1.0)
    torch.testing.assert_close(shifts.sum(1), torch.tensor([1.0, -1.0]))
    assert layer.graph.std().item() == pytest.approx(0.1, rel=0.1)


def test_temperature_sharpens():
    layer = make_layer()
    codes = torch.eye(4, dtype=torch.float64)
    soft, sharp = layer.assignment(codes, 1.0), layer.assignment(codes, 1e4)
    torch.testing.assert_close(soft.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(sharp, torch.nn.functional.one_hot(soft.argmax(1), 4).double())
    torch.testing.assert_close(layer.assignment(codes, 0.0), torch.full((4, 4), 0.25, dtype=torch.float64))


def test_codes():
    genes = embedding()
    identity, by_gene = make_layer("identity"), make_layer("gene")
    assert torch.equal(identity.codes(torch.tensor([3, 0]), genes), torch.eye(4, dtype=torch.float64)[[3, 0]])
    found = by_gene.codes(torch.tensor([0, 2, 4, 10]), genes)
    expected = [genes[4] + by_gene.own[0], by_gene.own[2], genes[0], genes[6]]
    torch.testing.assert_close(found, torch.stack(expected))


def test_an_untested_gene_acts_by_its_embedding():
    layer, genes = make_layer("gene"), embedding().requires_grad_()
    untested = 4 + 5  # gene 5
    shift = layer.shifts(intervention([(0, untested, 0, 0)], 1), genes, 1.0)
    (shift * torch.arange(4)).sum().backward()
    assert genes.grad[5].all()
    assert not genes.grad[[0, 1, 2, 3, 4, 6]].any()
    assert not layer.own.grad.any()

    with torch.no_grad():
        layer.own[1] = 0.0  # target 1 is gene 2, without a correction of its own
    both = layer.shifts(intervention([(0, 1, 0, 0), (1, 4 + 2, 0, 0)], 2), genes, 1.0)
    torch.testing.assert_close(both[0], both[1])


def test_identity_knows_no_untested_gene():
    with pytest.raises(RuntimeError):
        make_layer("identity").shifts(intervention([(0, 9, 0, 0)], 1), embedding(), 1.0)


@pytest.mark.parametrize("targets", ["identity", "gene"])
@pytest.mark.parametrize("options", [{}, {"shift": "free", "interaction": "pairwise"}], ids=["plain", "all"])
def test_no_targets_at_all(targets, options):
    """Screens without perturbations still have activities; warnings are errors here."""
    layer = make_layer(targets, target_gene=[], signs=[], **options)
    shifts = layer.shifts(intervention([], 2), embedding(), 1.0)
    assert shifts.tolist() == [[0.0] * 4] * 2
    (layer(shifts + 1.0).sum() + 0.0 * shifts.sum()).backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_no_targets_but_a_gene_is_asked_for():
    layer, genes = make_layer("gene", target_gene=[], signs=[0]), embedding()
    shift = layer.shifts(intervention([(0, 3, 0, 0)], 1), genes, 1.0)
    assert shift.all()
    assert torch.equal(layer.codes(torch.tensor([3]), genes), genes[[3]])


@pytest.mark.parametrize("targets", ["identity", "gene"])
def test_single_precision(targets):
    layer, genes = make_layer(targets), embedding()
    plan, z = (
        intervention([(0, 1, 1, 0), (0, 3, 0, 1), (1, 2, 2, 1)], 2),
        torch.ones(2, 4, dtype=torch.float64),
    )
    expected = layer(z + layer.shifts(plan, genes, 3.0)).detach()
    found = layer.float()(z.float() + layer.shifts(plan, genes.float(), 3.0))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
