"""Bounds with what passes between host and devices: by hand, and below every plan there is."""

import random
from collections.abc import Collection, Mapping, Sequence

import pytest

from aieflow.devices.base import Device
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import evaluation, training_step
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Graph, Node
from aieflow.ops.matmul import MATMUL
from aieflow.ops.pointwise import GELU
from aieflow.ops.spec import Spec
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine
from aieflow.profiles.schema import MachineProfile
from aieflow.runtime.bounds import area_and_precedence, bound
from aieflow.runtime.machine import Machine
from aieflow.runtime.needs import Choice, Exchange, Form, FormNeed, Needs, needs, node_choices
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.policies.fixed import RULES
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools.simulate import described_devices
from aieflow.tools.sweep import uncertain

LANES = {"a": 1, "b": 1}
CONFIG = ModelConfig(vocab_size=64, seq_len=16, layers=1, heads=2, channels=32)


def free(nodes: int) -> Graph:
    """Nodes that depend on nothing."""
    b = Builder("free")
    x = b.feed("x", Spec((4, 8)))
    return b.finish([b.apply(GELU, [x], [f"n{place}"])[0] for place in range(nodes)])


def chain(nodes: int) -> Graph:
    """Nodes one after the other: v0, v1, …; the last is the result."""
    b = Builder("chain")
    value = b.feed("x", Spec((4, 8)))
    for place in range(nodes):
        (value,) = b.apply(GELU, [value], [f"v{place}"])
    return b.finish([value])


def area(graph: Graph, choices: Sequence[Mapping[str, Choice]], exchange: Exchange) -> float:
    return area_and_precedence(graph, Needs(choices, LANES, exchange))


def test_the_hosts_work_for_others_counts() -> None:
    """
    Four nodes take 4 s on a, or 1 s on b and 4 s of the host a: on its copy lane, which a share x
    on b has for 16 x s, beside 16 (1 - x) of a's compute lane, 8 s; on the compute lane, 16 s
    whatever x is. Were the host's work free, x = 0.8 would do: 3.2 s.
    """
    copied = [{"a": Choice(4, 4), "b": Choice(1, 1, copy_s=4)}] * 4
    assert area(free(4), copied, Exchange("a", 1)) == pytest.approx(8, rel=1e-9)
    computed = [{"a": Choice(4, 4), "b": Choice(1, 1, host_s=4)}] * 4
    assert area(free(4), computed, Exchange("a", 1)) == pytest.approx(16, rel=1e-9)
    assert area(free(4), computed, Exchange()) == pytest.approx(3.2, rel=1e-9)


@pytest.mark.parametrize(("forms", "seconds"), [(1, 6), (2, 12), (4, 24)])
def test_a_form_counts_once_however_many_need_it(forms: int, seconds: float) -> None:
    keys: list[Form] = [("form", number) for number in range(forms)]
    choices = [{"b": Choice(1, 1, forms=(keys[node % forms],))} for node in range(4)]
    exchange = Exchange("a", 0, dict.fromkeys(keys, FormNeed(6.0)))
    assert area(free(4), choices, exchange) == pytest.approx(seconds, rel=1e-9)


def test_a_form_that_nobody_needs_costs_nothing() -> None:
    """A share x on b spares a 4 x seconds, but its form takes 60 x of the same host."""
    choices = [{"a": Choice(1, 1), "b": Choice(1, 1, forms=(("f",),))}] * 4
    assert area(free(4), choices, Exchange("a", 1, {("f",): FormNeed(60.0)})) == pytest.approx(
        4, rel=1e-9
    )
    assert area(free(4), choices, Exchange("a", 1, {("f",): FormNeed()})) == pytest.approx(
        2, rel=1e-9
    )


def test_what_changes_side_is_brought_over() -> None:
    """
    a  [v0]          [v2]
    b         [v1]
       0  1  3   5   7  8     v0 in, v1 out: 2 s each; a result of b is brought out, too
    """
    here, there = {"a": Choice(1, 1)}, {"b": Choice(2, 2, side="b")}
    moves = {("b", f"v{place}"): 2.0 for place in range(3)}
    exchange = Exchange("a", 2, {}, moves)
    assert area(chain(3), [here, there, here], exchange) == pytest.approx(8, rel=1e-9)
    assert area(chain(3), [here, there, there], exchange) == pytest.approx(9, rel=1e-9)
    assert area(chain(3), [here, there, here], Exchange()) == pytest.approx(4, rel=1e-9)


def test_two_nodes_on_one_side_need_no_transfer() -> None:
    there = {"b": Choice(2, 2, side="b")}
    moves = {("b", "v0"): 2.0, ("b", "v1"): 0.5}
    found = area(chain(2), [there, there], Exchange("a", 2, {}, moves))
    assert found == pytest.approx(4.5, rel=1e-9)


