"""Adam that does not load PyTorch's compiler."""

import inspect
from collections.abc import Callable

import torch


class Adam(torch.optim.Adam):
    """:class:`torch.optim.Adam`; it takes the same steps.

    PyTorch's decorators keep its compiler away from these methods, and load the compiler to do so: more than
    a second in every process that trains. No optimizer is compiled here.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step."""
        result: float | None = inspect.unwrap(torch.optim.Adam.step)(self, closure)
        return result
