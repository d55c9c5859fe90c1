"""Bounds of runs in two phases: by hand, and below simulated runs of real graphs."""

import pytest

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Graph
from aieflow.ops.pointwise import ADD, GELU
from aieflow.ops.spec import Spec
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.bounds import area_and_precedence, bound
from aieflow.runtime.needs import Choice, Exchange, FormNeed, Needs, needs
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.policies.fixed import RULES
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools.simulate import described_devices

LANES = {"a": 1, "b": 1}
FREE = {"a": Choice(0, 0), "b": Choice(0, 0)}


def hourglass() -> Graph:
    """p and q, then their sum, and then r and s of it."""
    b = Builder("hourglass")
    x = b.feed("x", Spec((4, 8)))
    (p,), (q,) = b.apply(GELU, [x], ["p"]), b.apply(GELU, [x], ["q"])
    (whole,) = b.apply(ADD, [p, q], ["sum"])
    return b.finish([b.apply(GELU, [whole], [name])[0] for name in "rs"])


def test_what_lies_before_and_after_a_whole_node_is_not_done_side_by_side() -> None:
    """
    p and q are quick on a alone, r and s on b alone: as one heap, 8 s of either device. But a has
    nothing to do after the sum, and b nothing before: 4 + 4 s by a, then as much by b.
    Where the sum may be divided, the phases may overlap, and 8 s is all that is proven.
    """
    fast_a, fast_b = (
        {"a": Choice(0, 4), "b": Choice(0, 1e6)},
        {"a": Choice(0, 1e6), "b": Choice(0, 4)},
    )
    choices = [fast_a, fast_a, FREE, fast_b, fast_b]
    whole = Needs(choices, LANES, undivided=(False, False, True, False, False))
    assert area_and_precedence(hourglass(), whole) == pytest.approx(16, rel=1e-5)
    for needed in (Needs(choices, LANES), Needs(choices, LANES, undivided=(False,) * 5)):
        assert area_and_precedence(hourglass(), needed) == pytest.approx(8, rel=1e-5)


def test_the_hosts_work_for_others_has_its_phase() -> None:
    """Each node takes 1 s of b and 3 s of the host's one lane: 6 s before the sum, 6 s after."""
    each = {"b": Choice(0, 1, host_s=3)}
    slow_after = {"b": Choice(0, 9)}
    choices = [each, each, FREE, slow_after, slow_after]
    whole = Needs(choices, LANES, Exchange("a"), undivided=(False, False, True, False, False))
    assert area_and_precedence(hourglass(), whole) == pytest.approx(6 + 18, rel=1e-9)


@pytest.mark.parametrize(("renewed_by", "seconds"), [(None, 4 + 3), (3, 3 + 4), (2, 6)])
def test_a_form_has_its_phase(renewed_by: int | None, seconds: float) -> None:
    """
    All nodes take b, 3 s before the sum and 3 s after. p and q share a form that the host a takes
    4 s for: before the sum if it is packed for them, after it if r renews it. Of what the sum
    itself renews nothing is known, so it may lie beside both.
    """
    form = ("f",)
    early, late = {"b": Choice(0, 1.5, forms=(form,))}, {"b": Choice(0, 1.5)}
    exchange = Exchange("a", 0, {form: FormNeed(4.0, renewed_by=renewed_by)})
    divided = (False, False, True, False, False)
    needed = Needs([early, early, FREE, late, late], LANES, exchange, undivided=divided)
    found = area_and_precedence(hourglass(), needed)
    assert found == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("name", ["phoenix", "strix"])
def test_no_plan_of_a_clipped_training_step_undercuts_it(name: str) -> None:
    """Its norm divides it, so the bound is above that without phases, and below every plan's."""
    profile = load_machine(name)
    cost = MachineCost(profile)
    config = ModelConfig(vocab_size=8192, seq_len=64, layers=2, heads=12, channels=768)
    graph = training_step(config, 4, 64, shards=2)
    devices = {device.name: device for device in described_devices(profile)}
    found = needs(graph, devices, cost)
    least = bound(graph, found)
    whole = Needs(found.choices, found.lanes, found.exchange, found.slowdowns)
    assert least.area_s > bound(graph, whole).area_s
    for policy in RULES:
        plan = place_on(graph, devices, Placement(policy))
        assert simulate(plan, MachineStepCost(cost)).seconds >= least.seconds * (1 - 1e-9)
