"""`aieflow train gpt2`: trains from scratch, fine-tunes, or goes on with a run."""

import shlex
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from rich.markup import escape

from aieflow.devices.registry import here
from aieflow.gpt2.data import TokenData, load_tokens
from aieflow.gpt2.energy import Energy
from aieflow.gpt2.run_folder import (
    RunFolder,
    create_run,
    lock_run,
    next_default,
    open_run,
    require_free,
)
from aieflow.gpt2.tokenizer import Tokenizer
from aieflow.gpt2.train import make_sampler, restore
from aieflow.gpt2.train import train as train_run
from aieflow.gpt2.trainer import StepRecord, Trainer
from aieflow.ops.errors import InputError, ProfileError
from aieflow.runtime.machine import Machine
from aieflow.runtime.step_cost import MachineStepCost, StepCost
from aieflow.runtime.timeline import Recorded
from aieflow.tools.computer_profile import measured_cost
from aieflow.tools.console import ERR, OUT
from aieflow.tools.energy_meter import EnergyMeter
from aieflow.tools.live_feed import LiveFeed, Together
from aieflow.tools.machine_options import (
    AllowFp16,
    CheckDevices,
    Devices,
    MachineName,
    OnDeviceFailure,
    Place,
    Policy,
    Replan,
    Settings,
    Shards,
    Slots,
    Xclbin,
    settings_among,
)
from aieflow.tools.machines import machine_of, opened_machine
from aieflow.tools.model_options import (
    BatchSize,
    Channels,
    Dropout,
    GradAccumulation,
    GradClip,
    Heads,
    Lanes,
    Layers,
    Model,
    Preset,
    SeqLen,
    VocabSize,
    require_gpt2,
)
from aieflow.tools.progress import TrainingProgress
from aieflow.tools.run_options import (
    FREE,
    Asked,
    asked_for,
    find_tokenizer,
    new_config,
    require_agreement,
    require_sources,
)
from aieflow.tools.search import ObjectiveName, PowerCap
from aieflow.tools.summary import print_header, print_notes, print_sample, print_summary
from aieflow.tools.trace_files import TRACE_HELP, require_trace_file, write_trace

RUNS = Path("runs")  # where runs without --out begin
CACHE = ".tokens"  # beside the runs, which share it: tokenised data
TRACED = 5  # training steps that a trace file holds: the last ones


