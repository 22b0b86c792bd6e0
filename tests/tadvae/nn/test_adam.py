"""Adam without the compiler takes the steps of PyTorch's."""

import subprocess
import sys

import pytest
import torch

from tadvae.nn.adam import Adam


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=["plain", "fused"])
def test_the_steps_are_those_of_torch(options):
    torch.manual_seed(0)
    start, gradients = torch.randn(5, 3), torch.randn(4, 5, 3)
    found, expected = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours, theirs = Adam([found], lr=0.1, **options), torch.optim.Adam([expected], lr=0.1, **options)
    for i, gradient in enumerate(gradients):
        for parameter, optimizer in ((found, ours), (expected, theirs)):
            optimizer.zero_grad(set_to_none=True)
            parameter.grad = gradient.clone()
            optimizer.step()
        assert torch.equal(found, expected)
        if i == 1:  # the state of each goes on in the other
            state = ours.state_dict()
            ours.load_state_dict(theirs.state_dict())
            theirs.load_state_dict(state)


def test_no_compiler_is_loaded():
    code = """
import sys, torch
from tadvae.nn.adam import Adam
weight = torch.nn.Parameter(torch.ones(3))
optimizer = Adam([weight], fused=True)
weight.square().sum().backward()
torch.nn.utils.clip_grad_norm_([weight], 1.0)
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
