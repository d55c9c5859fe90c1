"""From the options of `aieflow train` to the settings of a run.

Only what was given on the command line counts as asked for; the rest follows from the model. On
`--resume` everything comes from the run, and what was asked for must agree with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.defaults import default_settings
from aieflow.gpt2.hub import PUBLISHED, resolve_init
from aieflow.gpt2.pretrained import read_model_config
from aieflow.gpt2.run_config import RunConfig, differences
from aieflow.gpt2.run_folder import RunFolder, holds_run, open_run
from aieflow.gpt2.tokenizer import Tokenizer
from aieflow.ops.errors import InputError
from aieflow.tools.machine_options import SETTINGS
from aieflow.tools.model_options import model_from

MODEL_SIZES = ("layers", "heads", "channels", "vocab_size")
# What a resumed run may be told anew: where it runs, and where its data lie.
FREE = ("check_finite", "data", "replan", *SETTINGS)
TOKENIZER_FILES = ("vocab.json", "tokenizer.json")


@dataclass(frozen=True, slots=True)
class Asked:
    """The options that were given: `sizes` of the model, `settings` of `RunConfig`."""

    preset: str | None
    init: str | None
    sizes: Mapping[str, int]
    settings: Mapping[str, int | float | str | bool]


def asked_for(
    preset: str | None, init: str | None, options: Mapping[str, int | float | str | bool | None]
) -> Asked:
    """Sort the options that were given; raises InputError for a preset that does not exist."""
    if preset is not None and init is not None:
        raise InputError(f"--preset {preset} and --init {init}: the sizes come from --init alone")
    given = {name: value for name, value in options.items() if value is not None}
    sizes = {name: value for name in MODEL_SIZES if isinstance(value := given.get(name), int)}
    settings = {name: value for name, value in given.items() if name not in MODEL_SIZES}
    if isinstance(data := settings.get("data"), str):
        if not data:
            raise InputError("--data is empty: give a text file, a folder of them, or a .bin")
        settings["data"] = str(Path(data).absolute())
    for name in ("machine", "xclbin"):  # a run may be resumed from another folder
        file = settings.get(name)
        if isinstance(file, str) and (name == "xclbin" or file.endswith(".toml")):
            settings[name] = str(Path(file).absolute())
    return Asked(preset, init, sizes, settings)


def model_folder(source: str, option: str) -> Path:
    """The folder of weights that an option names: a run's latest checkpoint, a folder, a model.

    Raises InputError where there is none.
    """
    folder = Path(source)
    if source in PUBLISHED or not holds_run(folder):
        return resolve_init(source, option=option)
    latest = open_run(folder).latest
    if latest is None:
        raise InputError(
            f"{option} {folder}: the run has no checkpoint yet: go on with it: "
            f"aieflow train gpt2 --resume {folder}"
        )
    return latest


def new_config(asked: Asked) -> RunConfig:
    """The settings of a new run; raises InputError where options disagree or are out of range."""
    length = asked.settings.get("seq_len")
    seq_len = length if isinstance(length, int) else None
    init: str | None = None
    if asked.init is not None:
        folder = model_folder(asked.init, "--init")
        init = str(folder.absolute())
        model = read_model_config(folder)
        wrong = [
            f"--{name.replace('_', '-')} = {size}, the model has {getattr(model, name)}"
            for name, size in asked.sizes.items()
            if getattr(model, name) != size
        ]
        if wrong:
            raise InputError(f"--init {asked.init}: {'; '.join(wrong)}: leave those options out")
    else:
        model = _new_model(asked, seq_len)
    defaults = default_settings(model, init is not None)
    settings: dict[str, object] = {
        name: getattr(defaults, name) for name in ("batch_size", "seq_len", "steps", "lr", "warmup")
    }
    settings.update(asked.settings)
    return RunConfig(model=model, init=init, **settings)  # type: ignore[arg-type]  # checked there


def _new_model(asked: Asked, seq_len: int | None) -> ModelConfig:
    """The preset with the sizes asked for; a longer T than its context lengthens the context."""
    model = model_from(asked.preset, **asked.sizes)
    return replace(model, seq_len=max(model.seq_len, seq_len or 0))


def require_agreement(run: RunFolder, asked: Asked) -> None:
    """Raise InputError that lists the options which the run in the folder contradicts.

    Where it runs and `check_finite` are no hyper-parameters and may differ; so may the place of the
    data once there is a checkpoint, which knows their content.
    """
    config = run.config
    sizes: dict[str, int] = dict(asked.sizes)
    if asked.preset is not None:
        preset = model_from(asked.preset)
        sizes = {name: getattr(preset, name) for name in MODEL_SIZES} | sizes
    free = set(FREE) - (set() if run.latest is not None else {"data"})
    settings = {name: each for name, each in asked.settings.items() if name not in free}
    if asked.init is not None:
        settings["init"] = str(model_folder(asked.init, "--init").absolute())
    try:
        wanted = replace(config, model=replace(config.model, **sizes), **settings)  # type: ignore[arg-type]  # checked there
    except InputError as error:
        raise InputError(f"--resume {run.path}: {error}") from None
    differing = differences(config, wanted)
    if differing:
        raise InputError(
            f"--resume {run.path}: {'; '.join(differing)}: "
            "leave those options out, or start a new run with --out"
        )


def require_sources(run: RunFolder) -> None:
    """Raise InputError where what a run goes on from or reads is no longer where it was."""
    init = run.config.init if run.latest is None else None
    for option, path in (("--data", run.config.data), ("--init", init)):
        if path is not None and not Path(path).exists():
            moved = ", give its new place with --data" if run.latest is not None else ""
            raise InputError(
                f"--resume {run.path}: {path}, which the run was given as {option}, does not exist "
                f"any more: put it back{moved}, or start a new run with --out"
            )


def find_tokenizer(config: RunConfig, folder: Path | None) -> Tokenizer | None:
    """The tokenizer of the model in `folder`; without a folder the one that aieflow ships.

    None where there is none and none is needed, because the data are tokens already. Raises
    InputError where text is to be read without a tokenizer.
    """
    is_tokens = config.data is not None and config.data.lower().endswith(".bin")
    if folder is not None:
        if is_tokens and not any((folder / name).exists() for name in TOKENIZER_FILES):
            return None
        return Tokenizer.from_folder(folder)
    if is_tokens:
        return None  # whose tokens they are is not known
    tokenizer = Tokenizer.embedded()
    if config.model.vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"--vocab-size = {config.model.vocab_size}: the tokenizer that aieflow ships has "
            f"{tokenizer.vocab_size} tokens: leave the option out, or give --data FILE.bin"
        )
    return tokenizer
