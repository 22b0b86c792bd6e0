"""The loss without decoded cells against the loss that decodes them, and both products with a table."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.data.batches import Batch
from tadvae.nn import linear_cells
from tadvae.nn.linear_cells import times
from tadvae.nn.losses import LossConfig, Schedule
from tadvae.nn.network import ModelConfig, TADVAEModule
from tadvae.nn.packed import CellRows

LOSS = LossConfig(alpha=Schedule(high=0.7), mean_match=0.4)
BIASED = LossConfig(alpha=Schedule(high=0.7), mmd="biased", sigma=20.0)


def rows_of(values):
    """Rows of an array, (n, G)."""
    row, column = values.nonzero(as_tuple=True)
    starts = torch.searchsorted(row, torch.arange(len(values) + 1))
    return CellRows(values, column, values[row, column], starts)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 70), st.floats(0, 1), st.integers(0, 99))
def test_products_by_tokens(n, n_genes, width, share, seed):
    """Rows without tokens, all of the rows or some, and the gradient of the table."""
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(np.where(rng.random((n, n_genes)) < share, rng.random((n, n_genes)), 0.0))
    table = torch.from_numpy(rng.normal(size=(n_genes, width))).requires_grad_()
    part = slice(int(rng.integers(n)), n)
    grad = torch.from_numpy(rng.normal(size=(n - part.start, width)))
    found = times(rows_of(values), table, part)
    (d_found,) = torch.autograd.grad(found, table, grad)
    torch.testing.assert_close(found, values[part] @ table)
    torch.testing.assert_close(d_found, values[part].T @ grad)


def bags_of(small_batch):
    """Bags that share controls beside bags that do not, and sets of several sizes."""
    first, *rest = small_batch.bags
    more = replace(first, bag=4, perturbation=1, cells=first.cells[1:3])
    return Batch(sorted([first, more, *rest], key=lambda bag: (bag.dataset, bag.context)))


@pytest.mark.parametrize("sparse", [0, 1000], ids=["tokens", "rows"])
@pytest.mark.parametrize("loss", [LOSS, BIASED], ids=["unbiased", "biased"])
def test_the_loss_is_that_of_decoded_cells(
    small_vocabulary, small_batch, pack_small, monkeypatch, sparse, loss
):
    monkeypatch.setattr(linear_cells, "SPARSE", sparse)
    torch.manual_seed(0)
    module = TADVAEModule(ModelConfig(), loss, small_vocabulary).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = pack_small(bags_of(small_batch))
    found = module(batch, 9.0, None)
    found[0].backward()
    gradients = {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}
    module.zero_grad()
    monkeypatch.setattr(TADVAEModule, "_by_products", False)
    expected = module(batch, 9.0, None)
    expected[0].backward()
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-12, msg=name)
        assert value.item() != 0.0
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, dict(module.named_parameters())[name].grad, rtol=1e-7, atol=1e-10, msg=name
        )
