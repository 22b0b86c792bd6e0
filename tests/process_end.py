"""How processes that a test has started come to their end."""

import time

import psutil


def kill_what_stays(processes: list[psutil.Process], seconds: float = 3) -> None:
    """Wait until all have ended, then kill those that have not."""

    def is_over(process: psutil.Process) -> bool:
        try:  # whose parent has ended may stay as a zombie
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(map(is_over, processes)):
        time.sleep(0.05)
    for process in processes:
        if not is_over(process):
            process.kill()
