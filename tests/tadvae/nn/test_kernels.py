"""The CPU kernels: gradcheck, agreement with plain torch, and the same bits from any number of threads."""

import os
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from ragged import CORNERS, Problem, problems

from tadvae.base.errors import UserError
from tadvae.base.numba_jit import kernel
from tadvae.nn import attention
from tadvae.nn.attention import edge_attention, edge_dot, edge_sum, member_mean, scaled_rows, token_attention
from tadvae.nn.edges import EdgeTable, every_pair
from tadvae.nn.kernels.exponential import exponential
from tadvae.nn.kernels.sums import group
from tadvae.nn.kernels.threads import PARTS, cut, run
from tadvae.nn.strategies.base import PathwayConfig, pathway_layer
from tadvae.nn.tokens import Basis

SEEDED = settings(max_examples=15, deadline=None, derandomize=True)
HEADS, WIDTH, FUNCTIONS = 2, 3, 4
OPTIONAL = [(True, False), (False, True), (True, True), (False, False)]


class Inputs:
    """Random arguments of every function for the edges and tokens of a problem."""

    def __init__(self, problem, dtype=torch.float64):
        self.cells = problem.packed(dtype)
        self.table = EdgeTable(problem.membership, problem.mask.shape[1])
        self.edges = self.table.active(self.cells)
        self.generator = torch.Generator().manual_seed(problem.seed)
        self.dtype = dtype
        T, E, P = len(self.cells.gene_ids), self.edges.n_edges, self.edges.n_pathways
        G = len(self.edges.genes)
        self.first = torch.randint(0, FUNCTIONS - 1, (T,), generator=self.generator)
        self.phi = self.random(T, 2)
        self.match, self.shift = self.random(E, HEADS), self.random(E, HEADS)
        self.load, self.weight = self.random(FUNCTIONS, E, HEADS), self.random(E, FUNCTIONS)
        self.left, self.right = self.random(P, HEADS, WIDTH), self.random(G, FUNCTIONS, HEADS, WIDTH)
        self.query, self.readout = self.random(P, HEADS, WIDTH), self.random(P, HEADS, WIDTH)
        self.key, self.value = self.random(T, HEADS, WIDTH), self.random(T, HEADS, WIDTH)
        self.gate, self.offset = self.random(E), self.random(E)
        self.rows, self.summand = self.random(problem.mask.shape[1], 5), self.random(5)
        self.whole = every_pair(*torch.unique(self.cells.gene_ids, return_inverse=True), P)
        E = self.whole.n_edges
        self.of_whole = self.random(E, HEADS), self.random(E, HEADS), self.random(FUNCTIONS, E, HEADS)

    def random(self, *shape):
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return values.to(self.dtype).requires_grad_()

    def calls(self, numba=True):
        """Every function with its differentiable arguments, by name."""
        cells, edges = self.cells, self.edges
        found = {
            "dot": (lambda left, right: edge_dot(left, right, edges, numba), [self.left, self.right]),
            "sum": (
                lambda phi, weight: edge_sum(cells, edges, Basis(self.first, phi), weight, numba),
                [self.phi, self.weight],
            ),
            "mean": (lambda rows: member_mean(rows, self.table, numba), [self.rows]),
            "scaled": (
                lambda rows, x, a: scaled_rows(rows, cells.gene_ids, x, a, numba),
                [self.rows, cells.values, self.summand],
            ),
        }
        for has_first, has_second in OPTIONAL:

            def edge(x, phi, load, *rest, has_first=has_first, has_second=has_second, edges=edges):
                rest = iter(rest)
                match = next(rest) if has_first else None
                shift = next(rest) if has_second else None
                here = type(cells)(cells.gene_ids, x, cells.cell, cells.n_cells)
                return edge_attention(here, edges, Basis(self.first, phi), match, shift, load, numba)

            def token(query, readout, key, value, *rest, has_first=has_first, has_second=has_second):
                rest = iter(rest)
                gate = next(rest) if has_first else None
                shift = next(rest) if has_second else None
                return token_attention(cells, edges, query, readout, key, value, gate, shift, numba)

            ends = f"{'match ' * has_first}{'shift' * has_second}"
            own = [self.match] * has_first + [self.shift] * has_second
            found[f"edge {ends}"] = edge, [cells.values, self.phi, self.load, *own]
            match, shift, load = self.of_whole
            own = [match] * has_first + [shift] * has_second
            whole = partial(edge, edges=self.whole)
            found[f"every edge {ends}"] = whole, [cells.values, self.phi, load, *own]
            own = [self.gate] * has_first + [self.offset] * has_second
            found[f"token {ends}"] = token, [self.query, self.readout, self.key, self.value, *own]
        return found


NAMES = list(Inputs(CORNERS).calls())


