"""Download files of the Hugging Face Hub, such as ViTs of DINO, DINOv2 and DINOv3, once.

They stay in its cache, which is below `HF_HOME`.
"""

import errno
import os
import re
from pathlib import Path

from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.interop.safetensors_files import INDEX, WHOLE, weight_files

SCHEME = "hf://"  # in front of the name of a repository that holds a model
CONFIG, PICKLED = "config.json", "pytorch_model.bin"
# Commits are pinned, so that a name always means the same weights.
REVISIONS = {
    # DINO's repositories hold a pickled state dict instead of safetensors. Those with patches of 8
    # are not pinned; a run records the commit that it got.
    "facebook/dino-vits16": "abe3b354cb6a9b6f146096b14a4a9d7eecbcb4bd",
    "facebook/dino-vitb16": "f205d5d8e640a89a2b8ef0369670dfc37cc07fc2",
    "facebook/dino-vits8": "main",
    "facebook/dino-vitb8": "main",
    "facebook/dinov2-with-registers-small": "0d9846e56b43a21fa46d7f3f5070f0506a5795a9",
    "facebook/dinov2-with-registers-base": "a1d738ccfa7ae170945f210395d99dde8adb1805",
    "facebook/dinov2-with-registers-large": "e4c89a4e05589de9b3e188688a303d0f3c04d0f3",
    "facebook/dinov2-with-registers-giant": "8d0d49f77fb8b5dd78842496ff14afe7dd4d85cb",
    "facebook/dinov2-small": "ed25f3a31f01632728cabb09d1542f84ab7b0056",
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "facebook/dinov2-large": "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    "facebook/dinov2-giant": "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
    # Gated: accept their license on their page first.
    "facebook/dinov3-vits16-pretrain-lvd1689m": "114c1379950215c8b35dfcd4e90a5c251dde0d32",
    "facebook/dinov3-vits16plus-pretrain-lvd1689m": "c93d816fc9e567563bc068f01475bec89cc634a6",
    "facebook/dinov3-vitb16-pretrain-lvd1689m": "5931719e67bbdb9737e363e781fb0c67687896bc",
    "facebook/dinov3-vitl16-pretrain-lvd1689m": "ea8dc2863c51be0a264bab82070e3e8836b02d51",
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": "c807c9eeea853df70aec4069e6f56b28ddc82acc",
}


def fetch(name: str) -> Path:
    """Download a repository's config.json and weights; return their folder, named after the commit.

    Cached files are not requested again. With `HF_HUB_OFFLINE=1` nothing is requested.

    Args:
        name: one of `REVISIONS`, optionally followed by `@revision` for another commit, branch or
            tag.

    Raises:
        UserError: the repository or revision is unknown, its license has not been accepted, the
            Hub is unreachable, or the cache has no place.
    """
    from huggingface_hub import errors, hf_hub_download

    repository, _, revision = name.partition("@")
    if repository not in REVISIONS:
        raise UserError(
            f"weights.encoder.source is {name!r}: expected 'random', a folder, a .safetensors or "
            ".pth file of timm's, or one of "
            f"{', '.join(REVISIONS)}{did_you_mean(repository, REVISIONS)}"
        )
    _refuse_without_home(repository)
    revision = revision or REVISIONS[repository]

    def get(file: str) -> Path:
        return Path(hf_hub_download(repository, file, revision=revision))

    try:
        folder = get(CONFIG).parent
        try:
            get(WHOLE)
        # A subclass of EntryNotFoundError: the file may exist, but the Hub could not be asked.
        except errors.LocalEntryNotFoundError:
            if not (folder / PICKLED).is_file():
                raise
        except errors.EntryNotFoundError:
            if repository.startswith("facebook/dino-"):
                get(PICKLED)
                return folder
            get(INDEX)
            for file in weight_files(folder):
                get(file)
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(_gated(repository)) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{repository} has no revision {revision!r}; leave @revision out for "
            f"{REVISIONS[repository]}"
        ) from error
    except Exception as error:  # each network layer has its own errors
        if _is_of_disk(error):
            raise
        weights = PICKLED if repository.startswith("facebook/dino-") else WHOLE
        raise UserError(
            f"{repository} cannot be fetched from the Hugging Face Hub ({_reason(error)}): on a "
            f"machine that can reach it, download {CONFIG} and {weights} of revision {revision} "
            "into one folder, copy it here, and set --config.weights.encoder.source to its path"
        ) from error
    return folder


