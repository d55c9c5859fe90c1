"""Measures what is no node: transfers and copies, and devices beside each other."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from aieflow.devices.base import Clock, Device, Direction
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.op import Array
from aieflow.profiles.measured import Series
from aieflow.runtime.binding import allocate_host, release_host
from aieflow.runtime.executor import Executor
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.tools.calibration_visit import Pool, feeds_of

LINK_NBYTES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)
DIRECTIONS: tuple[Direction, Direction] = ("in", "out")
PAIR_MODEL = ModelConfig(vocab_size=2048, seq_len=64, layers=2, heads=4, channels=256)
PAIR_RUN_S = 0.05  # how long a device works alone, then beside another, at least


def measure_links(devices: dict[str, Device], rounds: int) -> dict[Series, tuple[float, ...]]:
    """Seconds of transfers of each device in both directions, syncs included, and of host copies.

    A device with a clock of its own for its copy lanes tells what they take there: what lies
    between one and the next is a gap. `devices` has the host's first. Sizes and directions take
    turns. Raises DeviceError.
    """
    home = next(iter(devices.values()))
    calls: dict[Series, Callable[[], float]] = {}
    memory = allocate_host(devices, LINK_NBYTES[-1])
    memory[:] = 1
    target = np.ones_like(memory)
    try:
        clocks = {name: device.profile(True) for name, device in devices.items()}
        for nbytes in LINK_NBYTES:
            copy = _copy(memory[:nbytes], target[:nbytes])
            calls["copy", home.name, str(nbytes)] = partial(_seconds, copy)
            for name, device in devices.items():
                if device.copy_lanes is None:
                    continue
                for way, lane in zip(DIRECTIONS, device.copy_lanes, strict=True):
                    transfer = device.bind_whole_transfer(memory[:nbytes], way)
                    clock = clocks[name].get(lane)
                    calls[way, device.name, str(nbytes)] = (
                        partial(_seconds, transfer)
                        if clock is None
                        else partial(_seconds_told, transfer, clock)
                    )
        return _timed(calls, rounds)
    finally:
        calls.clear()
        for device in devices.values():
            device.profile(False)
        release_host(devices, memory)


def measure_slowdown(
    devices: dict[str, Device], pair: tuple[str, str], rounds: int
) -> dict[Series, tuple[float, ...]]:
    """How many times longer each device of a pair takes beside the other: both ways.

    Each trains a small model of its own, alone and beside the other in turn. Raises DeviceError.
    """
    config = RunConfig(model=PAIR_MODEL, batch_size=4, seq_len=PAIR_MODEL.seq_len)
    graph = training_graph(config)
    pools: list[Pool] = []
    executors: list[Executor] = []
    factors: dict[Series, list[float]] = {}
    try:
        for name in pair:
            machine = Machine((devices[name],), Placement(name))
            plan = machine.plan(graph)
            pools.append(Pool(machine))
            states, arena = pools[-1].bind(plan)
            executors.append(machine.open(plan, states, arena))
        feeds = feeds_of(config, graph)
        works = [_repeated(executor, feeds) for executor in executors]
        for work in works:
            work()
        for _ in range(rounds):
            for place, name in enumerate(pair):
                other = works[1 - place]
                alone_s = _seconds(works[place])
                beside_s = _seconds_beside(works[place], other)
                series = ("slowdown", f"{name},{pair[1 - place]}", "")
                factors.setdefault(series, []).append(beside_s / alone_s)
    finally:
        for executor in executors:
            executor.close()
        for pool in pools:
            pool.close()
    return {name: tuple(each) for name, each in factors.items()}


def _repeated(executor: Executor, feeds: Mapping[str, Array]) -> Callable[[], None]:
    """The call that runs a plan as often as lasts `PAIR_RUN_S`."""
    executor.run(feeds)
    begin = time.perf_counter()
    executor.run(feeds)
    times = max(1, math.ceil(PAIR_RUN_S / (time.perf_counter() - begin)))

    def run() -> None:
        for _ in range(times):
            executor.run(feeds)

    return run


def _copy(source: Array, target: Array) -> Callable[[], None]:
    return lambda: np.copyto(target, source)


def _timed(
    calls: dict[Series, Callable[[], float]], rounds: int
) -> dict[Series, tuple[float, ...]]:
    seconds: dict[Series, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(call())
    return {name: tuple(each) for name, each in seconds.items()}


def _seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _seconds_told(call: Callable[[], None], clock: Clock) -> float:
    """Seconds of what `call` began and ended on a device, by the device's clock."""
    call()
    ran = clock()()
    assert ran is not None
    return (ran[1] - ran[0]) / 1e9


def _seconds_beside(call: Callable[[], None], other: Callable[[], None]) -> float:
    """Seconds of `call` while another thread repeats `other`."""
    begun, ended = threading.Event(), threading.Event()

    def repeat() -> None:
        while not ended.is_set():
            begun.set()
            other()

    thread = threading.Thread(target=repeat)
    thread.start()
    begun.wait()
    try:
        return _seconds(call)
    finally:
        ended.set()
        thread.join()
