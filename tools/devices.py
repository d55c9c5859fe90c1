"""`aieflow devices`: what works on this computer, how fast, and why the rest does not."""

import json
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from aieflow.devices.cpu import GEMM_SIZE, CpuDevice, Rates, measure_rates
from aieflow.devices.registry import cache_folder, open_device, survey
from aieflow.devices.surroundings import Finding
from aieflow.ops.errors import AieflowError
from aieflow.tools.console import ERR, OUT
from aieflow.tools.device_rates import measure_device_rates

NO_DESIGN = "what an NPU computes depends on its design (xclbin), and none is opened here"
Measured = dict[str, Rates | str]  # by device; a text says why there are no rates


def devices(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    measure: Annotated[
        bool, typer.Option(help="Measure each device's GEMM rate and memory bandwidth.")
    ] = True,
) -> None:
    """Show the devices of this computer: which work, how fast, and why the others do not.

    Example: aieflow devices --no-measure
    """
    findings = survey()
    measured: Measured = {}
    for finding in findings:
        if measure and finding.works:
            with ERR.status(f"measuring the {finding.device}"):
                measured[finding.device] = _measure(finding.device)
    if as_json:
        OUT.out(json.dumps(_document(findings, measured), indent=2), highlight=False)
    else:
        OUT.print(_table(findings, measured), soft_wrap=False)


def _measure(name: str) -> Rates | str:
    """The rates of a device that works, or why there are none."""
    if name == "cpu":
        with closing(CpuDevice()) as cpu:
            return measure_rates(cpu)
    if name == "npu":
        return NO_DESIGN
    try:
        with closing(open_device(name, cache=cache_folder())) as device:
            return measure_device_rates(device)
    except AieflowError as error:  # the other devices are still worth showing
        return str(error)


def _document(findings: tuple[Finding, ...], measured: Measured) -> dict[str, object]:
    """Rates are in FLOP/s and bytes/s, over all lanes together; `measured` is null without them.

    `not_measured` then says why; null where nothing was to be measured.
    """
    documents = []
    for finding in findings:
        rates = measured.get(finding.device)
        documents.append(
            {
                **asdict(finding),
                "measured": asdict(rates) if isinstance(rates, Rates) else None,
                "not_measured": rates if isinstance(rates, str) else None,
            }
        )
    return {"devices": documents}


def _table(findings: tuple[Finding, ...], measured: Measured) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("device", "works", ""):
        table.add_column(heading, no_wrap=True)
    table.add_column(overflow="fold")
    for number, finding in enumerate(findings):
        if number:
            table.add_row()
        works = Text("yes", "green") if finding.works else Text("no", "yellow")
        kind = "model" if finding.works else "reason"
        table.add_row(Text(finding.device, "bold"), works, kind, Text(finding.description))
        rates = measured.get(finding.device)
        facts = dict(finding.facts)
        if isinstance(rates, Rates):
            facts |= _describe(finding.device, rates)
        elif rates is not None:
            facts["not measured"] = rates
        for name, fact in facts.items():
            table.add_row("", "", name, Text(fact))
    return table


def _describe(device: str, rates: Rates) -> dict[str, str]:
    on = f"measured on {rates.lanes} compute lane{'s' if rates.lanes > 1 else ''}"
    each, work = (" on each", "copy") if device == "cpu" else ("", "sum of two arrays")
    return {
        "GEMM": f"{rates.gemm_flops_per_s / 1e9:,.1f} GFLOP/s, {on} "
        f"(float32, {GEMM_SIZE} x {GEMM_SIZE}{each})",
        "bandwidth": f"{rates.bytes_per_s / 1e9:,.1f} GB/s, {on} ({work}, read plus written)",
    }
