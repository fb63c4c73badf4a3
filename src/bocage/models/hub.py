"""Files of the official models: from the local cache, otherwise from Hugging Face.

What is cached is used without asking the network. An unreachable hub is noticed within
``TIMEOUT_S``, name resolution included, which no option of the client bounds.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from bocage.errors import ModelError

logger = logging.getLogger(__name__)

TIMEOUT_S = 7.0
"""Longest wait for the first answer of the hub; with slow imports still under ten seconds."""


def hub_file(repo_id: str, filename: str) -> Path:
    """A file of a Hugging Face repository on the local disk, downloaded if need be.

    Raises ModelError if it is not cached and the hub cannot be reached or does not have it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    # Not hf_hub_download(local_files_only=True): it still asks the hub (3 s, huggingface_hub 2.4).
    cached = try_to_load_from_cache(repo_id, filename)
    if isinstance(cached, str):
        return Path(cached)
    _probe(repo_id, filename)
    logger.info("downloading %s of %s", filename, repo_id)
    try:
        return Path(hf_hub_download(repo_id, filename, etag_timeout=TIMEOUT_S))
    except Exception as error:  # the client raises errors of several HTTP libraries
        raise _unreachable(repo_id, filename, error) from error


def _probe(repo_id: str, filename: str) -> None:
    """Ask for the file's metadata in a thread that is left behind if no answer comes."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    failure: list[Exception] = [TimeoutError(f"no answer within {TIMEOUT_S:.0f} s")]

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repo_id, filename), timeout=TIMEOUT_S)
            failure.clear()
        except Exception as error:  # handed to the caller below
            failure[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if failure:
        raise _unreachable(repo_id, filename, failure[0]) from failure[0]


def _unreachable(repo_id: str, filename: str, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ModelError(
        got=f"no {filename} of {repo_id}, neither cached nor from Hugging Face ({reason})",
        expected="the file in the local cache, or a reachable hub",
        fix="pass a downloaded file or folder (weights=PATH, --weights PATH), or try with random "
        "weights (weights=None, --weights random)",
    )
