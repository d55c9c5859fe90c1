"""Policies that follow a fixed rule: which device does a node, by its op.

`cpu` and `igpu` place everything on one device, `gemm-on-npu` the matrix products on the NPU and
the rest on the CPU, as in arXiv:2504.03083. What a device has no kernel for goes to the host's CPU.
A placement by hand (op -> device) goes before the rule.
"""

from collections.abc import Mapping
from types import MappingProxyType

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph
from aieflow.ops.kernel import Kernels

# Policy -> device of an op; "*" stands for all other ops.
RULES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "cpu": {"*": "cpu"},
        "igpu": {"*": "igpu"},
        "gemm-on-npu": {"matmul": "npu", "*": "cpu"},
    }
)
# Policies that weigh costs.
COSTED = ("heft", "peft", "dmda", "best")
POLICIES = (*RULES, *COSTED)


def default_policy(devices: tuple[str, ...]) -> str:
    """The policy for these devices where none is asked for."""
    return "gemm-on-npu" if "npu" in devices else "igpu" if "igpu" in devices else "cpu"


def homes(
    graph: Graph, kernels: Kernels, policy: str, places: Mapping[str, str]
) -> tuple[str, ...]:
    """The device of each node; `kernels` holds the devices there are, the host's first.

    Raises PlanError where an op is placed by hand on a device that has no kernel for it, or where
    no device has one.
    """
    names = tuple(kernels)
    chosen: list[str] = []
    for node in graph.nodes:
        op = node.op.name
        able = [name for name in names if op in kernels[name]]
        by_hand = places.get(op)
        if by_hand is not None and by_hand not in able:
            raise PlanError(
                f"{op} cannot be placed on {by_hand}: it has no kernel for it; "
                f"{', '.join(able) or 'no device'} has"
            )
        if not able:
            raise PlanError(f"{node.name}: none of {', '.join(names)} has a kernel of {op}")
        rule = RULES.get(policy, {})
        by_rule = rule.get(op, rule.get("*", ""))
        chosen.append(by_hand or (by_rule if by_rule in able else able[0]))
    return tuple(chosen)
