"""``python -m pipelines COMMAND …`` runs ``tadvae COMMAND …``, for Ray jobs without the ``tadvae`` script."""

from pipelines.cli.main import main

main()
