"""`aieflow generate`: text from a run, a checkpoint, or a Hugging Face folder."""

from collections.abc import Iterable
from typing import Annotated

import numpy as np
import typer

from aieflow.gpt2.generate import Generator, Sampling
from aieflow.gpt2.pretrained import read_model_config
from aieflow.gpt2.tokenizer import Tokenizer
from aieflow.ops.errors import InputError
from aieflow.tools.console import ERR, OUT
from aieflow.tools.machine_options import Devices, MachineName, Place, Policy, Settings, Xclbin
from aieflow.tools.machines import MachineAsked, opened_machine
from aieflow.tools.model_options import Lanes
from aieflow.tools.run_options import model_folder


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to go on from; - reads standard input.")
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            "--from", metavar="DIR", help="A run, a checkpoint, a Hugging Face folder, or gpt2."
        ),
    ] = "",
    tokens: Annotated[int, typer.Option(help="Number of tokens to generate.")] = 200,
    samples: Annotated[int, typer.Option(help="Number of texts, generated side by side.")] = 1,
    temperature: Annotated[
        float, typer.Option(help="Below 1 bolder, above 1 wilder; 0: always the likeliest.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw among the K likeliest; 0: no limit.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest that have this share together.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 1,
    lanes: Lanes = None,
    devices: Devices = None,
    machine: MachineName = None,
    policy: Policy = None,
    place: Place = None,
    xclbin: Xclbin = None,
) -> None:
    """Continue a text.

    Example: aieflow generate --from runs/gpt2-001 "The with statement"
    """
    if not source:
        raise InputError("--from is missing: give a run, a checkpoint or a Hugging Face folder")
    for name, value in (("tokens", tokens), ("samples", samples)):
        if value < 1:
            raise InputError(f"--{name} = {value}: must be at least 1")
    sampling = Sampling(temperature, top_k, top_p, seed)
    folder = model_folder(source, "--from")
    read_model_config(folder)  # says more plainly than the tokenizer that this is no model
    tokenizer = Tokenizer.from_folder(folder)
    text = _read_stdin() if prompt == "-" else prompt or ""
    ids = tokenizer.encode(text)
    if not len(ids):
        if tokenizer.end_of_text is None:
            raise InputError('the prompt is empty: give a text, for instance "The"')
        ids = np.array([tokenizer.end_of_text], ids.dtype)
    asked = MachineAsked(devices, machine, policy, place, lanes=lanes, xclbin=xclbin)
    given: Settings = {"lanes": lanes, "machine": machine, "xclbin": xclbin}
    with (
        opened_machine(asked, given) as opened,
        Generator.from_folder(folder, opened, samples) as generator,
    ):
        stream = generator.stream(ids.astype("int32"), sampling)
        if samples == 1:
            _print_while(text, tokenizer, (next(stream)[0] for _ in range(tokens)))
        else:
            columns = list(zip(*(next(stream) for _ in range(tokens)), strict=True))
            for number, column in enumerate(columns, 1):
                ERR.print(f"--- {number} of {samples}")
                _print(text + tokenizer.decode(column) + "\n")


def _read_stdin() -> str:
    content = typer.get_binary_stream("stdin").read()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input: not UTF-8: byte 0x{content[error.start]:02x} at offset "
            f"{error.start}: convert it, for instance with `iconv -f LATIN1 -t UTF-8`"
        ) from None


def _print_while(text: str, tokenizer: Tokenizer, ids: Iterable[int]) -> None:
    """Print tokens as they come; a character of several tokens only once it is whole."""
    _print(text)
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        part = tokenizer.decode(pending)
        if not part.endswith("\ufffd") or len(pending) > 4:
            _print(part)
            pending = []
    _print((tokenizer.decode(pending) if pending else "") + "\n")


def _print(text: str) -> None:
    OUT.out(text, end="", highlight=False)
    OUT.file.flush()
