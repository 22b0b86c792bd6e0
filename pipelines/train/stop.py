"""What ends a Ray Train run at once.

In a file of its own: Ray Train's controller imports what it calls, and has no need of the network.
"""

from typing import Any

import ray.train

from tadvae.base.errors import StorageError, UserError


class StopAtUserError(ray.train.UserCallback):
    """Ends a run at a worker's UserError: a file that is damaged stays so, however often workers restart.

    Storage that does not answer is a :class:`~tadvae.base.errors.StorageError`, after which they do restart.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called on Ray Train's controller, where an error ends the run."""
        for error in worker_exceptions.values():
            if isinstance(error, UserError) and not isinstance(error, StorageError):
                raise error
