"""Models on the Hugging Face Hub; ``pip install 'tadvae[hub]'``."""

import importlib
from pathlib import Path
from typing import Any

from tadvae.base.errors import UserError

HUB = "hf://"
"""Before the name of a model on the Hub: ``hf://lab/model``."""


def upload(folder: str | Path, repo: str, *, private: bool, token: str | None, message: str) -> str:
    """Make the model repository where there is none, and put a folder's files into it in one commit.

    Returns
    -------
    Address of the commit.

    Raises
    ------
    UserError
        If the Hub refuses, or cannot be reached.
    """
    hub = _library()
    api = hub.HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        info = api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message=message)
    except Exception as error:  # noqa: BLE001  # its errors are of httpx, of the Hub and ValueErrors
        raise _refused(repo, error) from None
    return str(info.commit_url)


def download(repo: str, *, token: str | None = None) -> str:
    """Fetch a model repository, or find it in the Hub's cache; returns the local folder.

    Raises
    ------
    UserError
        If there is no such model, or the Hub cannot be reached.
    """
    hub = _library()
    try:
        return str(hub.snapshot_download(repo, token=token))
    except Exception as error:  # noqa: BLE001
        raise _refused(repo, error) from None


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            "huggingface_hub is not installed, which models on the Hub need; run pip install 'tadvae[hub]'."
        ) from None


def _refused(repo: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return UserError(
        f"{HUB}{repo}: the Hub did not do it ({type(error).__name__}: {reason}); check the name, the "
        "network, and that you are logged in (hf auth login)."
    )
