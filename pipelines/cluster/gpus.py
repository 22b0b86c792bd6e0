"""What of a node's GPUs, driver and torch does not fit together, from facts that the node tells."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

BYTES_PER_TOKEN = 20_000
"""Of GPU memory in a step with the encoder at its default width: twice the peak that was measured.

On an H100 the peak is 10.1 kB per token in single precision (docs/benchmarks.md, encoder ``inducing``).
"""
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Oldest NVIDIA driver that runs programs of a CUDA version (docs.nvidia.com/deploy/cuda-compatibility)."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes
    ----------
    name
        Name of the card.
    capability
        Compute capability, such as (9, 0).
    memory
        Bytes.
    """

    name: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True)
class GpuFacts:
    """What a node says of its GPUs.

    Attributes
    ----------
    driver
        Version of the NVIDIA driver; None: no ``nvidia-smi``.
    cuda
        CUDA version that torch is built for; None: for CPUs only.
    architectures
        What torch is compiled for, such as ``sm_90``; ``compute_90`` can be compiled for newer ones too.
    gpus
        The GPUs that torch sees.
    nccl
        Whether torch has NCCL, which several ranks need.
    """

    driver: str | None
    cuda: str | None
    architectures: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    nccl: bool


def facts() -> GpuFacts:
    """The facts of this machine."""
    import torch

    found = []
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        found.append(Gpu(about.name, (about.major, about.minor), about.total_memory))
    return GpuFacts(
        driver=_driver(),
        cuda=torch.version.cuda,
        architectures=tuple(torch.cuda.get_arch_list()),
        gpus=tuple(found),
        nccl=torch.distributed.is_available() and torch.distributed.is_nccl_available(),
    )


def _driver() -> str | None:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = done.stdout.split()
    return found[0] if found and done.returncode == 0 else None


def problems(node: GpuFacts, promised: float, tokens: int | None = None) -> Iterator[tuple[str, str]]:
    """What does not fit on a node, and how to fix it.

    Parameters
    ----------
    promised
        Number of GPUs that the node offers to Ray.
    tokens
        Tokens of a step of one worker of the planned run; None: not known.
    """
    if node.cuda is None:
        yield (
            "torch is built for CPUs only",
            "install a CUDA build of torch there (pip's default build on Linux is one)",
        )
        return
    least = LEAST_DRIVER.get(int(node.cuda.split(".")[0]))
    if node.driver is None:
        yield "there is no NVIDIA driver: nvidia-smi does not run", "install the driver, or use another image"
    elif least is not None and int(node.driver.split(".")[0]) < least:
        yield (
            f"the driver {node.driver} is too old for torch's CUDA {node.cuda}, which needs {least} or newer",
            "use an image with a newer driver, or a build of torch for an older CUDA",
        )
        return  # torch sees no GPU then, for this reason
    if len(node.gpus) < promised:
        yield (
            f"it offers {promised:g} GPUs, of which torch sees {len(node.gpus)}",
            "look at nvidia-smi there, and at CUDA_VISIBLE_DEVICES",
        )
    for gpu in dict.fromkeys(node.gpus):
        if not _compiled_for(gpu.capability, node.architectures):
            yield (
                f"torch is not compiled for {gpu.name} (compute capability {gpu.capability[0]}."
                f"{gpu.capability[1]}; it has {', '.join(node.architectures)})",
                "use another GPU, or a build of torch for this one",
            )
        room = tokens_that_fit(gpu.memory)
        if tokens is not None and tokens > room:
            yield (
                f"{gpu.name} has {gpu.memory / 2**30:.0f} GiB, room for about {room:,} tokens of a step with "
                f"the encoder, but the run has {tokens:,}",
                "lower stream.bags_per_batch or stream.cells_per_bag, or use larger GPUs",
            )
    if not node.nccl:
        yield "torch has no NCCL, which several workers need", "install a build of torch with NCCL"


def tokens_that_fit(memory: int) -> int:
    """Tokens of a step with the encoder that so many bytes have room for, to two digits."""
    return int(float(f"{memory / BYTES_PER_TOKEN:.1e}"))


def _compiled_for(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Whether there is code of the same major version, or code that the driver can compile."""
    for name in architectures:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")  # code for exactly this version
        if not digits.isdigit():
            continue
        own = int(digits[:-1]), int(digits[-1])
        newer = own <= capability
        if newer and (kind == "compute" or own[0] == capability[0]):
            return True
    return False
