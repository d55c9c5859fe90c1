"""`aieflow npu`: whether this computer's NPU can be used, and the designs it is set up with."""

import json
import platform
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aieflow.devices.npu import NpuDevice
from aieflow.devices.xrt import load_pyxrt
from aieflow.ops.errors import AieflowError, InputError
from aieflow.ops.npu.design import DESIGNS, GemmDesign
from aieflow.ops.npu.iron_release import WANTED, installed_version, version_fault
from aieflow.ops.npu.standard import GEMM, MLP, NAMES, PARTS, STANDARD, AnyDesign
from aieflow.tools.calibrate import calibrate
from aieflow.tools.console import ERR, OUT
from aieflow.tools.folding import fold, terminal_width
from aieflow.tools.npu_builds import (
    Build,
    build_faults,
    compile_in_child,
    describe_with_xclbinutil,
    find_build,
    list_builds,
    make_build,
    parallel_builds,
    remove_builds,
)
from aieflow.tools.npu_doctor import BUILD_TOOLS, Check, can_run, diagnose, seen_generation
from aieflow.tools.npu_here import builds_folder, this_computer
from aieflow.tools.npu_smoke import SmokeTest, describe, smoke_test

npu = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check the NPU, and build its designs."
)
ALL = "all"
Generation = Annotated[
    str | None, typer.Option(help=f"{', '.join(DESIGNS)} or {ALL}; default: this computer's.")
]


@npu.command("doctor")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    smoke: Annotated[bool, typer.Option(help="Compute and measure if all is well.")] = True,
    then_calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Then calibrate it, in under two minutes.")
    ] = False,
) -> None:
    """Say what a run on the NPU needs of this computer, and the remedy for what is missing.

    The exit code is 0 when a run is possible and 1 when not. Example: aieflow npu doctor
    """
    if then_calibrate and as_json:
        raise InputError("--calibrate prints tables: leave --json out, or --calibrate")
    checks = diagnose(this_computer())
    found, failure = _smoke(checks) if smoke and can_run(checks) else (None, None)
    is_well = can_run(checks) and failure is None
    if as_json:
        document = {
            "can_run": is_well,
            "checks": [asdict(check) for check in checks],
            "smoke_test": None if found is None else asdict(found),
            "failure": failure,
        }
        OUT.out(json.dumps(document, indent=2), highlight=False)
    else:
        OUT.print(f"aieflow {version('aieflow')}, Python {platform.python_version()}")
        for line in lines(checks, terminal_width()):
            OUT.print(line)
        for line in describe(found) if found is not None else ():
            OUT.print(escape(line))
        if failure is not None:
            OUT.print(f"[red]smoke test failed:[/] {escape(failure)}")
        OUT.print(_conclusion(checks, failure, found is not None))
    if not is_well:
        raise typer.Exit(1)
    if then_calibrate:
        calibrate(quick=True, device="npu")


def lines(checks: Sequence[Check], width: int | None = None) -> tuple[str, ...]:
    """A line for each check, the remedy below it where it is not ok; `width`: of a terminal."""
    names = max(len(check.name) for check in checks)
    column = len("not ok") + 2 + names + 2
    found = []
    for check in checks:
        fact = escape(fold(check.fact, column, width))
        text = f"{_word(check)}  {check.name:{names}}  {fact}"
        if not check.is_ok and check.remedy:
            remedy = escape(fold(check.remedy, column + 3, width))
            text += f"\n{' ' * column}-> {remedy}"
        found.append(text)
    return tuple(found)


def _word(check: Check) -> str:
    if check.is_ok:
        return "[green]ok    [/]"
    if not check.is_known:
        return "[dim]n/a   [/]"
    return "[red]not ok[/]" if check.is_needed else "[yellow]note  [/]"


def _conclusion(checks: Sequence[Check], failure: str | None, is_tested: bool) -> str:
    missing = sum(not check.is_ok and check.is_needed for check in checks)
    if missing:
        return f"a run on the NPU is not possible: {missing} of {len(checks)} checks are not ok"
    if failure is not None:
        return "a run on the NPU is not possible: the smoke test failed"
    after = "; measure it: `aieflow npu doctor --calibrate`" if is_tested else ""
    return f"a run on the NPU is possible{after}"


def _smoke(checks: Sequence[Check]) -> tuple[SmokeTest | None, str | None]:
    """The smoke test on the built design, or why it failed."""
    (design_check,) = (check for check in checks if check.name == "design")
    xclbin = Path(design_check.fact)
    design = next(build.design for build in list_builds(builds_folder()) if build.xclbin == xclbin)
    assert isinstance(design, GemmDesign)
    try:
        with closing(NpuDevice(load_pyxrt(), xclbin, design)) as device:
            return smoke_test(device, design), None
    except AieflowError as error:
        return None, str(error)