@pytest.mark.parametrize("name", NAMES)
@settings(SEEDED, max_examples=5)
@given(problems())
def test_gradcheck(name, problem):
    for each in (problem, CORNERS):
        function, arguments = Inputs(each).calls()[name]
        if any(argument.numel() for argument in arguments):
            assert torch.autograd.gradcheck(function, arguments, check_undefined_grad=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@SEEDED
@given(problems())
def test_kernel_and_torch_agree(name, dtype, tolerance, problem):
    results = []
    for numba in (True, False):
        function, arguments = Inputs(problem, dtype).calls(numba)[name]
        result = function(*arguments)
        weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        grads = torch.autograd.grad((result * weight.to(dtype)).sum(), arguments, allow_unused=True)
        grads = [torch.zeros_like(a) if g is None else g for a, g in zip(arguments, grads, strict=True)]
        results.append([result, *grads])
    for kernel_, plain in zip(*results, strict=True):
        assert kernel_.dtype == plain.dtype == dtype
        scale = max(1.0, plain.abs().max().item() if plain.numel() else 0.0)
        torch.testing.assert_close(kernel_, plain, rtol=0, atol=tolerance * scale)


def many_cells(n_cells=70, n_genes=300, n_pathways=40, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((n_pathways, n_genes)) < 0.08
    cells = []
    for _ in range(n_cells):
        genes = np.flatnonzero(rng.random(n_genes) < rng.random() * 0.4)
        cells.append((0, list(zip(genes.tolist(), rng.gamma(2.0, 1.0, len(genes)).tolist(), strict=True))))
    return Problem(mask, [list(range(n_genes))], cells, seed)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_from_any_number_of_threads(name):
    problem, results = many_cells(), []
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3, 7):
            torch.set_num_threads(n_threads)
            function, arguments = Inputs(problem, torch.float32).calls()[name]
            result = function(*arguments)
            results.append(
                [result, *torch.autograd.grad(result.square().sum(), arguments, allow_unused=True)]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one is two is None or torch.equal(one, two)


def test_two_threads_of_python_may_call_at_once():
    """As a notebook does that predicts while it trains; numba's own pool would end the process."""
    inputs = [Inputs(many_cells(seed=i), torch.float32).calls()["edge match "] for i in range(2)]
    expected = [function(*arguments) for function, arguments in inputs]
    found = [[], []]

    def work(i):
        function, arguments = inputs[i]
        found[i] = [function(*arguments) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, expected[i]) for i in range(2) for each in found[i])


def test_no_quadratic_tensor_is_kept():
    """What backward holds on to is inputs and (B, P, h) statistics."""
    sizes = []
    inputs = Inputs(many_cells(), torch.float32)
    for name in ("edge match ", "token "):
        function, arguments = inputs.calls()[name]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            function(*arguments)
        own = max(argument.numel() for argument in arguments)
        assert max(sizes) <= max(70 * 40 * HEADS, own)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential(dtype):
    @kernel
    def each(values, result):
        for i in range(len(values)):
            result[i] = exponential(values[i])

    z = np.concatenate([np.linspace(-86, 0, 20001), [-1e-8, 0.0]]).astype(dtype)
    found = np.empty_like(z)
    each(z, found)
    np.testing.assert_allclose(found, np.exp(z.astype(np.float64)), rtol=2e-7)
    ends = np.array([-1e4, -np.inf, np.nan], dtype)
    found = np.empty_like(ends)
    each(ends, found)
    assert (found[:2] < 1e-37).all()
    assert np.isnan(found[2])
    assert exponential(-1.0) == pytest.approx(np.exp(-1.0))  # plain Python has it too


def test_no_folder_to_keep_compiled_kernels_in(monkeypatch):
    """As in a read-only installation without a home: compiled in every process instead."""
    made = []

    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: made.append(options) or function

    monkeypatch.setattr("tadvae.nn.kernels.exponential.numba.njit", njit)
    assert kernel(len) is len
    assert made[0]["nogil"]


def test_group_is_a_stable_sort():
    keys = np.random.default_rng(0).integers(0, 7, 50)
    starts, order = group(keys, 9)
    np.testing.assert_array_equal(order, np.argsort(keys, kind="stable"))
    np.testing.assert_array_equal(starts, np.searchsorted(np.sort(keys), np.arange(10)))


@pytest.mark.parametrize("weights", [[], [0, 0, 0], [1] * 100, [1000, *[1] * 50], [0] * 5 + [3]])
def test_parts_cover_everything_once(weights):
    bounds = cut(np.concatenate([[0], np.cumsum(weights)]))
    assert len(bounds) <= PARTS + 1
    seen = []
    run(lambda part, first, last: seen.extend(range(first, last)), bounds)
    assert sorted(seen) == list(range(len(weights)))


def test_an_error_in_a_thread_is_raised():
    def fail(part, first, last):
        if part:
            raise ValueError("no")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="no"):
            run(fail, np.arange(9))
    finally:
        torch.set_num_threads(before)


def test_without_numba(monkeypatch):
    """The same numbers by plain torch; asking for numba is one clear sentence."""
    config = PathwayConfig(masking="hard", d_embed=8, n_heads=2)
    expected = CORNERS.layer(config)(CORNERS.packed(torch.float32))
    monkeypatch.setattr(attention, "kernels", lambda: None)
    monkeypatch.setattr("tadvae.nn.strategies.base.kernels", lambda: None)
    torch.testing.assert_close(CORNERS.layer(config)(CORNERS.packed(torch.float32)), expected)
    edges = EdgeTable(CORNERS.membership, 6)
    with pytest.raises(UserError, match="numba cannot be imported"):
        pathway_layer(PathwayConfig(kernel="numba"), edges)


def test_importing_the_layer_does_not_need_numba():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import tadvae.nn.strategies.base, tadvae.nn.attention as a\n"
        "assert a.kernels() is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        total = np.zeros(4)

        def add(part, first, last):
            total[first:last] += 1

        run(add, np.arange(5))
        child = os.fork()
        if not child:
            run(add, np.arange(5))
            os._exit(0 if (total == 2).all() else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
    finally:
        torch.set_num_threads(before)
