"""The edge table, and the candidates beyond the members."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import CORNERS, problems

from tadvae.nn.candidates import by_shared_pathways, candidate_edges
from tadvae.nn.edges import EdgeTable

SEEDED = settings(max_examples=40, deadline=None, derandomize=True)


@SEEDED
@given(problems(), st.sampled_from([0, 1, 3, "all"]))
def test_edge_table_is_the_mask_and_its_candidates(problem, n):
    candidates = candidate_edges(problem.membership, n)
    table = EdgeTable(problem.membership, problem.mask.shape[1], candidates)
    rebuilt = np.zeros_like(problem.mask)
    member = table.is_member
    rebuilt[table.pathway[member], table.gene[member]] = True
    np.testing.assert_array_equal(rebuilt, problem.mask)
    ends = list(zip(table.gene.tolist(), table.pathway.tolist(), strict=True))
    assert ends == sorted(set(ends))  # sorted by gene, no repeats
    assert table.size.tolist() == problem.mask.sum(1).tolist()
    outside = np.zeros(problem.mask.shape, int)
    np.add.at(outside, (table.pathway[~member], table.gene[~member]), 1)
    assert table.n_candidates().tolist() == outside.sum(1).tolist()
    assert not (outside.astype(bool) & problem.mask).any()
    if n == "all":
        assert table.n_edges == problem.mask.size
    else:
        assert outside.sum(1).max() <= n
    assert not table.state_dict()  # rebuilt from the vocabulary, not saved


@SEEDED
@given(problems())
def test_active_edges_are_those_of_the_tokens(problem):
    cells, table = problem.packed(), EdgeTable(problem.membership, problem.mask.shape[1])
    for pathway in (None, 0):
        edges = table.active(cells, pathway)
        pairs = edges.expand(cells)
        found = sorted(
            (int(cells.cell[t]), int(cells.gene_ids[t]), int(edges.pathway[e]))
            for t, e in zip(pairs.token, pairs.edge, strict=True)
        )
        expected = sorted(
            (i, g, p)
            for i, (_, cell) in enumerate(problem.cells)
            for g, _ in cell
            for p in np.flatnonzero(problem.mask[:, g])
            if pathway is None or p == pathway
        )
        assert found == expected
        assert (
            pairs.slot.tolist()
            == (cells.cell[pairs.token] * len(problem.mask) + edges.pathway[pairs.edge]).tolist()
        )
        assert (edges.genes[edges.gene] == table.gene[edges.edge]).all()
        assert set(edges.genes.tolist()) <= set(cells.gene_ids.tolist())


@SEEDED
@given(problems(), st.integers(1, 4))
def test_candidates_share_pathways_with_the_members(problem, n):
    mask = problem.mask.astype(int)
    shared = mask.T @ mask  # (G, G): pathways that two genes share
    pathway, gene = by_shared_pathways(problem.membership, n)
    for p in range(len(mask)):
        score = {
            g: 1000 * (shared[g] @ mask[p]) ** 2 // mask[:, g].sum()
            for g in range(mask.shape[1])
            if not mask[p, g] and shared[g] @ mask[p]
        }
        expected = sorted(score, key=lambda g: (-score[g], g))[:n]
        assert gene[pathway == p].tolist() == expected


@pytest.mark.parametrize(
    ("candidates", "about"),
    [
        (([0], [6]), r"gene in \[0, 6\)"),
        (([4], [0]), r"pathway in \[0, 4\)"),
        (([-1], [0]), r"pathway in"),
        (([0, 1], [0]), "arrays of shapes"),
    ],
)
def test_explicit_candidates_are_checked(candidates, about):
    with pytest.raises(ValueError, match=about):
        EdgeTable(CORNERS.membership, 6, tuple(map(np.array, candidates)))


def test_explicit_candidates_join_the_members():
    table = EdgeTable(CORNERS.membership, 6, (np.array([2, 0, 0]), np.array([5, 4, 1])))
    others = table.gene[~table.is_member], table.pathway[~table.is_member]
    assert [part.tolist() for part in others] == [[4, 5], [0, 2]]  # (0, 1) is a member already
    moved = table.to("meta")  # buffers follow the module
    assert moved.gene.device.type == moved.is_member.device.type == "meta"


def test_offsets_of_empty_cells():
    cells = CORNERS.packed()
    assert cells.offsets.tolist() == [0, 3, 3, 4, 5, 8]
    assert replace(cells, n_cells=7).offsets.tolist() == [0, 3, 3, 4, 5, 8, 8, 8]
    assert torch.equal(cells.offsets, cells.offsets)