@npu.command("build")
def build(
    generation: Generation = None,
    design: Annotated[
        str, typer.Option(help=f"{', '.join((*NAMES, MLP))} or {ALL}, several with commas.")
    ] = GEMM,
    anew: Annotated[bool, typer.Option("--anew", help="Build also what is there.")] = False,
) -> None:
    """Build the design that training needs, or others; what is there is kept.

    Needs mlir-aie and Peano. Example: aieflow npu build --generation npu1
    """
    root = builds_folder()
    names = _designs(design)
    wanted = [
        STANDARD[each][name]
        for each in _generations(generation)
        for name in names
        if anew or not find_build(root, each, name)
    ]
    if not wanted:
        OUT.print("all is built: `aieflow npu list` shows it")
        return
    require_toolchain()
    jobs = parallel_builds(
        len(wanted), psutil.cpu_count() or 1, int(psutil.virtual_memory().available)
    )
    ERR.print(
        f"building {len(wanted)} design{'s' if len(wanted) > 1 else ''}, {jobs} at a time: minutes "
        "(mlir-aie reports about 8 s for 16 cores; nobody has measured these)"
    )
    for made in _build_all(root, wanted, jobs):
        OUT.print(f"{made.seconds:.0f} s: {escape(str(made.xclbin))}")


def _build_all(root: Path, wanted: Sequence[AnyDesign], jobs: int) -> list[Build]:
    """Build side by side; the first error ends the command when those under way have ended."""
    bar = Progress(
        TextColumn("designs"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        console=ERR,
        transient=True,
        disable=not ERR.is_terminal,
    )
    made = []
    with bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task("", total=len(wanted))
        running = [
            pool.submit(make_build, root, design, compile_in_child, describe_with_xclbinutil)
            for design in wanted
        ]
        for future in as_completed(running):
            made.append(future.result())
            bar.advance(task)
            if not ERR.is_terminal:
                ERR.print(f"{len(made)} of {len(wanted)} designs are built")
    return made


def require_toolchain() -> None:
    """Raise InputError, with every remedy, unless mlir-aie, Peano and their tools are here."""
    faults = [version_fault(package, installed_version(package)) for package in WANTED]
    for tool, remedy in BUILD_TOOLS.items():
        if shutil.which(tool) is None:
            faults.append(f"there is no {tool} on PATH: {remedy}")
    missing = [fault for fault in faults if fault is not None]
    if missing:
        raise InputError("a design cannot be built here:\n- " + "\n- ".join(missing))


def _designs(asked: str) -> tuple[str, ...]:
    """The names of the designs to build, each once; raises InputError for what is none."""
    if asked == ALL:
        return NAMES
    found: list[str] = []
    for name in (each.strip() for each in asked.split(",")):
        parts = PARTS.get(name, (name,))
        if not set(parts) <= set(NAMES):
            raise InputError(f"--design {name}: must be one of {', '.join((*NAMES, MLP, ALL))}")
        found += [part for part in parts if part not in found]
    return tuple(found)


def _generations(asked: str | None) -> tuple[str, ...]:
    if asked == ALL:
        return tuple(DESIGNS)
    if asked is None:
        name = seen_generation(this_computer().around)
        if name is None:
            raise InputError(
                f"no NPU is seen here: say for which one: --generation {' or '.join(DESIGNS)}"
            )
        return (name,)
    if asked not in DESIGNS:
        raise InputError(f"--generation {asked}: must be one of {', '.join((*DESIGNS, ALL))}")
    return (asked,)


@npu.command("list")
def list_command() -> None:
    """List the designs that are built. Example: aieflow npu list."""
    builds = list_builds(builds_folder())
    for each in builds:
        state = "current" if each.is_current else "of another version: `aieflow npu clean`"
        tools = ", ".join(f"{name} {number}" for name, number in each.toolchain.items())
        OUT.print(escape(f"{each.folder.name}  {state}  {tools}  {each.xclbin}"))
    if not builds:
        OUT.print(f"nothing is built in {escape(str(builds_folder()))}: `aieflow npu build`")


@npu.command("check")
def check_command() -> None:
    """Check what is built: files, metadata, instruction streams. Example: aieflow npu check."""
    builds = list_builds(builds_folder())
    bad = 0
    for each in builds:
        faults = build_faults(each)
        bad += bool(faults)
        OUT.print(f"{'not ok' if faults else 'ok    '}  {escape(each.folder.name)}")
        for fault in faults:
            OUT.print(f"        {escape(fault)}")
    if not builds:
        OUT.print(f"nothing is built in {escape(str(builds_folder()))}: `aieflow npu build`")
    if bad:
        OUT.print(f"build {bad} of {len(builds)} again: `aieflow npu build --anew`")
        raise typer.Exit(1)


@npu.command("clean")
def clean(
    every: Annotated[bool, typer.Option("--all", help="Remove also what is current.")] = False,
) -> None:
    """Remove builds that are not current, and unfinished ones. Example: aieflow npu clean."""
    removed = remove_builds(builds_folder(), every)
    for name in removed:
        OUT.print(f"removed {escape(name)}")
    if not removed:
        OUT.print("nothing to remove")
