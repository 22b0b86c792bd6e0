"""Arguments and options that several commands have."""

from typing import Annotated

import typer

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of a cell store.")]
OnGpu = Annotated[bool, typer.Option("--gpu", help="Predict on a GPU of this machine.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Folder or URL of a run.")]
