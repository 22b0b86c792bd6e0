"""How fast a GPU is: ceilings of the machine, one step of the network, and its kernels.

Each step writes rows; a step is a function of the rows, the device and the sizes.
"""

import platform
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_batch import Problem, Sizes
from gpu_rows import Rows, products, seconds
from torch.autograd import DeviceType

from tadvae.nn.attention import token_attention
from tadvae.nn.cell_attention import Lengths, by_buckets, by_lengths
from tadvae.nn.packed import ModelBatch
from tadvae.training.learner import Learner

SPEED = [(masking, "none") for masking in ("linear", "agreement", "hard", "members", "none")]
SPEED += [("hard", "inducing")]


def card(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def machine(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Versions; ceilings of copies and of matrix products."""
    about: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    about |= {"cuda": torch.version.cuda, "device": str(device), "name": card(device)}
    try:
        import triton

        about["triton"] = triton.__version__
    except ImportError:
        about["triton"] = None
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        about |= {"capability": f"{facts.major}.{facts.minor}", "gib": facts.total_memory / 2**30}
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        about["driver"] = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    rows.add(what="machine", **about)
    n_bytes = sizes.megabytes * 2**20
    for pinned in (False, True) if device.type == "cuda" else (False,):
        with rows.failing(what="copy", pinned=pinned):
            host = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pinned)
            there = torch.empty(n_bytes, dtype=torch.uint8, device=device)
            time_of = seconds(lambda h=host, t=there: t.copy_(h, non_blocking=True), device, sizes.rounds)
            rows.add(what="copy", pinned=pinned, gb_per_s=n_bytes / time_of / 1e9)
    n = sizes.square
    for precision in ("fp32", "tf32", "bf16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with rows.failing(what="product", precision=precision), products(precision):
            a = torch.randn(n, n, device=device, dtype=dtype)
            time_of = seconds(lambda a=a: a @ a, device, sizes.rounds)
            rows.add(what="product", precision=precision, tflops=2 * n**3 / time_of / 1e12)


def speed(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Cells a second, peak memory and launches of a step; cells are encoded cells and cells of bags."""
    problem = Problem(sizes)
    encoded = sum(len(cells) for cells in problem.batch.encoded)
    tokens = sum(len(cells.values) for cells in problem.batch.encoded)
    for masking, encoder in SPEED:
        for precision in ("fp32", "tf32", "bf16"):
            about = {"what": "speed", "masking": masking, "encoder": encoder, "precision": precision}
            with rows.failing(**about), products(precision):
                learner = problem.learner(masking, encoder, device, bf16=precision == "bf16")
                batch = problem.pack(learner, device)
                number = iter(range(1_000_000))

                def step(learner: Learner = learner, batch: ModelBatch = batch, number: Any = number) -> None:
                    learner.step(batch, 1.0, rank=0, number=next(number))

                step()
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                time_of = seconds(step, device, sizes.rounds)
                more: dict[str, Any] = {}
                if device.type == "cuda":
                    peak = torch.cuda.max_memory_allocated(device)
                    more = {"gib": peak / 2**30, "bytes_per_token": peak / tokens, **profiled(step)}
                rows.add(**about, ms=1e3 * time_of, encoded_per_s=encoded / time_of,
                         cells_per_s=problem.batch.n_cells / time_of, **more)  # fmt: skip


def profiled(step: Callable[[], None]) -> dict[str, float]:
    """Kernels that one step starts, and how long they take on the card, in ms."""
    both = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=both) as profile:
        step()
        torch.cuda.synchronize()
    events = profile.key_averages()
    started = sum(event.count for event in events if "LaunchKernel" in event.key)
    busy = sum(e.self_device_time_total for e in events if e.device_type == DeviceType.CUDA)
    return {"launches": started, "device_ms": busy / 1e3}


def kernels(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Ways of attention within cells of different lengths; pathway attention in Triton beside torch."""
    for dtype in (torch.float32, torch.bfloat16):
        cell_attention(rows, device, sizes, dtype)
    pathway_attention(rows, device, sizes)


def cell_attention(rows: Rows, device: torch.device, sizes: Sizes, dtype: torch.dtype) -> None:
    """Forward and backward of the attention of 32 queries over the tokens of each cell."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(sizes.n_tokens * 3 // 4, sizes.n_tokens * 5 // 4, sizes.n_cells).tolist()
    h, w, m, n = max(sizes.d_embed // 16, 1), 16, 32, len(lengths)
    shapes = (m * n, h, w), (sum(lengths), h, w), (sum(lengths), h, w)
    inputs = [torch.randn(*shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
    about_lengths = Lengths.same(m, n), Lengths(lengths)
    expected: list[torch.Tensor] = []
    for name, how in (("buckets", by_buckets), ("varlen", by_lengths)):
        about = {"what": "attention", "how": name, "precision": str(dtype).removeprefix("torch.")}
        if how is by_lengths and (dtype == torch.float32 or device.type == "cpu"):
            continue  # it has no others
        with rows.failing(**about):

            def call(how: Callable[..., torch.Tensor] = how) -> list[torch.Tensor]:
                found = how(*inputs, *about_lengths)
                return [found.detach(), *torch.autograd.grad(found.float().square().sum(), inputs)]

            found = call()
            expected = expected or found
            pairs = zip(found, expected, strict=True)
            gap = max(float((a.float() - b.float()).abs().max() / b.abs().max()) for a, b in pairs)
            rows.add(**about, ms=1e3 * seconds(call, device, sizes.rounds), gap=gap)


def pathway_attention(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Forward and backward of pathway attention over encoded tokens, and the largest difference."""
    problem = Problem(sizes)
    learner = problem.learner("hard", "inducing", device)
    cells = problem.pack(learner, device).cells
    edges = learner.module.pathway.edges.active(cells)
    h, P, T = max(sizes.d_embed // 16, 1), sizes.n_pathways, len(cells.values)
    inputs = [torch.randn(n, h, 16, device=device, requires_grad=True) for n in (P, P, T, T)]
    found = {}
    for how, compiled in (("torch", False), ("triton" if device.type == "cuda" else "numba", True)):
        about = {"what": "pathway attention", "how": how}
        with rows.failing(**about):
            if how == "triton" and edges.order is None:
                raise RuntimeError("no order of edges")

            def call(compiled: bool = compiled) -> list[torch.Tensor]:
                activity = token_attention(cells, edges, *inputs, numba=compiled)
                return [activity.detach(), *torch.autograd.grad(activity.sum(), inputs)]

            found[how] = call()
            time_of = seconds(call, device, sizes.rounds)
            gap = max(
                float((a - b).abs().max() / b.abs().max())
                for a, b in zip(found[how], found["torch"], strict=True)
            )
            rows.add(**about, ms=1e3 * time_of, gap=gap)
