"""The GPU's kernel of pathway attention, in Triton's interpreter, against plain torch in float64."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from ragged import CORNERS, problems

from tadvae.nn.attention import token_attention
from tadvae.nn.edges import EdgeOrder, EdgeTable

pytest.importorskip("triton", reason="Triton has wheels for Linux alone")
kernels = importlib.import_module("tadvae.nn.kernels.triton_tokens")  # by the interpreter: see conftest
HEADS, WIDTH = 2, 3


def compare(problem, has_gate, has_shift):
    """Activities and all gradients, for the edges of all genes."""
    cells = problem.packed()
    table = EdgeTable(problem.membership, problem.mask.shape[1])
    edges = table.active(cells, genes=torch.arange(table.n_genes))
    generator = torch.Generator().manual_seed(problem.seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    T, P = len(cells.gene_ids), table.n_pathways
    gate, shift = random(table.n_edges), random(table.n_edges)
    arguments = [random(P, HEADS, WIDTH), random(P, HEADS, WIDTH), 3 * random(T, HEADS, WIDTH)]
    arguments[2] = arguments[2].detach().requires_grad_()
    arguments += [random(T, HEADS, WIDTH), gate if has_gate else None, shift if has_shift else None]
    weight = torch.randn(cells.n_cells, P, generator=generator, dtype=torch.float64)
    inputs = [argument for argument in arguments if argument is not None]
    found = []
    for result in (
        kernels.TokenAttention.apply(*arguments, cells, EdgeOrder.of(table)),
        token_attention(cells, edges, *arguments, numba=False),
    ):
        found.append([result, *torch.autograd.grad((result * weight).sum(), inputs, allow_unused=True)])
    for ours, plain in zip(*found, strict=True):
        plain = torch.zeros_like(ours) if plain is None else plain
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-10)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(problem=problems())
def test_the_kernel_is_the_equation(problem):
    compare(problem, has_gate=True, has_shift=True)


@pytest.mark.parametrize("has", [(False, False), (True, False), (False, True)])
def test_gates_and_shifts_are_optional(has):
    compare(CORNERS, *has)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from tadvae.nn.kernels import triton_tokens as kernels

whole = {"gene", "cell", "order", "token_starts", "gene_starts", "pathway", "path_starts"}
whole |= {"path_order"}
blocks = {"WP": 16, "BM": kernels.MEMBERS, "BT": kernels.TOKENS}
blocks |= {"HAS_GATE": 1, "HAS_SHIFT": 1}
types = {"G": "i32", "P": "i32", "H": "i32", "W": "i32", "position": "*i32"} | dict.fromkeys(whole, "*i64")
types |= dict.fromkeys(blocks, "constexpr")
for function in (kernels._forward, kernels._backward_by_gene, kernels._backward_by_pathway):
    signature = {name: types.get(name, "*fp32") for name in function.arg_names}
    constants = {name: bool(value) if name.startswith("HAS") else value for name, value in blocks.items()}
    constants = {name: value for name, value in constants.items() if name in signature}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


@pytest.mark.slow  # a process that imports torch, and Triton's compiler
def test_the_kernels_compile_for_an_h100(tmp_path):
    """Without a GPU, to its machine code; the interpreter takes more than the compiler does."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(int(size) > 1000 for size in done.stdout.split())
    assert len(done.stdout.split()) == 3
