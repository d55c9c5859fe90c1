"""Lower bounds: equal to hand arithmetic, and below every schedule that there is."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from aieflow.devices.fake import FakeDevice, random_graph
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.ops.builder import Builder
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Node
from aieflow.ops.kernel import Kernels
from aieflow.ops.pointwise import GELU
from aieflow.ops.spec import Spec
from aieflow.profiles.cost import RooflineCost
from aieflow.runtime.bounds import Bound, area_and_precedence, bound, critical_path
from aieflow.runtime.needs import Choice, Choices, Needs, node_choices
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.policies.cpu import schedule_lanes
from aieflow.runtime.schedule import device_of
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import StepWork
from aieflow.runtime.transfer import reaches

ONE_EACH = {"a": 1, "b": 1}


def chain(length: int, free: int = 0) -> Graph:
    """A chain of nodes, and nodes that depend on nothing."""
    b = Builder("chain")
    x = b.feed("x", Spec((4, 8)))
    value = x
    for place in range(length):
        (value,) = b.apply(GELU, [value], [f"link{place}"])
    others = [b.apply(GELU, [x], [f"free{place}"])[0] for place in range(free)]
    return b.finish([value, *others])


def whole(seconds: Mapping[str, float]) -> dict[str, Choice]:
    """Undivided."""
    return {device: Choice(each, each) for device, each in seconds.items()}


def test_a_chain_takes_its_fastest_devices() -> None:
    choices = [whole({"a": 2, "b": 3}), whole({"a": 5, "b": 1}), whole({"a": 1})]
    found = bound(chain(3), Needs(choices, ONE_EACH))
    assert found.critical_path_s == 4
    assert found.area_s == pytest.approx(4, rel=1e-9)
    assert found.seconds == max(found.critical_path_s, found.area_s)


def test_independent_nodes_share_the_area() -> None:
    """a does 1 and b half a node a second: six nodes in 4 s."""
    choices = [whole({"a": 1, "b": 2})] * 6
    found = bound(chain(0, 6), Needs(choices, ONE_EACH))
    assert found.critical_path_s == 1
    assert found.area_s == pytest.approx(4, rel=1e-9)
    assert bound(chain(0, 6), Needs(choices, {"a": 2, "b": 1})).area_s == pytest.approx(
        2.4, rel=1e-9
    )


def test_precedence_and_area_together_say_more_than_each() -> None:
    """
    Four links take 1 s on a or 2 s on b, four free nodes 1 s on a. To move s links to b takes s
    from the 8 s of a and makes the chain 4 + s long: both are 6 at s = 2. The area alone would
    move 8/3 links: 16/3 s. The chain alone has 4 s.
    """
    choices = [whole({"a": 1, "b": 2})] * 4 + [whole({"a": 1})] * 4
    found = bound(chain(4, 4), Needs(choices, ONE_EACH))
    assert found.critical_path_s == 4
    assert found.area_s == pytest.approx(6, rel=1e-9)


def test_a_divided_node_counts_its_shortest_part_and_all_its_lane_time() -> None:
    """Two nodes of 4 s on one of four lanes, 1.5 s on all: lane time 2 x 4 over 4 lanes."""
    choices = [{"a": Choice(1.5, 4.0)}] * 2
    wide, long = (bound(graph, Needs(choices, {"a": 4})) for graph in (chain(0, 2), chain(2)))
    assert (wide.critical_path_s, long.critical_path_s) == (1.5, 3)
    assert wide.area_s == pytest.approx(2, rel=1e-9)
    assert long.area_s == pytest.approx(3, rel=1e-9)


def test_the_least_of_a_node_is_divided_in_time_and_whole_in_lane_time() -> None:
    """GELU of 4 rows on 8 lanes: at most four parts, each with a launch of its own."""

    def node_s(device: str, node: Node, parts: int) -> float:
        return 1 + 12 / parts

    found = node_choices(chain(1), {"fake": FakeDevice(8).kernels, "none": {}}, {"fake": 8}, node_s)
    assert found == ({"fake": Choice(1 + 3, 1 + 12)},)


@pytest.mark.parametrize("seed", range(4))
def test_tiny_durations_are_as_exact_as_seconds(seed: int) -> None:
    """The solver takes what is below 1e-9 for nothing; what it is given is not so small."""
    graph, large = drawn(seed, 60, ("a", "b"))
    small = [whole({d: c.span_s * 1e-10 for d, c in choice.items()}) for choice in large]
    expected = area_and_precedence(graph, Needs(large, ONE_EACH))
    assert area_and_precedence(graph, Needs(small, ONE_EACH)) == pytest.approx(
        1e-10 * expected, rel=1e-9
    )


def test_nothing_takes_no_time() -> None:
    free = [whole({"a": 0.0})] * 3
    assert bound(chain(3), Needs(free, {"a": 1})) == Bound(0, 0)
    assert bound(Builder("nothing").finish([]), Needs([], {"a": 1})) == Bound(0, 0)


def test_a_node_without_a_device_is_named() -> None:
    for function in (lambda g, c: critical_path(g, c), lambda g, c: bound(g, Needs(c, ONE_EACH))):
        with pytest.raises(PlanError, match="link1: no device has a kernel of gelu"):
            function(chain(2), [whole({"a": 1}), {}])


def drawn(seed: int, nodes: int, devices: Sequence[str]) -> tuple[Graph, Choices]:
    """A random graph; some nodes have no kernel on some devices."""
    draw = random.Random(seed)
    graph = random_graph(draw, nodes)
    choices: list[dict[str, Choice]] = []
    for _ in graph.nodes:
        able = [device for device in devices if draw.random() < 0.8] or [devices[0]]
        choices.append(whole({device: draw.choice((0.5, 1, 2, 5)) for device in able}))
    return graph, choices


def makespan(
    graph: Graph, choices: Choices, assignment: Sequence[str], order: Sequence[int]
) -> float:
    """Nodes in an order that respects the graph, each on its device; transfers cost nothing."""
    ends = [0.0] * len(order)
    free: dict[str, float] = {}
    for node in order:
        device = assignment[node]
        before = (ends[graph.producer[v]] for v in graph.nodes[node].inputs if v in graph.producer)
        start = max([free.get(device, 0.0), *before])
        ends[node] = free[device] = start + choices[node][device].span_s
    return max(ends)


def orders(graph: Graph) -> list[tuple[int, ...]]:
    """Every order in which the nodes can run."""

    def is_legal(order: tuple[int, ...]) -> bool:
        place = {node: at for at, node in enumerate(order)}
        return all(
            place[graph.producer[value]] < place[index]
            for index, node in enumerate(graph.nodes)
            for value in node.inputs
            if value in graph.producer
        )

    return [order for order in itertools.permutations(range(len(graph.nodes))) if is_legal(order)]


@pytest.mark.parametrize("seed", range(8))
def test_no_schedule_undercuts_the_bound(seed: int) -> None:
    """All assignments in all orders: the optimum, to which the bound comes near."""
    graph, choices = drawn(seed, 5, ("a", "b"))
    least = min(
        makespan(graph, choices, assignment, order)
        for order in orders(graph)
        for assignment in itertools.product(*choices)
    )
    found = bound(graph, Needs(choices, ONE_EACH))
    assert found.critical_path_s * (1 - 1e-9) <= found.area_s  # the LP has the path's rule too
    assert found.seconds <= least * (1 + 1e-12)
    assert found.seconds >= 0.5 * least  # of these eight graphs


@pytest.mark.parametrize("seed", range(6))
def test_no_assignment_of_eight_nodes_undercuts_the_bound(seed: int) -> None:
    """In program order, on three devices."""
    graph, choices = drawn(seed, 8, ("a", "b", "c"))
    program = range(len(graph.nodes))
    least = min(
        makespan(graph, choices, assignment, program) for assignment in itertools.product(*choices)
    )
    found = bound(graph, Needs(choices, {"a": 1, "b": 1, "c": 1}))
    assert 0 < found.seconds <= least * (1 + 1e-12)


@dataclass(frozen=True, slots=True)
class FreeTransfers:
    """Nodes by a roofline of one lane of each device; all else takes no time."""

    rates: Mapping[str, RooflineCost]
    name: str = "free transfers"
    idle_w: float = 0.0

    def node_s(self, device: str, node: Node, parts: int) -> float:
        return self.rates[device].seconds(node.flops / parts, node.nbytes / parts)

    def of(self, plan: Plan) -> tuple[StepWork, ...]:
        return tuple(
            StepWork(
                device_of(step.lane),
                self.node_s(device_of(step.lane), plan.node_of(step), step.parts)
                if step.kind == "node"
                else 0.0,
            )
            for step in plan.steps
        )

    def slowdown(self, device: str, others: object) -> float:
        return 1.0


@pytest.mark.parametrize("seed", range(12))
def test_no_plan_undercuts_the_bound_though_lanes_run_ahead(seed: int) -> None:
    """Nodes divided over three lanes, whose parts wait for parts only; launches count."""
    draw = random.Random(seed)
    graph = random_graph(draw, 8)
    around = {"fake": FakeDevice(lanes=3), "far": FakeRemoteDevice("far")}
    launch_s = draw.choice((0.0, 20.0))
    cost = FreeTransfers(
        {"fake": RooflineCost(1e30, 1.0, launch_s), "far": RooflineCost(1e30, 2.0, launch_s)}
    )
    kernels: Kernels = {name: device.kernels for name, device in around.items()}
    lanes = {"fake": 3, "far": 1}
    found = bound(graph, Needs(node_choices(graph, kernels, lanes, cost.node_s), lanes))
    names = {name: device.lanes for name, device in around.items()}
    divided = 0
    for homes in itertools.islice(
        itertools.product(around, repeat=8), 0, None, 7
    ):  # every seventh of 256
        schedule = schedule_lanes(
            "all", graph, homes, kernels, names, reaches(around), cost.rates["fake"]
        )
        divided += sum(len(each) > 1 for each in schedule.placements)
        plan = compile_plan(graph, schedule, kernels, reaches(around))
        assert found.seconds <= simulate(plan, cost).seconds * (1 + 1e-12)
    assert divided > 0