def test_a_transfer_may_make_the_slower_device_the_better() -> None:
    """v1 takes 5 s on a, 3 on b with 1.5 s in and 1.5 s out: all on a, 6 s; moves free: 4 s."""
    choices = [{"a": Choice(1, 1)}, {"a": Choice(5, 5), "b": Choice(3, 3, side="b")}]
    dear = {("b", "v0"): 1.5, ("b", "v1"): 1.5}
    assert area(chain(2), choices, Exchange("a", 2, {}, dear)) == pytest.approx(6, rel=1e-9)
    assert area(chain(2), choices, Exchange()) == pytest.approx(4, rel=1e-9)


def described(profile: MachineProfile) -> dict[str, Device]:
    return {device.name: device for device in described_devices(profile)}


SECONDS = {"npu_repack": 20.0, "npu_unpack": 30.0, "npu_gemm": 100.0}


class Counting:
    """Costs that are easy to add up, by the node's op; a transfer takes 1 s, parts as long."""

    def node_s(self, device: str, node: Node, parts: int = 1) -> float:
        assert (device == "npu") == (node.op.name == "npu_gemm")
        if node.op.name == "npu_pack":
            return 50.0 if "pack_b" in node.name else 10.0
        return SECONDS.get(node.op.name, 1000.0)

    def transfer_s(self, device: str, nbytes: float) -> float:
        return 1.0

    def slowdown(self, device: str, others: Collection[str]) -> float:
        return 1.0


def test_a_product_on_the_npu_is_packs_transfers_product_unpack() -> None:
    graph = training_step(CONFIG, 2, 16)
    profile = load_machine("phoenix")
    devices = {name: each for name, each in described(profile).items() if name != "igpu"}
    found = needs(graph, devices, Counting())
    by_name = {node.name: choice for node, choice in zip(graph.nodes, found.choices, strict=True)}
    # x @ W: x is packed and brought in on the path, W lies there; then product, out, unpack
    forward = by_name["h.0.fc"]["npu"]
    assert (forward.span_s, forward.lane_s) == (10 + 1 + 100 + 1 + 30, 100)
    assert (forward.host_s, forward.copy_s, forward.side, len(forward.forms)) == (30, 1, "", 2)
    # A weight's form is renewed and brought in once in each run; another is packed and brought in.
    of_x, of_weight = (found.exchange.forms[form] for form in forward.forms)
    updater = next(n for n, node in enumerate(graph.nodes) if node.name == "h.0.mlp.c_fc.weight'")
    assert (of_x, of_weight) == (FormNeed(10, 1), FormNeed(20, 1, updater))
    assert found.exchange.host == "cpu"
    assert found.exchange.copy_lanes == 2 + 1  # in, out, saves
    assert found.exchange.move_s == {}
    assert all(choice["cpu"].forms == () for choice in found.choices)


def test_a_form_of_what_no_run_changes_is_free() -> None:
    """Without an optimizer the weights stay as they are packed."""
    graph = evaluation(CONFIG, 2, 16)
    devices = {n: d for n, d in described(load_machine("phoenix")).items() if n != "igpu"}
    found = needs(graph, devices, Counting())
    assert {*found.exchange.forms.values()} == {FormNeed(), FormNeed(10, 1)}  # weights, activations


def test_on_one_memory_with_free_transfers_nothing_is_exchanged() -> None:
    graph = training_step(CONFIG, 2, 16)
    cost = MachineCost(load_machine("phoenix"))
    cpu = {"cpu": described(load_machine("phoenix"))["cpu"]}
    alone = needs(graph, cpu, cost)
    assert alone.exchange == Exchange("cpu")
    plain = node_choices(graph, {"cpu": cpu["cpu"].kernels}, {"cpu": 8}, cost.node_s)
    assert alone.choices == plain


def random_machine(draw: random.Random) -> MachineProfile:
    """A shipped machine with every uncertain figure anywhere, within ten times of either end."""
    machine = load_machine(draw.choice(("phoenix", "phoenix-paper", "strix")))
    for path, figure in uncertain(machine).items():
        if path.startswith(("noise", "contention")):
            continue
        factor = 10 ** draw.uniform(-1, 1)
        machine = machine.with_value(path, figure.value * factor)
    return machine.with_value("cpu.lanes", draw.choice((1, 2, 8)))


@pytest.mark.parametrize("seed", range(8))
def test_no_random_placement_on_a_random_machine_undercuts_the_bound(seed: int) -> None:
    draw = random.Random(seed)
    machine = random_machine(draw)
    devices = described(machine)
    cost = MachineCost(machine)
    graph = training_step(CONFIG, 2, 16, shards=draw.choice((1, 2)))
    found = bound(graph, needs(graph, devices, cost))
    able = [[d for d in devices if node.op.name in devices[d].kernels] for node in graph.nodes]
    least = float("inf")
    for trial in range(8):
        favourite = draw.choice(list(devices))
        homes = [
            favourite if favourite in names and draw.random() < 0.8 else draw.choice(names)
            for names in able
        ]
        plan = place_on(graph, devices, Placement(slots=1 + trial % 3), by_node=homes)
        least = min(least, simulate(plan, MachineStepCost(cost)).seconds)
    assert 0 < found.critical_path_s * (1 - 1e-9) <= found.seconds <= least * (1 + 1e-9)


