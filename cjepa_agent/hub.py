"""Where weights lie: in this package, in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError


def find_weights(
    name_or_path: str | Path | None,
    bundled: Sequence[str],
    files: Sequence[str],
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The folder that ``name_or_path`` means, downloaded if need be.

    Args:
        name_or_path: a folder, a Hub id ``owner/name``, or one of ``bundled``; None means the first of these, and a
            ``Path`` a folder where there is one.
        bundled: names of weights that come with the package.
        files: what is downloaded from the Hub; the first is in every folder of weights.
        revision: branch, tag or commit of a Hub id.
        token: for private repositories on the Hub.

    Raises:
        FileNotFoundError: no such folder or Hub repository.
        ValueError: the name is empty, or that of bundled weights and of a folder with others; or a revision is asked
            for of what is not on the Hub.
    """
    name = bundled[0] if name_or_path is None else str(name_or_path)
    if revision and (name in bundled or Path(name).is_dir()):
        raise ValueError(f"revision is for weights on the Hub, and {name} are not; got revision={revision!r}")
    if name_or_path is None:
        return _in_package(name)
    if not name:
        raise ValueError(f"the name of the weights is empty; give a folder, a Hub id or one of {list(bundled)}")
    if name in bundled:
        if not (Path(name) / files[0]).is_file():
            return _in_package(name)
        if isinstance(name_or_path, str):
            raise ValueError(
                f"{name!r} is both weights of the package and a folder with weights here; give the folder's absolute "
                f"path, or call from another working directory for those of the package"
            )
    if Path(name).is_dir():
        return Path(name)
    unknown = f"{name} is neither a checkpoint folder nor a Hub id owner/name nor one of {list(bundled)}"
    if "/" not in name:
        raise FileNotFoundError(unknown)
    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(files)))
    except HFValidationError:
        raise FileNotFoundError(unknown) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name_or_path} is no checkpoint folder, and the Hub gave no repository of this name: {error}"
        ) from error


def _in_package(name: str) -> Path:
    folder = Path(str(resources.files("cjepa_agent") / "pretrained" / name))
    if not folder.is_dir():
        raise FileNotFoundError(f"this installation lacks the bundled weights {name}; give a folder or a Hub id")
    return folder
