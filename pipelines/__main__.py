"""``python -m pipelines COMMAND …`` is ``tadvae COMMAND …``: for Ray jobs, which may lack the script."""

from pipelines.cli.main import main

main()
