"""The peers of `check_schedulers`, run by a Python that has them: SAGA's HEFT, and CP-SAT.

Reads a JSON object and writes another. Asked for `instances`, it draws task graphs and networks
with SAGA's own generators and schedules them by SAGA's HEFT. Given a `problem`, it has CP-SAT find
the least makespan of tasks that each run on one of several devices, one after the other there,
with messages between devices that take time and wait for nobody.
"""

import json
import random
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

TICKS_PER_S = 10_000_000


def main() -> None:
    """Answer one question."""
    asked = json.load(sys.stdin)
    if "instances" in asked:
        answer = drawn(int(asked["instances"]), int(asked["seed"]))
    else:
        answer = solved(asked["problem"], float(asked["limit_s"]))
    json.dump(answer, sys.stdout)


def drawn(instances: int, seed: int) -> dict[str, Any]:
    """Instances, and the makespan of each by SAGA's HEFT.

    Weights are what the generators' text says, normal with mean 1 and deviation 1/3, kept within
    [0.05, 2]: their default gives 2 throughout.
    """
    generators: Any = import_module("saga.schedulers.data.random")
    heft: Any = import_module("saga.schedulers.heft").HeftScheduler()
    random.seed(seed)

    def weight(*of: object) -> float:
        return min(max(random.gauss(1, 1 / 3), 0.05), 2.0)

    kinds: list[Callable[[], Any]] = [
        lambda: generators.gen_in_trees(1, random.randint(2, 4), 2, weight, weight)[0],
        lambda: generators.gen_out_trees(1, random.randint(2, 4), 2, weight, weight)[0],
        lambda: generators.gen_parallel_chains(
            1, random.randint(2, 6), random.randint(4, 10), weight, weight
        )[0],
    ]
    found: list[dict[str, Any]] = []
    for number in range(instances):
        graph = kinds[number % len(kinds)]()
        network = generators.gen_random_networks(1, random.randint(3, 6), weight, weight)[0]
        order = [task.name for task in graph.topological_sort()]
        nodes = [node.name for node in network.nodes]
        found.append(
            {
                "seconds": [
                    [graph.get_task(task).cost / network.get_node(node).speed for node in nodes]
                    for task in order
                ],
                "edges": [
                    [order.index(each.source), order.index(each.target), each.size]
                    for each in graph.dependencies
                ],
                "speeds": [[network.get_edge(a, b).speed for b in nodes] for a in nodes],
                "makespan": heft.schedule(network, graph).makespan,
            }
        )
    return {"instances": found}


def solved(problem: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """The least makespan of a problem, and what is proven of it, in seconds."""
    cp: Any = import_module("ortools.sat.python.cp_model")
    model = cp.CpModel()
    ticks = [
        [None if s is None else round(s * TICKS_PER_S) for s in row] for row in problem["seconds"]
    ]
    horizon = sum(max(each for each in row if each is not None) for row in ticks)
    horizon += sum(round(each["move"] * TICKS_PER_S) for each in problem["edges"])
    starts: list[Any] = []
    ends: list[Any] = []
    on: list[dict[int, Any]] = []
    lines: dict[int, list[Any]] = {}
    for number, row in enumerate(ticks):
        start, end = (model.new_int_var(0, horizon, f"{w}{number}") for w in ("start", "end"))
        presence: dict[int, Any] = {}
        for device, length in enumerate(row):
            if length is None:
                continue
            presence[device] = model.new_bool_var(f"on{number},{device}")
            lines.setdefault(device, []).append(
                model.new_optional_interval_var(start, length, end, presence[device], "")
            )
        model.add_exactly_one(presence.values())
        starts.append(start)
        ends.append(end)
        on.append(presence)
    for line in lines.values():
        model.add_no_overlap(line)
    for edge in problem["edges"]:
        source, target = edge["source"], edge["target"]
        move = round(edge["move"] * TICKS_PER_S)
        model.add(starts[target] >= ends[source])
        for one, here in on[source].items():
            for other, there in on[target].items():
                if edge["sides"][one] != edge["sides"][other]:
                    hops = 1 + (0 not in (edge["sides"][one], edge["sides"][other]))
                    model.add(starts[target] >= ends[source] + hops * move).only_enforce_if(
                        here, there
                    )
    makespan = model.new_int_var(0, horizon, "makespan")
    model.add_max_equality(makespan, ends)
    model.minimize(makespan)
    for number, device in enumerate(problem["hint"]):
        for other, presence in on[number].items():
            model.add_hint(presence, other == device)
    solver = cp.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = 2
    status = solver.solve(model)
    return {
        "status": solver.status_name(status),
        "seconds": solver.objective_value / TICKS_PER_S,
        "bound": solver.best_objective_bound / TICKS_PER_S,
        "spent_s": solver.wall_time,
    }


if __name__ == "__main__":
    main()
