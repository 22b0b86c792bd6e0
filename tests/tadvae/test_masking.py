"""Masking strategies: activities and gradients against dense float64 references of their equations."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tadvae.batch import PackedCells
from tadvae.nn.edges import EdgeTable
from tadvae.nn.masking import PathwayConfig, pathway_layer
from tadvae.pathways.membership import Membership

SEEDED = settings(max_examples=40, deadline=None, derandomize=True)
CONFIGS = {
    "hard, learned, one head": PathwayConfig(d_embed=4, n_heads=1, pathway_init="learned"),
    "hard, learned, two heads": PathwayConfig(d_embed=8, n_heads=2, pathway_init="learned"),
    "hard, members, four heads": PathwayConfig(d_embed=8, n_heads=4, pathway_init="members"),
    "linear": PathwayConfig(masking="linear"),
    "linear, leaking": PathwayConfig(masking="linear", leak=0.3),
    "linear, dense": PathwayConfig(masking="linear", leak=1.0),
}
HARD = [name for name in CONFIGS if name.startswith("hard")]
LEAKING = [name for name, config in CONFIGS.items() if config.leak]
TIGHT = [name for name in CONFIGS if name not in LEAKING]


@dataclass
class Problem:
    """Ragged cells over a mask; a cell is a list of (gene, value)."""

    mask: np.ndarray  # (P, G) bool
    cells: list[list[tuple[int, float]]]
    seed: int

    @property
    def membership(self):
        pathway, gene = np.nonzero(self.mask)
        ids = [f"P{p}" for p in range(len(self.mask))]
        return Membership(ids, ids, pathway, gene, self.mask.shape[1])

    def layer(self, config):
        torch.manual_seed(self.seed)
        layer = pathway_layer(config, EdgeTable(self.membership, self.mask.shape[1]), self.mask.shape[1])
        torch.nn.init.normal_(layer.bias)
        return layer

    def packed(self, dtype=torch.float64):
        tokens = [(g, x, i) for i, cell in enumerate(self.cells) for g, x in cell]
        gene, value, cell = (list(column) for column in zip(*tokens, strict=True)) if tokens else ([],) * 3
        return PackedCells(
            torch.tensor(gene, dtype=torch.int64),
            torch.tensor(value, dtype=dtype, requires_grad=True),
            torch.tensor(cell, dtype=torch.int64),
            len(self.cells),
        )


@st.composite
def problems(draw):
    """Masks with empty pathways and orphan genes; panels that miss pathways; empty and one-gene cells."""
    n_genes, n_pathways = draw(st.integers(1, 10)), draw(st.integers(1, 5))
    genes = st.integers(0, n_genes - 1)
    members = draw(st.lists(st.sets(genes), min_size=n_pathways, max_size=n_pathways))
    mask = np.zeros((n_pathways, n_genes), bool)
    for pathway, chosen in zip(mask, members, strict=True):
        pathway[list(chosen)] = True
    panel = draw(st.sets(genes, min_size=1))
    value = st.floats(-2, 9, width=32)
    cell = st.dictionaries(st.sampled_from(sorted(panel)), value).map(lambda c: sorted(c.items()))
    return Problem(mask, draw(st.lists(cell, min_size=1, max_size=6)), draw(st.integers(0, 1000)))


CORNERS = Problem(
    mask=np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]], bool),
    cells=[[(0, 1.5), (1, 2.0), (3, 0.5)], [], [(1, 3.0)], [(5, 4.0)], [(0, 1.0), (2, 1.0), (4, 9.0)]],
    seed=0,
)
"""No gene in pathway 2; gene 5 in no pathway; an empty cell, a cell of one gene, one of the orphan alone."""


def dense_hard(layer, mask, cells):
    """softmax(QKᵀ/√d_head + M_logits) V of each cell and head; activity (B, P), contributions (B, P, G)."""
    M, h = torch.from_numpy(mask), layer.config.n_heads
    d_head = layer.config.d_embed // h
    query = layer.query
    if layer.config.pathway_init == "members":
        size = M.sum(1, keepdim=True).clamp(min=1)
        query = query + M.to(query) @ layer.gene / size  # (P, d)
    Q = query @ layer.w_query.weight.T  # (P, d)
    shares = []
    for i in range(cells.n_cells):
        here = cells.cell == i
        genes = cells.gene_ids[here]
        X = layer.gene[genes] * cells.values[here][:, None]  # (n, d): E ⊙ x
        K, V = X @ layer.w_key.weight.T, X @ layer.w_value.weight.T  # (n, d)
        logits = torch.zeros(M.shape, dtype=Q.dtype).masked_fill(~M, -torch.inf)[:, genes]  # (P, n)
        live = M[:, genes].any(1)
        share = torch.zeros(M.shape, dtype=Q.dtype)
        for head in range(h):
            at = slice(head * d_head, (head + 1) * d_head)
            S = Q[live][:, at] @ K[:, at].T / d_head**0.5 + logits[live]
            read = layer.readout[live][:, at] @ V[:, at].T  # (P', n)
            part = torch.zeros(int(live.sum()), M.shape[1], dtype=Q.dtype)
            part = part.index_add(1, genes, torch.softmax(S, dim=1) * read)
            share = share.index_add(0, live.nonzero()[:, 0], part)
        shares.append(share)
    shares = torch.stack(shares)  # (B, P, G)
    return shares.sum(2) + layer.bias, shares


def dense_linear(layer, mask, cells):
    """x @ (W∘M_λ)ᵀ + b; contributions of the members only."""
    M, n_genes = torch.from_numpy(mask), mask.shape[1]
    W = torch.zeros(M.shape, dtype=layer.weight.dtype)
    if layer.config.leak:
        W = layer.outside.T
    W = W.index_put((layer.edges.pathway, layer.edges.gene), layer.weight)  # (P, G)
    X = torch.zeros(cells.n_cells, n_genes, dtype=W.dtype)
    X = X.index_put((cells.cell, cells.gene_ids), cells.values)  # (B, G)
    M_leak = torch.full(M.shape, layer.config.leak, dtype=W.dtype).masked_fill(M, 1.0)
    return X @ (W * M_leak).T + layer.bias, X[:, None] * (W * M)[None]


def dense(layer, mask, cells):
    reference = dense_hard if layer.config.masking == "hard" else dense_linear
    return reference(layer, mask, cells)


def derivatives(activity, layer, cells, seed):
    """Gradients of a random sum of the activities, by parameter name; None counts as zero."""
    weight = torch.randn(activity.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leaves = {**dict(layer.named_parameters()), "values": cells.values}
    loss = (activity * weight.to(activity.dtype)).sum()
    found = torch.autograd.grad(loss, leaves.values(), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def assert_same(found, expected, tolerance, what):
    assert not found.isnan().any(), what
    error = (found.double() - expected).abs().max() if expected.numel() else torch.zeros(())
    scale = expected.abs().max().clamp(min=1.0) if expected.numel() else 1.0
    assert error <= tolerance * scale, f"{what}: off by {error:.3g}, scale {scale:.3g}"


def check(problem, config, dtype, tolerance):
    layer, cells = problem.layer(config).to(dtype), problem.packed(dtype)
    exact = copy.deepcopy(layer).double()
    exact_cells = problem.packed()
    expected, _ = dense(exact, problem.mask, exact_cells)
    gradients = derivatives(expected, exact, exact_cells, problem.seed)
    for _ in range(2):  # nothing is kept from call to call
        activity = layer(cells)
        assert activity.shape == (len(problem.cells), len(problem.mask))
        assert activity.dtype == dtype
        assert_same(activity, expected, tolerance, "activity")
        for name, found in derivatives(activity, layer, cells, problem.seed).items():
            assert_same(found, gradients[name], tolerance, f"gradient of {name}")


@pytest.mark.parametrize("name", CONFIGS)
@SEEDED
@given(problems())
def test_equation_in_float64(name, problem):
    check(problem, CONFIGS[name], torch.float64, 1e-10)


@pytest.mark.parametrize("name", CONFIGS)
@SEEDED
@given(problems())
def test_equation_in_float32(name, problem):
    check(problem, CONFIGS[name], torch.float32, 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_equation_on_corner_cases(name):
    check(CORNERS, CONFIGS[name], torch.float64, 1e-12)
    check(Problem(CORNERS.mask, [[], []], 1), CONFIGS[name], torch.float64, 1e-12)
    check(Problem(np.zeros((2, 3), bool), CORNERS.cells[2:3], 2), CONFIGS[name], torch.float64, 1e-12)


@pytest.mark.parametrize("name", CONFIGS)
@SEEDED
@given(problems())
def test_contributions_are_exact(name, problem):
    layer, cells = problem.layer(CONFIGS[name]).double(), problem.packed()
    parts = layer.contributions(cells)
    _, expected = dense(layer, problem.mask, cells)
    n_pathways = len(problem.mask)
    found = np.zeros((len(problem.cells), *problem.mask.shape))
    pairs = set()
    for pair in range(len(parts.value)):
        token, slot = int(parts.edges.token[pair]), int(parts.edges.slot[pair])
        cell, pathway, gene = slot // n_pathways, slot % n_pathways, int(cells.gene_ids[token])
        assert cell == cells.cell[token]
        assert problem.mask[pathway, gene]  # from members alone
        found[cell, pathway, gene] = parts.value[pair].item()
        pairs.add((cell, pathway, gene))
    assert len(pairs) == len(parts.value)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-11)
    if name not in LEAKING:
        np.testing.assert_allclose(found.sum(2), (layer(cells) - layer.bias).detach().numpy(), atol=1e-11)


@pytest.mark.parametrize("name", TIGHT)
def test_without_an_expressed_member_the_activity_is_the_bias(name):
    layer, cells = CORNERS.layer(CONFIGS[name]), CORNERS.packed(torch.float32)
    activity = layer(cells)
    expressed = torch.zeros(len(CORNERS.cells), CORNERS.mask.shape[1], dtype=torch.bool)
    expressed[cells.cell, cells.gene_ids] = True
    silent = ~(expressed[:, None] & torch.from_numpy(CORNERS.mask)[None]).any(2)  # (B, P)
    assert silent.sum() == 13
    assert torch.equal(activity[silent], layer.bias.expand(len(activity), -1)[silent])
    assert not torch.isclose(activity, layer.bias.expand_as(activity))[~silent].any()
    activity[silent].sum().backward()
    for parameter in (p for p in (*layer.parameters(), cells.values) if p is not layer.bias):
        assert parameter.grad is None or not parameter.grad.any()


def test_a_lone_member_gets_all_attention():
    layer = CORNERS.layer(CONFIGS["hard, learned, two heads"]).double()
    activity = layer(CORNERS.packed())
    value = layer.gene[1] * 3.0 @ layer.w_value.weight.T  # cell 2 expresses gene 1 alone
    for pathway in (0, 3):
        torch.testing.assert_close(activity[2, pathway], value @ layer.readout[pathway] + layer.bias[pathway])


@pytest.mark.parametrize("name", HARD)
def test_large_values_do_not_overflow(name):
    cells = [[(0, 1e4), (1, 1e4), (2, -1e4)], [(3, 3e4), (4, 1.0)]]
    problem = Problem(CORNERS.mask, cells, 3)
    layer, packed = problem.layer(CONFIGS[name]), problem.packed(torch.float32)
    activity = layer(packed)
    activity.sum().backward()
    assert activity.isfinite().all()
    assert all(p.grad.isfinite().all() for p in (*layer.parameters(), packed.values))


@pytest.mark.parametrize("name", LEAKING)
def test_weights_of_members_never_leak(name):
    layer, cells = CORNERS.layer(CONFIGS[name]), CORNERS.packed(torch.float32)
    layer(cells).sum().backward()
    assert not layer.outside.grad.T[torch.from_numpy(CORNERS.mask)].any()
    assert layer.outside.grad[5].any()  # a gene of no pathway speaks through the leak alone


@SEEDED
@given(problems())
def test_edge_table_is_the_mask(problem):
    table = EdgeTable(problem.membership, problem.mask.shape[1])
    rebuilt = np.zeros_like(problem.mask)
    rebuilt[table.pathway, table.gene] = True
    np.testing.assert_array_equal(rebuilt, problem.mask)
    assert table.n_edges == problem.mask.sum()
    assert not table.state_dict()  # rebuilt from the vocabulary, not saved


@pytest.mark.parametrize(
    ("settings_", "about"),
    [({"d_embed": 10, "n_heads": 4}, "multiple of n_heads"), ({"leak": 0.1}, "belongs to masking")],
)
def test_config_refuses(settings_, about):
    with pytest.raises(ValidationError, match=about):
        PathwayConfig(**settings_)
