"""Pathway attention by edges, compared with dense attention that computes the same numbers.

One step is forward and backward of the whole layer (embeddings to activities, gradients of all parameters)
for 32 cells that express 300 of 2,000 genes and 1,000 pathways of 5 to 29 genes, with 8 heads and width
128, in one run:

- ``ours``: the layer of the library with hard masking and expressed genes;
- ``dense``: the same parameters through ``scaled_dot_product_attention`` with a dense mask on the same
  tokens, the faster of a boolean and an additive mask;
- ``literal``: ``softmax(QKᵀ/√d + M_logits) V`` over all 2,000 genes as written, four cells at a time (all
  32 at once would need several times 2 GB, and is slower).

All three are checked to give the same activities (``literal`` against our layer with all genes as tokens).
Times are the fastest of several alternating rounds; memory is the peak minus the memory used before the
step, each measured in its own process. The encoder ``inducing`` is timed on cells of 500 to 4,000 tokens.

    python benchmarks/attention.py [--json FILE] [--threads 2] [--rounds 3]
"""

import argparse
import ctypes
import gc
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from claims import Claims, about, parse
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tadvae.nn.edges import EdgeTable
from tadvae.nn.encoder import EncoderConfig, TokenEncoder
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.attention import AttentionLayer
from tadvae.nn.strategies.base import PathwayConfig, pathway_layer
from tadvae.nn.token_rows import DenseTokens
from tadvae.pathways.membership import Membership

CELLS, EXPRESSED, GENES, PATHWAYS, WIDTH, HEADS = 32, 300, 2000, 1000, 128, 8
LENGTHS = [500, 1000, 2000, 4000]
TOKENS = 8000  # in all, whatever the length of a cell
Step = Callable[[], Tensor]


class Setting:
    """Layers and cells; ``small`` to warm up without touching much memory."""

    def __init__(self, small: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.n_cells, self.n_expressed = (2, 6) if small else (CELLS, EXPRESSED)
        self.n_genes, self.n_pathways = (40, 5) if small else (GENES, PATHWAYS)
        members = [
            np.sort(rng.choice(self.n_genes, rng.integers(5, 30), replace=False))
            for _ in range(self.n_pathways)
        ]
        ids = [f"P{p}" for p in range(self.n_pathways)]
        pathway = np.repeat(np.arange(self.n_pathways), [len(genes) for genes in members])
        membership = Membership(ids, ids, pathway, np.concatenate(members), self.n_genes)
        self.mask = torch.from_numpy(membership.dense())  # (P, G)
        self.edges = EdgeTable(membership, self.n_genes)
        self.genes = torch.from_numpy(
            np.stack(
                [
                    np.sort(rng.choice(self.n_genes, self.n_expressed, replace=False))
                    for _ in range(self.n_cells)
                ]
            )
        )  # (B, n)
        self.x = torch.from_numpy(rng.gamma(2.0, 0.7, self.genes.shape).astype(np.float32))
        self.cells = PackedCells(
            self.genes.flatten(),
            self.x.flatten(),
            torch.arange(self.n_cells).repeat_interleave(self.n_expressed),
            self.n_cells,
            (torch.arange(self.n_genes),),
            torch.zeros(self.n_cells, dtype=torch.int64),
        )

    def layer(self, **options: str) -> AttentionLayer:
        """The layer under these settings; always the same parameters."""
        torch.manual_seed(0)
        layer = pathway_layer(
            PathwayConfig(**({"masking": "hard", "d_embed": WIDTH, "n_heads": HEADS} | options)), self.edges
        )
        assert isinstance(layer, AttentionLayer)
        return layer

    def ours(self, **options: str) -> Step:
        """The library's layer."""
        layer = self.layer(**options)
        return backward(layer, lambda: layer(self.cells))

    def dense(self, additive: bool) -> Step:
        """scaled_dot_product_attention with a dense mask, all cells at once."""
        layer, B, P = self.layer(), self.n_cells, self.n_pathways

        def forward() -> Tensor:
            query = layer.queries(layer.gene).transpose(0, 1).expand(B, -1, -1, -1)  # (B, h, P, w)
            tokens = layer.gene[self.genes] * self.x[..., None]  # (B, n, d)
            key, value = (self.heads(linear(tokens)) for linear in (layer.w_key, layer.w_value))
            seen = self.mask[:, self.genes].transpose(0, 1)[:, None]  # (B, 1, P, n)
            mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf) if additive else seen
            found = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
            readout = layer.readout.view(P, HEADS, -1).transpose(0, 1)  # (h, P, w)
            activity = (found * readout).sum((1, 3))  # (B, P)
            return torch.where(seen.any(-1)[:, 0], activity, 0.0) + layer.bias

        return backward(layer, forward)

    def literal(self, cells_at_once: int = 4) -> Step:
        """The equation as written, over all genes."""
        layer, P = self.layer(), self.n_pathways
        X = torch.zeros(self.n_cells, self.n_genes).scatter(1, self.genes, self.x)  # (B, G)
        M_logits = torch.zeros(self.mask.shape).masked_fill(~self.mask, -torch.inf)  # (P, G)

        def step() -> Tensor:
            layer.zero_grad()
            parts = []
            for part in X.split(cells_at_once):
                query = layer.queries(layer.gene).transpose(0, 1)  # (h, P, w)
                tokens = layer.gene * part[..., None]  # (b, G, d)
                key, value = (self.heads(linear(tokens)) for linear in (layer.w_key, layer.w_value))
                weight = torch.softmax(query @ key.transpose(2, 3) + M_logits, dim=-1)  # (b, h, P, G)
                readout = layer.readout.view(P, HEADS, -1).transpose(0, 1)
                activity = ((weight @ value) * readout).sum((1, 3)) + layer.bias  # (b, P)
                activity.square().sum().backward()
                parts.append(activity.detach())
            return torch.cat(parts)

        return step

    @staticmethod
    def heads(rows: Tensor) -> Tensor:
        """(B, n, d) → (B, h, n, w)."""
        return rows.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def backward(layer: AttentionLayer, forward: Callable[[], Tensor]) -> Step:
    """Forward, and gradients of all parameters."""

    def step() -> Tensor:
        layer.zero_grad()
        activity = forward()
        activity.square().sum().backward()
        return activity.detach()

    return step


