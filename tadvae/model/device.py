"""Where a network is, and how its results come back to host memory."""

import numpy as np
import torch
from torch import Tensor, nn

from tadvae.base.errors import UserError


def chosen_device(gpu: bool) -> torch.device:
    """The GPU of this process if one is asked for, else the CPU.

    Raises
    ------
    UserError
        If a GPU is asked for, and torch finds none.
    """
    if not gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "torch is built for CPUs only" if torch.version.cuda is None else "torch finds no GPU"
        raise UserError(
            f"--gpu: {built} ({torch.__version__}) on this machine; install torch for your GPU and its "
            "driver, or leave out --gpu."
        )
    return torch.device("cuda", torch.cuda.current_device())


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of a network are."""
    return next(module.parameters()).device


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Values in host memory, without a gradient."""
    result: np.ndarray = tensor.detach().cpu().numpy()
    return result
