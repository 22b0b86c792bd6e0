"""What a step of the GPU check writes, and how it times a call."""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch


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
