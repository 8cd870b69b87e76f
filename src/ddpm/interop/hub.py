"""The Hugging Face hub, by its own client (the extra `hub`): repositories of models, down and up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ddpm.errors import DDPMError, UsageError
from ddpm.interop.folder import FILES

BARE = "model.safetensors"
"""Our weights in a repository."""
_WANTED = [*FILES, *(f"unet/{name}" for name in FILES), *(f"scheduler/{name}" for name in FILES), BARE]


def is_id(text: str) -> bool:
    """Whether a text has the form of a repository's id, owner/name."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) is not None and not text.endswith((".pt", ".safetensors"))


def download(repository: str, revision: str | None = None) -> Path:
    """The folder of a repository's model files, downloaded or from the client's cache.

    Nothing but the files that an import reads is fetched. Raises DDPMError with the hub's reason.
    """
    hub = _client()
    try:
        folder = hub.snapshot_download(repository, revision=revision, allow_patterns=_WANTED)
    except Exception as error:  # the client raises its transport's errors too
        raise DDPMError(f"{repository}: could not be downloaded from the hub: {_reason(error)}") from error
    return Path(folder)


def upload(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Make the repository if it is not there, and commit a folder's files to it; returns its address.

    Raises UsageError for what is no id, DDPMError with the hub's reason.
    """
    if not is_id(repository):
        raise UsageError(f"{repository}: is no hub id; expected OWNER/NAME")
    api = _client().HfApi()
    try:
        place = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=message)
    except Exception as error:
        raise DDPMError(f"{repository}: could not be uploaded to the hub: {_reason(error)}") from error
    return str(place)


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise DDPMError("the hub needs the package huggingface_hub: pip install 'ddpm[hub]'") from None
    return huggingface_hub


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
