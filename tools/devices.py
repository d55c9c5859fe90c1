"""`aieflow devices`: what works on this computer, how fast, and why the rest does not."""

import json
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from aieflow.devices.cpu import GEMM_SIZE, CpuDevice, Rates, measure_rates
from aieflow.devices.registry import Finding, survey
from aieflow.tools.console import ERR, OUT


def devices(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    measure: Annotated[
        bool, typer.Option(help="Measure the CPU's GEMM rate and memory bandwidth.")
    ] = True,
) -> None:
    """Show the devices of this computer: which work, how fast, and why the others do not.

    Example: aieflow devices --no-measure
    """
    findings = survey()
    rates: dict[str, Rates] = {}
    if measure:
        with ERR.status("measuring the cpu"), closing(CpuDevice()) as device:
            rates[device.name] = measure_rates(device)
    if as_json:
        OUT.out(json.dumps(_document(findings, rates), indent=2), highlight=False)
    else:
        OUT.print(_table(findings, rates), soft_wrap=False)


def _document(findings: tuple[Finding, ...], rates: dict[str, Rates]) -> dict[str, object]:
    """Rates are in FLOP/s and bytes/s, over all lanes together; `measured` is null without them."""
    return {
        "devices": [
            {
                **asdict(finding),
                "measured": asdict(rates[finding.device]) if finding.device in rates else None,
            }
            for finding in findings
        ]
    }


def _table(findings: tuple[Finding, ...], rates: dict[str, Rates]) -> Table:
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
        facts = dict(finding.facts)
        if finding.device in rates:
            facts |= _measured(rates[finding.device])
        for name, fact in facts.items():
            table.add_row("", "", name, Text(fact))
    return table


def _measured(rates: Rates) -> dict[str, str]:
    on = f"measured on {rates.lanes} compute lane{'s' if rates.lanes > 1 else ''}"
    return {
        "GEMM": f"{rates.gemm_flops_per_s / 1e9:,.1f} GFLOP/s, {on} "
        f"(float32, {GEMM_SIZE} x {GEMM_SIZE} on each)",
        "bandwidth": f"{rates.bytes_per_s / 1e9:,.1f} GB/s, {on} (copy, read plus written)",
    }
