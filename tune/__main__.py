"""``python -m tune COMMAND …`` is ``tadvae tune COMMAND …``, for Ray jobs."""

import sys

from tune.cli import main

main(["tune", *sys.argv[1:]])