def fetch_file(repository: str, file: str, path: str) -> Path:
    """Download one file of a repository of newest revision; its folder is named after the commit.

    Args:
        repository: its name, optionally followed by `@revision`.
        file: its name there.
        path: the entry of a config that names it, for messages.

    Raises:
        UserError: the Hub is unreachable, or has no such file.
    """
    from huggingface_hub import hf_hub_download

    name, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(name, file, revision=revision or "main"))
    except Exception as error:  # each network layer has its own errors
        if _is_of_disk(error):
            raise
        raise UserError(
            f"{name} cannot be fetched from the Hugging Face Hub ({_reason(error)}): on a machine "
            f"that can reach it, download {file}, copy it here, and set "
            f"--config.{path}.source to its path"
        ) from error


def is_repository(source: str | os.PathLike) -> bool:
    """Tell whether a source names a repository of the Hub, such as "hf://owner/name"."""
    return os.fspath(source).startswith(SCHEME)


def split_name(source: str) -> tuple[str, str | None]:
    """Return the repository and the revision of "hf://owner/name" or "hf://owner/name@revision".

    Raises:
        UserError: it has another form.
    """
    match = re.fullmatch(rf"{SCHEME}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if match is None:
        raise UserError(
            f"found {source!r}, expected {SCHEME}OWNER/NAME, optionally with @REVISION behind it"
        )
    return match[1], match[2]


def download(source: str, file: str, otherwise: str) -> Path:
    """Download a file of a repository once; later calls find it in the cache.

    Args:
        source: such as "hf://owner/name".
        file: its name there.
        otherwise: what to do where the Hub cannot be reached, for messages.

    Raises:
        UserError: there is no such repository, revision or file, its license has not been
            accepted, or the Hub is unreachable.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repository, revision = split_name(source)
    _refuse_without_home(source)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except errors.GatedRepoError as error:
        raise UserError(_gated(repository)) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the Hugging Face Hub has no repository {repository}, or you may not read it; check "
            "its name, or log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{source}: the repository has no such revision; leave @ and it out"
        ) from error
    except Exception as error:  # each network layer has its own errors
        # A subclass of EntryNotFoundError: the Hub could not be asked.
        could_ask = not isinstance(error, errors.LocalEntryNotFoundError)
        if could_ask and isinstance(error, errors.EntryNotFoundError):
            raise UserError(f"{source} has no file {file}: {otherwise}") from error
        if _is_of_disk(error):
            raise
        raise UserError(
            f"{file} of {source} cannot be fetched ({_reason(error)}): {otherwise}"
        ) from error


def upload(folder: Path, source: str, *, private: bool, message: str, token: str | None) -> str:
    """Upload the files of a folder to a repository, which is made if there is none.

    Args:
        folder: the files.
        source: such as "hf://owner/name".
        private: whether a new repository is private.
        message: of the commit.
        token: of the user; None: the one that `hf auth login` has stored.

    Returns:
        The address of the commit.

    Raises:
        UserError: you may not write there, or the Hub is unreachable.
    """
    import huggingface_hub

    repository, revision = split_name(source)
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            revision=revision,
        )
    except Exception as error:  # each network layer has its own errors
        status = getattr(getattr(error, "response", None), "status_code", None)
        do = "check the connection, and that HF_HUB_OFFLINE is not set"
        if status in (401, 403):
            do = "log in with `hf auth login`, as someone who may write there"
        elif isinstance(error, ValueError):
            do = "the Hub refuses what is written: check the repository's name and the license"
        raise UserError(f"{source} cannot be written ({_reason(error)}); {do}") from error
    return commit.commit_url


def _refuse_without_home(what: str) -> None:
    """Refuse to download where there is no place for the cache.

    Raises:
        UserError: there is none.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_CACHE.startswith("~"):  # it stays where there is no home folder
        raise UserError(
            f"{what} has no place to be kept: there is no home folder; set HF_HOME to a folder "
            "that can be written"
        )


def _gated(repository: str) -> str:
    return (
        f"{repository} is gated: accept its license at https://huggingface.co/{repository}, log in "
        "with `hf auth login` on this machine, and start again"
    )


def _is_of_disk(error: Exception) -> bool:
    """Whether the cache cannot be written, which the system explains best."""
    full_or_closed = (errno.ENOSPC, errno.EDQUOT, errno.EACCES)
    return isinstance(error, OSError) and error.errno in full_or_closed


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:  # the root cause explains what happened
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