@pytest.mark.parametrize("name", ["phoenix", "phoenix-paper", "strix"])
def test_no_policy_undercuts_the_bound_of_a_training_step(name: str) -> None:
    profile = load_machine(name)
    cost = MachineCost(profile)
    config = ModelConfig(vocab_size=512, seq_len=32, layers=2, heads=2, channels=64)
    graph = training_step(config, 4, 32, shards=2)
    devices = described(profile)
    found = bound(graph, needs(graph, devices, cost))
    for policy in RULES:
        plan = Machine(tuple(devices.values()), Placement(policy)).plan(graph)
        seconds = simulate(plan, MachineStepCost(cost)).seconds
        assert 0 < found.critical_path_s * (1 - 1e-9) <= found.seconds <= seconds
    # The CPU alone, with nothing else to choose from, is nearer to its own bound.
    alone = bound(graph, needs(graph, {"cpu": devices["cpu"]}, cost))
    assert alone.seconds > found.seconds


def test_the_exchange_raises_the_bound_where_the_host_is_slow() -> None:
    """Products side by side for the NPU, on a host of one lane that moves bytes slowly."""
    machine = load_machine("phoenix").with_value("cpu.gemm_flops_per_s", 1e6)
    machine = machine.with_value("cpu.core_memory_bytes_per_s", 1e8)
    machine = machine.with_value("cpu.lanes", 1)
    devices = {name: each for name, each in described(machine).items() if name != "igpu"}
    b = Builder("products")
    sides = [[b.feed(f"{name}{place}", Spec((256, 256))) for name in "xw"] for place in range(6)]
    graph = b.finish([b.apply(MATMUL, pair, [f"y{at}"])[0] for at, pair in enumerate(sides)])
    cost = MachineCost(machine)
    needed = needs(graph, devices, cost)
    found = bound(graph, needed)
    # One compute lane converts. Each product: two packs and one unpack of 256 x 256.
    packs, unpack = 2 * 256 * 256 * (4 + 2) / 1e8, 256 * 256 * (4 + 4) / 1e8
    assert found.area_s > 6 * (packs + unpack)
    assert found.area_s > 2 * area_and_precedence(graph, Needs(needed.choices, needed.lanes))
    plan = Machine(tuple(devices.values()), Placement("gemm-on-npu")).plan(graph)
    seconds = simulate(plan, MachineStepCost(cost)).seconds
    assert found.area_s == pytest.approx(seconds, rel=1e-9)  # the lane is never idle: the optimum


BUSY = frozenset("ab")
ALONE = {frozenset("a"): {"a": 1.0}, frozenset("b"): {"b": 1.0}}


def test_devices_that_slow_each_other_down_do_less_together() -> None:
    """
    Twelve nodes of 1 s on a or b. Beside the other a takes 1.5 times as long and b 1.2 times, so in
    t s side by side they do t / 1.5 + t / 1.2 = 1.5 t: 12 nodes in 8 s; undisturbed in 6.
    """
    choices = [{"a": Choice(1, 1), "b": Choice(1, 1)}] * 12
    needed = Needs(choices, LANES, slowdowns={**ALONE, BUSY: {"a": 1.5, "b": 1.2}})
    assert area_and_precedence(free(12), needed) == pytest.approx(8, rel=1e-9)
    assert area(free(12), choices, Exchange()) == pytest.approx(6, rel=1e-9)


def test_where_company_costs_more_than_it_gives_one_works_alone() -> None:
    """Together they do 1 / 3 + 1 / 4 of what one does alone."""
    choices = [{"a": Choice(1, 1), "b": Choice(1, 1)}] * 6
    needed = Needs(choices, LANES, slowdowns={**ALONE, BUSY: {"a": 3.0, "b": 4.0}})
    assert area_and_precedence(free(6), needed) == pytest.approx(6, rel=1e-9)


def test_the_hosts_work_for_others_slows_them_down() -> None:
    """
    Four nodes take 1 s of b and 1 s of the host a, on its copy lane; side by side either takes 1.25
    times as long: 5 s. One after the other would take 8.
    """
    choices = [{"b": Choice(1, 1, copy_s=1)}] * 4
    slow = {**ALONE, BUSY: {"a": 1.25, "b": 1.25}}
    needed = Needs(choices, LANES, Exchange("a", 1), slow)
    assert area_and_precedence(free(4), needed) == pytest.approx(5, rel=1e-9)


def test_slowdowns_are_those_of_the_cost_model() -> None:
    profile = load_machine("phoenix")
    found = needs(training_step(CONFIG, 2, 16), described(profile), MachineCost(profile)).slowdowns
    assert len(found) == 7
    contention = profile.contention
    all_three = found[frozenset(("cpu", "igpu", "npu"))]
    beside_both = contention.slowdown("cpu", "igpu").value * contention.slowdown("cpu", "npu").value
    assert all_three["cpu"] == beside_both > 1
    assert found[frozenset(("igpu",))] == {"igpu": 1.0}
