"""What has to hold on a GPU: parity with float64, no waits, ranks that agree, a checkpoint that resumes.

Each step writes rows; a step is a function of the rows, the device and the sizes.
"""

import tempfile
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from gpu_batch import TOY, Problem, Sizes
from gpu_rows import Rows, wait

from tadvae.training.checkpoint import Position, load_checkpoint, save_checkpoint
from tadvae.training.ranks import data_parallel

MASKINGS = ("linear", "agreement", "hard", "soft", "soft_log", "members", "none")
VARIANTS = [(masking, "none") for masking in MASKINGS]
VARIANTS += [("hard", "inducing"), ("hard", "full"), ("none", "inducing")]
NEVER_WAIT = {(masking, "none") for masking in MASKINGS[:5]}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
"""Largest relative error of loss and gradients against float64."""


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