def train(
    model: Model,
    preset: Preset = None,
    init: Annotated[
        str | None,
        typer.Option(help="Fine-tune: a Hugging Face folder, or gpt2, gpt2-medium, -large, -xl."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A text file, a folder of them, or a .bin of uint16 tokens."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The new run's folder.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    layers: Layers = None,
    heads: Heads = None,
    channels: Channels = None,
    vocab_size: VocabSize = None,
    seq_len: SeqLen = None,
    batch_size: BatchSize = None,
    grad_accumulation: GradAccumulation = None,
    steps: Annotated[int | None, typer.Option(help="Number of training steps.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at its peak.")] = None,
    lr_schedule: Annotated[
        Literal["constant", "cosine"] | None, typer.Option(help="What follows the warmup.")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Training steps of linear warmup; 0: none.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decoupled; on matrices.")] = None,
    beta1: Annotated[float | None, typer.Option(help="Of AdamW.")] = None,
    beta2: Annotated[float | None, typer.Option(help="Of AdamW.")] = None,
    grad_clip: GradClip = None,
    dropout: Dropout = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and dropout.")] = None,
    sampling: Annotated[
        Literal["random", "sequential"] | None, typer.Option(help="Where sequences begin.")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Training steps between evaluations; 0: only at the end.")
    ] = None,
    eval_batches: Annotated[int | None, typer.Option(help="Batches of one evaluation.")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Training steps between checkpoints; 0: only at the end.")
    ] = None,
    check_finite: Annotated[
        bool, typer.Option("--check-finite", help="Name the first node that gives NaN. Slow.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"Write the last training steps, also for `report`: {TRACE_HELP}."
        ),
    ] = None,
    lanes: Lanes = None,
    devices: Devices = None,
    machine: MachineName = None,
    policy: Policy = None,
    place: Place = None,
    shards: Shards = None,
    slots: Slots = None,
    on_device_failure: OnDeviceFailure = None,
    check_devices: CheckDevices = False,
    xclbin: Xclbin = None,
    allow_fp16: AllowFp16 = False,
    objective: ObjectiveName = None,
    power_cap_w: PowerCap = None,
    replan: Replan = None,
    energy: Annotated[
        bool,
        typer.Option(
            "--energy",
            help="Measure the joules of each training step by the package's counter (RAPL), which "
            "is read before and after it, and may be root's alone; coarse below some ms. Not kept "
            "in the run: give it again with --resume.",
        ),
    ] = False,
    sample: Annotated[bool, typer.Option(help="End with a text by the model.")] = True,
) -> None:
    """Train GPT-2: from scratch, from pretrained weights, or on with a run.

    Example: aieflow train gpt2 --data book.txt --steps 2000 --out runs/book
    """
    machine_settings = settings_among(locals())
    require_gpt2(model, "train")
    asked = asked_for(
        preset,
        init,
        {
            "data": data,
            "layers": layers,
            "heads": heads,
            "channels": channels,
            "vocab_size": vocab_size,
            "seq_len": seq_len,
            "batch_size": batch_size,
            "grad_accumulation": grad_accumulation,
            "steps": steps,
            "lr": lr,
            "lr_schedule": lr_schedule,
            "warmup": warmup,
            "weight_decay": weight_decay,
            "beta1": beta1,
            "beta2": beta2,
            "grad_clip": grad_clip,
            "dropout": dropout,
            "seed": seed,
            "sampling": sampling,
            "eval_every": eval_every,
            "eval_batches": eval_batches,
            "checkpoint_every": checkpoint_every,
            "check_finite": check_finite or None,
            "shards": shards,
            "replan": replan,
            **machine_settings,
        },
    )
    if trace is not None:
        require_trace_file(trace)
    if resume is not None and out is not None:
        raise InputError(f"--out {out} and --resume {resume}: a run stays in its folder")
    extras = _Extras(trace, energy, sample)
    if resume is None:
        _begin(out, asked, machine_settings, extras)
    else:
        _go_on(resume, asked, machine_settings, extras)


@dataclass(frozen=True, slots=True)
class _Extras:
    """What is wanted beside training, this time: no settings of the run."""

    trace: Path | None
    energy: bool
    sample: bool


def _begin(out: Path | None, asked: Asked, given: Settings, extras: _Extras) -> None:
    path = next_default(RUNS) if out is None else out
    require_free(path)
    config = new_config(asked)
    with (
        opened_machine(machine_of(config), given) as machine,
        closing(_Opened(RunFolder(path, config), machine)) as opened,
    ):
        # Only now, so that nothing is left behind where an option or a file is refused; and another
        # process may have taken the default name since.
        run = create_run(next_default(RUNS) if out is None else out, config)
        with lock_run(run.path):
            opened.train(run, extras)


def _go_on(resume: Path, asked: Asked, given: Settings, extras: _Extras) -> None:
    run = open_run(resume)
    require_agreement(run, asked)
    free = {name: asked.settings[name] for name in FREE if name in asked.settings}
    run = replace(run, config=replace(run.config, **free))  # type: ignore[arg-type]  # checked there
    with lock_run(run.path):
        require_sources(run)
        with (
            opened_machine(machine_of(run.config), given) as machine,
            closing(_Opened(run, machine)) as opened,
        ):
            opened.train(run, extras)


class _Opened:
    """A run that is ready: data read, memory planned, kernels compiled, parameters filled.

    Raises InputError for whatever is wrong with data, weights or memory. Writes nothing into the
    run's folder.
    """

    def __init__(self, run: RunFolder, machine: Machine) -> None:
        config = run.config
        self.machine = machine
        init = Path(config.init) if config.init and run.latest is None else None
        self.tokenizer: Tokenizer | None = find_tokenizer(config, run.latest or init)
        source = Path(config.data) if config.data else None
        cache = run.path.absolute().parent / CACHE
        self.data: TokenData = load_tokens(
            source, self.tokenizer, cache, config.model.vocab_size, config.seq_len
        )
        make_sampler(config, self.data)
        with ERR.status("planning"):
            self.trainer = Trainer(config, machine)
        print_header(run, machine, self.trainer, self.data)
        with ERR.status("compiling kernels (kept for the next time)"):
            self.trainer.warm_up()
        print_notes(machine)
        self.state = restore(run, self.trainer, self.data, init)

    def train(self, run: RunFolder, extras: _Extras) -> None:
        """Do the run, or what is left of it, and print what came of it."""
        trace = extras.trace
        trainer, tokenizer, state = self.trainer, self.tokenizer, self.state
        ERR.print(f"run         {escape(str(run.path))}")
        if state.training_step:
            ERR.print(f"going on after training step {state.training_step}")
        meter: EnergyMeter | None = None
        if extras.energy:
            meter = EnergyMeter(here(), trainer.emulated)
            ERR.print(f"energy      {escape(meter.outlook())}")
        progress = _KeptProgress(run.config.steps, state.training_step)
        begin = time.perf_counter()
        feed = LiveFeed(run.path, trainer, run.config.steps)
        with progress, feed, _asked_to_stop() as stop:
            if feed.fault is not None:
                ERR.print(f"note        nobody can watch this run: {escape(feed.fault)}")
            outcome = train_run(
                run,
                trainer,
                self.data,
                state,
                Together(progress, feed),
                write_tokenizer=tokenizer.save if tokenizer else None,
                end_of_text=tokenizer.end_of_text if tokenizer else None,
                should_stop=stop.is_set,
                traced=lambda: trace is not None or feed.wants_trace(),
                meter=meter,
            )
        seconds = time.perf_counter() - begin
        if outcome.is_complete and extras.sample and tokenizer is not None:
            print_sample(run.config.model, trainer.parameters, tokenizer, run.config.lanes)
        print_summary(
            *(run, trainer, outcome, progress.records, seconds, tokenizer is not None),
            energies=progress.energies,
        )
        if trace is not None:
            _write_trace(progress.recorded, trace, run, trainer.machine)
        if not outcome.is_complete:
            folder = escape(shlex.quote(str(run.path)))
            OUT.print(f"stopped: go on with aieflow train gpt2 --resume {folder}")
            raise typer.Exit(130)

    def close(self) -> None:
        """End the lanes' workers."""
        self.trainer.close()


class _KeptProgress(TrainingProgress):
    """Also keeps the traces of the last training steps, and the energy of all."""

    def __init__(self, steps: int, done: int) -> None:
        super().__init__(ERR, steps, done)
        self.recorded: deque[Recorded] = deque(maxlen=TRACED)
        self.energies: list[Energy] = []  # of those that were measured

    def on_training_step(self, record: StepRecord) -> None:
        """Keep trace and energy, then draw."""
        if record.energy is not None:
            self.energies.append(record.energy)
        if record.trace is not None:
            start_s = time.perf_counter() - record.trace.seconds
            self.recorded.append(Recorded(record.training_step, start_s, record.trace))
        super().on_training_step(record)


def _write_trace(recorded: deque[Recorded], path: Path, run: RunFolder, machine: Machine) -> None:
    if not recorded:
        return
    devices = {device.name: device for device in machine.devices}
    cost: StepCost | None = None
    with suppress(ProfileError, InputError):  # not calibrated: then without predictions
        cost = MachineStepCost(measured_cost(devices.values()))  # of spans: without waking up
    kernels = {name: device.kernels for name, device in devices.items()}
    write_trace(recorded, (path, run.trace_file), cost, kernels)
    name = escape(str(path))
    OUT.print(f"trace       {name} (the last {len(recorded)} training steps)")


class _Stop:
    """Set by the first Ctrl-C or SIGTERM; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        """True once a signal has asked to stop."""
        return self._is_set

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ask to stop; the second time raise KeyboardInterrupt."""
        if self._is_set:
            raise KeyboardInterrupt
        self._is_set = True
        ERR.print("stopping after this training step, with a checkpoint (again: at once)")


@contextmanager
def _asked_to_stop() -> Iterator[_Stop]:
    stop = _Stop()
    previous = {s: signal.signal(s, stop.on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
