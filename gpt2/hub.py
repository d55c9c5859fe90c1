"""What `--init` means: a folder, or the name of a published GPT-2 that is fetched.

The published names win over folders of the same name, since a checkout of this project has a
folder `gpt2`: write `./gpt2` where the folder is meant.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from aieflow.ops.errors import InputError

PUBLISHED = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
}
_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
)

Download = Callable[[str], Path]  # repository id -> folder


def resolve_init(init: str, download: Download | None = None, *, option: str = "--init") -> Path:
    """The folder that an option names, fetched first where it is a published name.

    Raises InputError: nothing of that name, huggingface_hub not installed, or no way to the hub.
    """
    if init in PUBLISHED:
        return _fetch(init, download or _download, option)
    if Path(init).is_dir():
        return Path(init)
    fault = "is not a folder" if Path(init).exists() else "does not exist"
    raise InputError(
        f"{option} {init}: {fault}: give a folder with config.json and model.safetensors, "
        f"or one of {', '.join(PUBLISHED)}"
    )


def _fetch(name: str, download: Download, option: str) -> Path:
    repository = PUBLISHED[name]
    try:
        return download(repository)
    except ImportError:
        raise InputError(
            f"{option} {name}: fetching it takes the package huggingface_hub: "
            f"pip install 'aieflow[hub]', or give a folder: {option} DIR"
        ) from None
    except Exception as error:  # the package lets its HTTP client's errors through, and swaps it
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{option} {name}: {repository} could not be fetched ({reason}): download the folder "
            f"where there is a network, and give it: {option} DIR"
        ) from None


def _download(repository: str) -> Path:
    hub = import_module("huggingface_hub")  # by name: the type checkers run without the extra
    return Path(str(hub.snapshot_download(repository, allow_patterns=list(_FILES))))