STEPS: dict[str, Callable[[Setting], Step]] = {
    "ours": lambda setting: setting.ours(),
    "dense bool": lambda setting: setting.dense(additive=False),
    "dense additive": lambda setting: setting.dense(additive=True),
    "ours, all genes": lambda setting: setting.ours(tokens="all"),
    "ours, plain torch": lambda setting: setting.ours(kernel="torch"),
    "literal": lambda setting: setting.literal(),
}
"""All layers that are compared."""


def check(setting: Setting, made: dict[str, Step]) -> None:
    """Check that all layers give the expected activities."""
    for one, other in (
        ("ours", "dense bool"),
        ("ours", "dense additive"),
        ("ours", "ours, plain torch"),
        ("ours, all genes", "literal"),
    ):
        torch.testing.assert_close(made[one](), made[other](), rtol=1e-4, atol=1e-4)


def fastest(made: dict[str, Step], rounds: int) -> dict[str, float]:
    """Seconds of each, the minimum of several alternating rounds."""
    times: dict[str, list[float]] = {name: [] for name in made}
    for i in range(rounds + 1):
        for name, step in made.items():
            if name == "literal" and i > 1:  # seconds each
                continue
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in times.items()}


def peak_of(name: str, small: bool) -> int:
    """Peak memory of one step in bytes, minus the memory before it; call it in a fresh process."""
    STEPS[name](Setting(small=True))()  # loads libraries and compiled kernels
    step = STEPS[name](Setting(small=small))
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # memory freed so far must not hide what the step takes
    status = Path("/proc/self/status")
    if not status.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024

    def kilobytes(key: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = kilobytes("VmRSS:")
    step()
    return (kilobytes("VmHWM:") - before) * 1024


def peak(name: str, threads: int, small: bool) -> int:
    """Call :func:`peak_of` in its own process."""
    command = [sys.executable, __file__, "--peak", name, "--threads", str(threads)]
    command += ["--quick"] if small else []
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def encoder_growth(kind: str, rounds: int, n_tokens: int = TOKENS) -> dict[str, float]:
    """Microseconds per token, forward and backward, by the number of tokens per cell."""
    torch.manual_seed(0)
    encoder = TokenEncoder(EncoderConfig(kind=kind, n_layers=1), WIDTH, HEADS)
    tokens = torch.randn(n_tokens, WIDTH, requires_grad=True)
    made: dict[str, Step] = {}
    for length in LENGTHS:

        def step(length: int = length) -> Tensor:
            encoder.zero_grad()
            result = encoder(DenseTokens(tokens), torch.arange(0, n_tokens + 1, length))
            result.square().mean().backward()
            return result

        made[str(length)] = step
    return {length: 1e6 * seconds / n_tokens for length, seconds in fastest(made, rounds).items()}


def main() -> int:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--peak", help=argparse.SUPPRESS)

    options = parse(__doc__, more)
    claims = Claims("attention", about(__doc__))
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak_of(options.peak, options.quick))
        return 0

    setting = Setting(small=options.quick)
    made = {name: make(setting) for name, make in STEPS.items()}
    check(setting, made)
    rounds = 1 if options.quick else options.rounds
    seconds = fastest(made, rounds)
    compared = ("ours", "dense bool", "dense additive")
    memory = {name: peak(name, options.threads, options.quick) for name in compared}
    n_tokens = LENGTHS[-1] if options.quick else TOKENS
    growth = {kind: encoder_growth(kind, rounds, n_tokens) for kind in ("inducing", "full")}
    claims.table(
        f"Forward and backward of {setting.n_cells} cells, {options.threads} threads",
        [
            {"layer": name, "ms": 1e3 * value, "MiB": memory[name] / 2**20 if name in memory else ""}
            for name, value in seconds.items()
        ],
    )
    claims.table(
        "Encoder, µs per token, by the number of tokens per cell",
        [{"encoder": kind, **by_length} for kind, by_length in growth.items()],
    )
    dense = min(seconds["dense bool"], seconds["dense additive"])
    least = max(min(memory["dense bool"], memory["dense additive"]), 1)
    claims.table(
        "Ratios",
        [
            {"of": "dense attention over ours, time", "ratio": dense / seconds["ours"]},
            {"of": "the equation as written over ours, time", "ratio": seconds["literal"] / seconds["ours"]},
            {"of": "ours over dense attention, memory", "ratio": memory["ours"] / least},
        ],
    )
    longest, shortest = str(LENGTHS[-1]), str(LENGTHS[0])
    ratio = growth["inducing"][longest] / growth["inducing"][shortest]
    claims.aim(
        f"µs per token with `inducing`, {longest} tokens per cell over {shortest}", ratio, at_most=1.15
    )
    ratio = growth["full"][longest] / growth["full"][shortest]
    claims.note(f"With `full` the same ratio is {ratio:.2f}: it is quadratic in a cell's tokens.")
    claims.finish(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
