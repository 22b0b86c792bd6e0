"""A device that is not there: tensors say that they are elsewhere, and compute on the CPU.

``meta`` stands for a GPU, as torch takes it everywhere. What would make a GPU wait is counted: the host reads
a number, a result's shape depends on values, or a copy blocks. Mixing devices is an error. Results are real,
so they can be compared with those of the CPU.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")

READS_VALUES = {
    "_local_scalar_dense", "bincount", "equal", "is_nonzero", "item", "masked_select", "nonzero",
    "unique_dim", "unique_consecutive", "_unique2", "repeat_interleave",
}  # fmt: skip
"""Operations whose result, or its shape, the host has to wait for."""
STARTS_NOTHING = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operations that a GPU has nothing to do for."""


class Elsewhere(Tensor):
    """A tensor that says it is on the fake device."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        self = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        self.here = here
        return self

    def __init__(self, here: Tensor) -> None:
        super().__init__()

    def tolist(self) -> Any:
        """The values in host memory; torch refuses it for subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: outside of FakeDevice")


class FakeDevice(TorchDispatchMode):
    """While it is entered, tensors can be on the fake device.

    Attributes
    ----------
    launched
        Operations on the device by name, views not counted.
    waits
        Operations by name after which the host or the device waits for the other.
    copied
        Copies from the host to the device, by whether they block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.copied: Counter[bool] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler, which takes seconds

    def forget(self) -> None:
        """Begin to count anew."""
        for counter in (self.launched, self.waits, self.copied):
            counter.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in given if isinstance(tensor, Elsewhere)]
        device = kwargs.pop("device", None)
        after = bool(there) if device is None else torch.device(device) == DEVICE
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        if name == "_to_copy" or (name == "copy_" and len(given) == 2):
            self._copy(name, args, kwargs, given, after)
        elif there:
            self._check(func, name, args, kwargs, given)
        if (there or after) and not func.is_view and name not in STARTS_NOTHING:
            self.launched[name] += 1
        if name == "_to_copy" and there and not after:
            kwargs.pop("non_blocking", None)
        inside = tree_map_only(Elsewhere, lambda tensor: tensor.here, (args, kwargs))
        out = func(*inside[0], **inside[1])
        if name.endswith("_") and isinstance(args[0], Elsewhere):
            return args[0]
        return tree_map_only(Tensor, Elsewhere, out) if after else out

    def _copy(self, name: str, args: Any, kwargs: Any, given: list[Tensor], after: bool) -> None:
        before = isinstance(given[-1], Elsewhere)
        if name == "copy_":
            after = isinstance(given[0], Elsewhere)
        if before and not after:
            self.waits["copy to the host"] += 1
        elif after and not before:
            blocks = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            self.copied[blocks] += 1
            if blocks:
                self.waits["copy to the device"] += 1

    def _check(self, func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor]) -> None:
        on_host = [tensor for tensor in given if not isinstance(tensor, Elsewhere)]
        if any(tensor.dim() for tensor in on_host):
            raise RuntimeError(f"{func}: tensors on the device, and {len(on_host)} in host memory")
        if on_host and name == "where":  # unlike other operations it copies a number
            self.waits["copy to the device"] += 1
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        sized = name == "repeat_interleave" and kwargs.get("output_size") is not None
        if masks or (name in READS_VALUES and not sized):
            self.waits[name] += 1
