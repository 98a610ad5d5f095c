"""Where weights lie: in this package, in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError


def find_weights(
    name_or_path: str | Path,
    bundled: Sequence[str],
    files: Sequence[str],
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The folder that ``name_or_path`` means, downloaded if need be.

    Args:
        name_or_path: a folder, a Hub id ``owner/name``, or one of ``bundled``.
        bundled: names of weights that come with the package.
        files: what is downloaded from the Hub.
        revision: branch, tag or commit of a Hub id.
        token: for private repositories on the Hub.

    Raises:
        FileNotFoundError: no such folder or Hub repository.
    """
    name = str(name_or_path)
    if name in bundled:
        folder = Path(str(resources.files("cjepa_agent") / "pretrained" / name))
        if not folder.is_dir():
            raise FileNotFoundError(f"this installation lacks the bundled weights {name}; give a folder or a Hub id")
        return folder
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(files)))
    except HFValidationError:
        raise FileNotFoundError(f"{name_or_path} is neither a checkpoint folder nor a Hub id owner/name") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name_or_path} is no checkpoint folder, and the Hub gave no repository of this name: {error}"
        ) from error
