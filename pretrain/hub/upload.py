"""A folder -> a revision of a model repository on the Hugging Face Hub.

What is there already is not sent again: the Hub knows large files by their hashes, whatever became of other attempts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import InputError, Unavailable

if TYPE_CHECKING:  # takes a second to import
    from huggingface_hub import HfApi

PAUSES = (2.0, 10.0, 30.0)
"""Seconds between the attempts of `upload_folder`; within each, most requests are tried again by themselves."""
LONGEST_WAIT = 60.0
"""Of what the Hub may ask `upload_folder` to wait."""
SILENCE_SECONDS = 120.0
"""Without a byte from the Hub after which a request has failed; a large commit takes a while to be answered."""
STALE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
"""Files of a revision that go unless the folder has them: shards left of another model would be loaded with it."""
PASSING = (408, 409, 412, 423, 425, 429)
"""Of the answers that put the blame on the request, those that another attempt may not get."""


class HubUnavailable(Unavailable):
    """The Hub cannot be reached, or cannot do it now."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait
        """Seconds it asks to wait."""


def upload_folder(folder: Path, repo: str, revision: str, *, private: bool, message: str) -> str:
    """`attempt_upload`, again after some seconds where the Hub fails: a minute or so in all."""
    for pause in PAUSES:
        try:
            return attempt_upload(folder, repo, revision, private=private, message=message)
        except HubUnavailable as error:
            time.sleep(max(pause, min(error.wait, LONGEST_WAIT)))
    return attempt_upload(folder, repo, revision, private=private, message=message)


def attempt_upload(folder: Path, repo: str, revision: str, *, private: bool, message: str) -> str:
    """Commit the files of `folder` to a branch; returns its URL.

    Args:
        repo: ``owner/name``; it is made, `private` or not, where it does not exist.
        revision: The branch, made from ``main`` where it does not exist.
        message: Of the commit; there is none where nothing has changed.

    Raises:
        InputError: The Hub refuses: the token, its rights, the repository. One line, never with the token.
        HubUnavailable: It may do so later.
    """
    with _connect(repo) as api:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            delete_patterns=list(STALE_WEIGHTS),
        )
    return f"{api.endpoint}/{repo}/tree/{revision}"


def make_repository(repo: str, *, private: bool) -> None:
    """Make it where it does not exist; raises as `attempt_upload` does."""
    with _connect(repo) as api:
        api.create_repo(repo, private=private, exist_ok=True)


@contextmanager
def _connect(repo: str) -> Iterator[HfApi]:
    """The Hub's client; what goes wrong with it becomes an InputError."""
    from huggingface_hub import HfApi, get_token

    _set_up_client()
    token = None
    try:
        if (token := get_token()) is None:
            raise InputError("no token for the Hugging Face Hub: set HF_TOKEN, or run `hf auth login`")
        yield HfApi(token=token)
    except InputError:
        raise
    except Exception as error:
        # The client raises what its parts raise: of HTTP, of sockets, of the storage. From None: causes quote headers.
        raise _explain(error, repo, token or "") from None


@cache
def _set_up_client() -> None:
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import disable_progress_bars, logging
    from huggingface_hub.utils._http import default_client_factory

    def client() -> Any:
        made = default_client_factory()
        made.timeout = SILENCE_SECONDS  # by default it waits for ever, also for a Hub whose connection is gone
        return made

    set_client_factory(client)
    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.set_verbosity_error()  # it warns of every attempt, with the signed URLs of the storage


def _explain(error: Exception, repo: str, token: str) -> InputError:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    def clean(text: object) -> str:
        line = next(iter(str(text).strip().splitlines()), "")
        return line.replace(token, "***") if token else line

    if isinstance(error, HFValidationError):
        return InputError(f"{repo}: no name of a repository, which is owner/name: {clean(error)}")
    if isinstance(error, UnicodeEncodeError):  # of the header that it goes into
        return InputError(
            "the token for the Hugging Face Hub is not ASCII: set HF_TOKEN to one, or run `hf auth login`"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return InputError(f"{repo}: HF_HUB_OFFLINE is set: unset it to upload")
    answer = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
    if answer is None:
        root = list(_causes(error))[-1]
        return HubUnavailable(f"{repo}: the Hub cannot be reached: {clean(root) or type(root).__name__}")
    status, said = answer.response.status_code, clean(answer.server_message or "")
    detail = f"{status}, {said}" if said else f"{status}"
    if status >= 500 or status in PASSING or not _is_of_hub(answer):
        return HubUnavailable(f"{repo}: the Hub cannot take it now ({detail})", _retry_after(answer))
    if status == 401:
        return InputError(f"{repo}: the Hub does not accept the token ({detail}): set HF_TOKEN, or run `hf auth login`")
    if status == 403:
        return InputError(f"{repo}: the token may not write there ({detail}): it needs write access")
    if status == 404:
        return InputError(f"{repo}: is not there, or the token may not see it ({detail})")
    return InputError(f"{repo}: the Hub refuses the upload ({detail})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it was raised from, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _is_of_hub(answer: Any) -> bool:
    """Whether the Hub itself answered: its storage refuses signed URLs that have grown old, which means nothing."""
    from huggingface_hub import constants

    return str(answer.response.request.url).startswith(constants.ENDPOINT)


def _retry_after(answer: Any) -> float:
    value = answer.response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0
