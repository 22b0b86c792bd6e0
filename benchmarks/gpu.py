"""What a GPU does with the network: ceilings, parity with float64, waits, speed, ranks, and resuming.

``scripts/gpu_check.sh`` runs every step in a process of its own, with a time limit. Needs neither Ray nor a
store: a batch is invented, with the sizes of a screen (20,000 genes, 1,500 tokens per cell). Rows are written
as soon as they are known.

    python benchmarks/gpu.py STEP --out FOLDER [--device cuda] [--toy]
    python benchmarks/gpu.py table --out FOLDER [--results FOLDER]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.autograd import DeviceType

from tadvae.cells.ragged import Cells
from tadvae.data.batches import Bag, Batch
from tadvae.data.vocabulary import ContextEntry, DatasetEntry, TargetEntry, Vocabulary
from tadvae.nn.attention import token_attention
from tadvae.nn.cell_attention import Lengths, by_buckets
from tadvae.nn.packed import ModelBatch, pack
from tadvae.pathways.membership import Membership
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.checkpoint import Position, load_checkpoint, save_checkpoint
from tadvae.training.learner import Learner, build_module
from tadvae.training.ranks import data_parallel

MASKINGS = ("linear", "agreement", "hard", "soft", "soft_log", "members", "none")
VARIANTS = [(masking, "none") for masking in MASKINGS]
VARIANTS += [("hard", "inducing"), ("hard", "full"), ("none", "inducing")]
SPEED = [(masking, "none") for masking in ("linear", "agreement", "hard", "members", "none")]
SPEED += [("hard", "inducing")]
NEVER_WAIT = {(masking, "none") for masking in MASKINGS[:5]}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
"""Largest relative error of loss and gradients against float64."""


@dataclass(frozen=True)
class Sizes:
    """How large the invented batch is."""

    n_genes: int = 20_000
    n_pathways: int = 500
    members: int = 60
    n_bags: int = 8
    n_cells: int = 64
    n_tokens: int = 1_500
    d_embed: int = 128
    square: int = 8_192
    megabytes: int = 512
    rounds: int = 20


TOY = Sizes(60, 6, 8, 4, 3, 12, 16, 64, 1, 2)


class Problem:
    """A vocabulary of two datasets, and a batch of both."""

    def __init__(self, sizes: Sizes, seed: int = 0) -> None:
        self.sizes = sizes
        rng = np.random.default_rng(seed)
        n, P = sizes.n_genes, sizes.n_pathways
        members = [np.sort(rng.choice(n, sizes.members, replace=False)) for _ in range(P)]
        membership = Membership(
            pathway_ids=[f"P{p}" for p in range(P)],
            names=[f"pathway {p}" for p in range(P)],
            pathway=np.repeat(np.arange(P), sizes.members),
            gene=np.concatenate(members),
            n_genes=n,
        )
        genes = pd.DataFrame({"gene": [f"G{g}" for g in range(n)], "ensembl_id": None, "symbol": None})
        panels = [np.arange(n), np.arange(0, n, 2)]
        datasets = [
            DatasetEntry(f"d{i}", panel, "cp10k", "cells", 0, {0: 0, 1: 0}) for i, panel in enumerate(panels)
        ]
        contexts = [
            ContextEntry(i, "c", rng.gamma(0.5, 0.5, len(panel)).astype(np.float32), 100)
            for i, panel in enumerate(panels)
        ]
        targets = [TargetEntry("G0", 0, True), TargetEntry("G2", 2, True)]
        self.vocabulary = Vocabulary(
            genes, membership, 1, datasets, contexts, targets, ["CRISPRi"], [-1], "own"
        )
        bags = []
        for d, panel in enumerate(panels):
            controls = self._cells(rng, panel)
            for i in range(sizes.n_bags // 2):
                bags.append(Bag(10 * d + i, d, 0, 1 + i % 2, self._cells(rng, panel), controls))
        self.batch = Batch(bags)
        self._degrees: WeakKeyDictionary[Learner, np.ndarray] = WeakKeyDictionary()

    def _cells(self, rng: np.random.Generator, panel: np.ndarray) -> Cells:
        n, sizes = self.sizes.n_cells, self.sizes
        lengths = rng.integers(sizes.n_tokens * 3 // 4, sizes.n_tokens * 5 // 4, n)
        ids = [np.sort(rng.choice(panel, min(k, len(panel)), replace=False)) for k in lengths]
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in ids])])
        values = rng.gamma(2.0, 0.7, offsets[-1]).astype(np.float32)
        return Cells(np.concatenate(ids), values, offsets, rng.uniform(1e3, 1e4, n))

    def config(self, masking: str, encoder: str, **train: Any) -> ExperimentConfig:
        heads = max(self.sizes.d_embed // 16, 1)
        pathway = {"masking": masking, "d_embed": self.sizes.d_embed, "n_heads": heads}
        model = {"pathway": pathway, "encoder": {"kind": encoder}}
        return ExperimentConfig.parse({"model": model, "train": train}, "benchmark")

    def pack(
        self,
        learner: Learner,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        bags: list[Bag] | None = None,
    ) -> ModelBatch:
        bags = self.batch.bags if bags is None else bags
        asked = [[], [(0, 0)], [(1, 0)]]
        rows = {(0, 0): 0, (1, 0): 1}
        # a run asks the network for the degrees of its genes once, before the first step: on a GPU that waits
        degree = self._degrees.get(learner)
        if degree is None:
            degree = self._degrees[learner] = learner.module.pathway.edges.degree()
        return pack(Batch(bags), self.vocabulary, rows, asked, device, degree, dtype)

    def share(self, rank: int, n_ranks: int, step: int) -> list[Bag]:
        """The bags of a rank in a step; once they are a bag of controls alone."""
        if (rank, step) == (n_ranks - 1, 1):
            bag = self.batch.bags[0]
            return [replace(bag, perturbation=0, cells=bag.controls, controls=None)]
        return self.batch.bags[rank::n_ranks]

    def learner(self, masking: str, encoder: str, device: torch.device, **train: Any) -> Learner:
        config = self.config(masking, encoder, **train)
        return Learner(config, build_module(config, self.vocabulary).to(device))


class Rows:
    """The rows of a step: each is in the file as soon as it is known."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.write_text("")

    def add(self, **row: Any) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            "  ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row.items()
            ),
            flush=True,
        )

    @contextmanager
    def failing(self, **about: Any) -> Iterator[None]:
        """A variant that fails is a row, and the next one has its turn."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
            own = [f for f in traceback.extract_tb(error.__traceback__) if "/tadvae/" in f.filename]
            at = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "benchmark"
            message = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            self.add(**about, error=message, at=at)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Of one call, the fastest third of some rounds."""
    call()
    wait(device)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - start)
    return float(np.mean(sorted(times)[: max(rounds // 3, 1)]))


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Products of matrices in single precision or with TF32's ten bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    yield
    torch.set_float32_matmul_precision(before)


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


def parity(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Loss and gradients of every strategy and encoder against float64 on the CPU, on a small batch."""
    small = Problem(TOY)
    for masking, encoder in VARIANTS:
        exact = small.learner(masking, encoder, torch.device("cpu"))
        exact.module.double()
        expected, _ = exact.module(small.pack(exact, torch.device("cpu"), torch.float64), 9.0, None)
        expected.backward()
        gradients = {k: v.grad for k, v in exact.module.named_parameters() if v.grad is not None}
        for precision, limit in TOLERANCE.items():
            about = {"what": "parity", "masking": masking, "encoder": encoder, "precision": precision}
            with rows.failing(**about):
                learner = small.learner(masking, encoder, device)
                batch = small.pack(learner, device)
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    found, _ = learner.module(batch, 9.0, None)
                found.backward()
                loss = abs(found.item() - expected.item()) / abs(expected.item())
                norm = sum((g**2).sum() for g in gradients.values()) ** 0.5
                parts = dict(learner.module.named_parameters())
                gap = (
                    sum(((parts[k].grad.double().cpu() - g) ** 2).sum() for k, g in gradients.items()) ** 0.5
                )
                error = float(gap / norm)
                rows.add(**about, loss=loss, gradient=error, within=bool(max(loss, error) <= limit))


def waits(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """One step, after a first, in which waiting for the GPU is an error."""
    problem = Problem(sizes)
    for masking, encoder in VARIANTS:
        about = {"what": "waits", "masking": masking, "encoder": encoder}
        about["expected"] = "none" if (masking, encoder) in NEVER_WAIT else "some"
        with rows.failing(**about):
            learner = problem.learner(masking, encoder, device)
            batch = problem.pack(learner, device)
            learner.step(batch, 1.0, rank=0, number=0)
            wait(device)
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                learner.step(problem.pack(learner, device), 1.0, rank=0, number=1)
            finally:
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            rows.add(**about, found="none" if device.type == "cuda" else "not seen on a CPU")


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
    starts_q = torch.arange(0, m * n + 1, m, device=device)
    starts_k = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), device=device)

    def buckets(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return by_buckets(q, k, v, Lengths.same(m, n), Lengths(lengths))

    def varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        found: torch.Tensor = varlen_attn(q, k, v, starts_q.int(), starts_k.int(), m, max(lengths))
        return found

    expected: list[torch.Tensor] = []
    for how in (buckets, varlen):
        about = {"what": "attention", "how": how.__name__, "precision": str(dtype).removeprefix("torch.")}
        if how is varlen and (dtype == torch.float32 or device.type == "cpu"):
            continue  # it has no others
        with rows.failing(**about):

            def call(how: Callable[..., torch.Tensor] = how) -> list[torch.Tensor]:
                found = how(*inputs)
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


def ranks(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Two gloo ranks on the CPU equal one; one NCCL rank equals the network alone."""
    with rows.failing(what="ranks", backend="gloo", ranks=2):
        rows.add(what="ranks", backend="gloo", ranks=2, gap=ranks_gap("gloo", 2, "cpu"))
    if device.type == "cuda":
        with rows.failing(what="ranks", backend="nccl", ranks=1):
            rows.add(what="ranks", backend="nccl", ranks=1, gap=ranks_gap("nccl", 1, str(device)))


def ranks_gap(backend: str, n: int, device: str) -> float:
    """Largest difference of weights after three steps of n ranks and of one that sees their mean gradient.

    In double precision: Adam makes steps of full size of gradients that are rounding errors.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(backend, n, device, folder), nprocs=n)
        found = torch.load(Path(folder) / "weights.pt", weights_only=True)
    problem, place = Problem(TOY), torch.device(device)
    learner = problem.learner("hard", "none", place)
    learner.module.double()
    for step in range(3):
        learner.optimizer.zero_grad()
        for rank in range(n):
            batch = problem.pack(learner, place, torch.float64, problem.share(rank, n, step))
            (learner.module(batch, 1.0, None)[0] / n).backward()
        learner.optimizer.step()
    own = learner.module.state_dict()
    return max(float((own[key].cpu() - value).abs().max()) for key, value in found.items())


def _rank(rank: int, backend: str, n: int, device: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=n)
    problem, place = Problem(TOY), torch.device(device)
    learner = problem.learner("hard", "none", place)
    model = data_parallel(learner.module.double(), place)
    for step in range(3):
        learner.optimizer.zero_grad()
        batch = problem.pack(learner, place, torch.float64, problem.share(rank, n, step))
        model(batch, 1.0, None)[0].backward()
        learner.optimizer.step()
    if rank == 0:
        weights = {key: value.cpu() for key, value in learner.module.state_dict().items()}
        torch.save(weights, Path(folder) / "weights.pt")
    dist.destroy_process_group()


def resume(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Steps after a checkpoint, made again from it: how far the weights are apart."""
    problem = Problem(TOY)
    for masking, encoder in (("linear", "none"), ("hard", "none"), ("hard", "inducing")):
        with (
            rows.failing(what="resume", masking=masking, encoder=encoder),
            tempfile.TemporaryDirectory() as folder,
        ):
            learner = problem.learner(masking, encoder, device)
            batch = problem.pack(learner, device)
            for number in range(2):
                learner.step(batch, 1.0, rank=0, number=number)
            position = Position(global_step=2, vocabulary=problem.vocabulary.hash)
            save_checkpoint(Path(folder), learner.module, learner.optimizer, position, learner.average)
            learner.step(batch, 1.0, rank=0, number=2)
            expected = deepcopy(learner.module.state_dict())
            again = problem.learner(masking, encoder, device)
            load_checkpoint(
                Path(folder), again.module, again.optimizer, problem.vocabulary.hash, again.average
            )
            again.step(batch, 1.0, rank=0, number=2)
            found = again.module.state_dict()
            gap = max(float((found[k] - v).abs().max()) for k, v in expected.items())
            rows.add(what="resume", masking=masking, encoder=encoder, gap=gap)


STEPS: dict[str, Callable[[Rows, torch.device, Sizes], None]] = {
    "machine": machine, "parity": parity, "waits": waits, "speed": speed, "kernels": kernels,
    "ranks": ranks, "resume": resume,
}  # fmt: skip


def card(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def as_expected(row: dict[str, Any]) -> bool:
    """Whether a row is neither an error nor out of its bounds; that some variants wait is known."""
    waits_as_known = row["what"] == "waits" and row["expected"] == "some"
    return ("error" not in row or waits_as_known) and row.get("within", True)


def table(out: Path, results: Path | None) -> dict[str, Any]:
    """All rows that were written, with the card's name; stored only if they come from a GPU."""
    found: dict[str, Any] = {"steps": {}, "failed": []}
    for step in STEPS:
        file, ended = out / f"{step}.jsonl", out / f"{step}.exit"
        lines = file.read_text().splitlines() if file.exists() else []
        found["steps"][step] = [json.loads(line) for line in lines]
        code = ended.read_text().strip() if ended.exists() else "not run"
        if code != "0":
            found["failed"].append({"step": step, "exit": code})
        found["failed"] += [row for row in found["steps"][step] if not as_expected(row)]
    machine_rows = found["steps"]["machine"]
    found["card"] = machine_rows[0]["name"] if machine_rows else "unknown"
    found["torch"] = machine_rows[0]["torch"] if machine_rows else "unknown"
    (out / "table.json").write_text(json.dumps(found, indent=1) + "\n")
    if results is not None and found["card"] not in ("CPU", "unknown"):
        results.mkdir(parents=True, exist_ok=True)
        name = "-".join(found["card"].lower().split())
        (results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=[*STEPS, "table"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the rows")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument("--results", type=Path, help="where the table of a GPU is stored")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.step == "table":
        found = table(options.out, options.results)
        n_rows = sum(map(len, found["steps"].values()))
        print(f"{found['card']}: {n_rows} rows, failed: {found['failed'] or 'none'}")
        return 1 if found["failed"] else 0
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    rows = Rows(options.out / f"{options.step}.jsonl")
    STEPS[options.step](rows, torch.device(options.device), TOY if options.toy else Sizes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
