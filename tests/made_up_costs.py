"""Costs that a test makes up, and machines of fake devices that have them."""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from aieflow.devices.base import Device
from aieflow.devices.fake import FakeDevice
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.ops.graph import Graph, Node
from aieflow.runtime.policies.tasks import Piece, Resource, Tasks
from aieflow.runtime.step_cost import MachineStepCost


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Seconds of each node by (device, name); transfers and copies cost by the byte."""

    seconds: Mapping[tuple[str, str], float] = field(default_factory=dict)
    transfer: float = 0.0  # seconds
    byte_s: float = 0.0
    watts: Mapping[str, float] = field(default_factory=dict)
    factor: float = 1.0  # of each busy device on each other
    idle_w: float = 0.0
    name: str = "made up"

    def lanes(self, device: str) -> int:
        return 2 if device == "fake" else 1

    def lane_w(self, device: str) -> float:
        return self.watts.get(device, 0.0)

    def node_s(self, device: str, node: Node, parts: int = 1) -> float:
        return self.seconds.get((device, node.name), 1.0) / parts

    def work_s(self, device: str, op: str, flops: float, nbytes: float, parts: int = 1) -> float:
        return self.byte_s * nbytes

    def transfer_s(self, device: str, nbytes: float) -> float:
        return self.transfer + self.byte_s * nbytes

    def copy_s(self, nbytes: float) -> float:
        return self.byte_s * nbytes

    def slowdown(self, device: str, others: Collection[str]) -> float:
        return float(self.factor ** len(set(others) - {device}))


def drawn_costs(draw: random.Random, graph: Graph, devices: Collection[str]) -> MadeUp:
    """Random seconds in which devices differ by up to ten times, and random transfers."""
    seconds = {
        (device, node.name): draw.choice((0.1, 0.3, 1.0)) * draw.uniform(0.5, 1.5)
        for device in devices
        for node in graph.nodes
    }
    watts = {device: draw.uniform(1, 30) for device in devices}
    factor = draw.choice((1.0, 1.2))
    return MadeUp(seconds, draw.choice((0.01, 0.2)), 0.0, watts, factor, idle_w=3.0)


def fakes(count: int = 3, nbytes: int = 1 << 30) -> dict[str, Device]:
    """A host with two lanes, and devices with memory sides of their own."""
    every: list[Device] = [
        FakeDevice(lanes=2),
        FakeRemoteDevice("far", nbytes=nbytes),
        FakeRemoteDevice("remote", nbytes=nbytes),
    ]
    return {device.name: device for device in every[:count]}


def step_cost(cost: MadeUp) -> MachineStepCost:
    """As plans are simulated with."""
    return MachineStepCost(cost)


def published(seconds: list[list[int]], edges: list[tuple[int, int, int]]) -> Tasks:
    """Tasks as papers give them: nodes counted from 1, messages that never stand in a queue."""
    count, devices = len(seconds), range(len(seconds[0]))
    net = len(devices)
    inputs: list[list[int]] = [[] for _ in seconds]
    outputs: list[list[int]] = [[] for _ in seconds]
    hops = []
    for value, (source, target, message_s) in enumerate(edges):
        outputs[source - 1].append(value)
        inputs[target - 1].append(value)
        pairs = [(a + 1, b + 1) for a in devices for b in devices if a != b]
        hops.append(dict.fromkeys(pairs, ((net, float(message_s)),)))
    return Tasks(
        name="published",
        devices=tuple(f"p{device + 1}" for device in devices),
        resources=(*(Resource("p", each, 1) for each in devices), Resource("net", 0, None)),
        pieces=tuple(
            tuple(
                (
                    Piece(
                        device,
                        float(row[device]),
                        reads=tuple((value, device + 1) for value in inputs[node]),
                        name=f"{node + 1}",
                    ),
                )
                for device in devices
            )
            for node, row in enumerate(seconds)
        ),
        sides=tuple(device + 1 for device in devices),
        inputs=tuple(map(tuple, inputs)),
        outputs=tuple(map(tuple, outputs)),
        follows=((),) * count,
        hops=tuple(hops),
        anywhere=frozenset(),
        updated={},
        ends=(),
        renewals=(),
        saves=(),
        remote=frozenset(),
        labels=tuple((f"{node}",) for node in range(count)),
        slowdowns=((1.0,) * len(devices),) * (1 << len(devices)),
        idle_w=0.0,
    )


def on_slots(tasks: Tasks, count: int) -> Tasks:
    """The same on two devices, with so many slots; they are the last resource, of number 3."""
    return replace(tasks, resources=(*tasks.resources, Resource("slots", 0, count, is_slots=True)))


def product(name: str, *reads: tuple[int, int]) -> tuple[tuple[Piece, ...], ...]:
    """Pieces of a product that the second of two devices does in a slot, and the first unpacks."""
    taking = Piece(3, 0.0, holds=True)
    gemm = Piece(1, 1.0, after=(0,), name=name)
    unpack = Piece(0, 1.0, after=(1,), reads=reads, name=f"{name}:unpack", frees=3)
    return (), (taking, gemm, unpack)
