"""A plan as data for other programs: JSON, networkx, GraphML, DOT.

Everything is derived from the plan alone, in program order, so equal plans give equal bytes.
`plan_json` holds the whole plan; a run keeps it as `plan.json`. The drawings (networkx, GraphML,
DOT) hold the nodes and the values that flow between them; feeds and states, which no node defines,
appear in each node's list of inputs but not as nodes of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from aieflow.ops.graph import Graph, Node, Value
from aieflow.runtime.plan import Plan

if TYPE_CHECKING:
    import networkx

FORMAT_KEY = "aieflow_plan"  # marks a plan's JSON, and says which form it has
FORMAT = 1

# Op -> family, and family -> colour of its nodes in a drawing.
FAMILIES: Mapping[str, str] = {
    op: family
    for family, ops in {
        "attention": ("attention", "attention_backward", "attention_cached"),
        "batch": ("slice", "slice_backward"),
        "embedding": (
            "embedding",
            "embedding_backward_positions",
            "embedding_backward_tokens",
        ),
        "loss": ("cross_entropy", "cross_entropy_gradient", "mean"),
        "matmul": ("column_sum", "matmul"),
        "npu": ("npu_gemm", "npu_pack", "npu_repack", "npu_unpack"),
        "norm": ("layernorm", "layernorm_backward", "layernorm_backward_params"),
        "optim": ("adamw", "clip_factor", "squared_norm"),
        "pointwise": ("add", "dropout", "gelu", "gelu_backward"),
    }.items()
    for op in ops
}
COLOURS: Mapping[str, str] = {
    "attention": "#f4b6c2",
    "batch": "#d5dbdb",
    "embedding": "#c9d7f8",
    "loss": "#f7d794",
    "matmul": "#a8d8ea",
    "norm": "#c7e9c0",
    "npu": "#9fc5e8",
    "optim": "#d9c7ec",
    "pointwise": "#fde2b8",
}
USUAL = ("parameters", "moments", "cache", "feeds", "gradients", "activations")
OTHER_COLOUR = "#e0e0e0"


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan as JSON values; sizes in bytes, work in FLOPs, all lists in program order.

    ```
    aieflow_plan  the number of this form
    graph    name
             feeds, states   [{name, dtype, shape, nbytes, role}]
             nodes           [{name, op, inputs: [name of value], outputs: [like feeds],
                               attrs: {name: number or boolean}, flops, nbytes}]
             results         [name of value]
    memory   accounts        {account: bytes at the peak, workspaces included}
             arena_nbytes    the one block that all values within a training step share
             live_nbytes     the most of it that is in use at once
             nbytes          everything, the sum of the accounts
             slots           {name of value: {space: "arena", a device's slot, or the state or
                               feed whose memory it has; offset; nbytes}}
    plan     policy, edges   number of waits between lanes
             lanes           [{name, workspace_nbytes,
                               steps: [{step, node: index, part: from 0, parts,
                                        waits: [step of another lane],
                                        of transfers also kind ("in", "out", "save") and
                                        value: name}]}]
    totals   nodes, steps, flops, nbytes (of all operands of all nodes)
    ```
    """
    graph, memory = plan.graph, plan.memory
    return {
        FORMAT_KEY: FORMAT,
        "graph": {
            "name": graph.name,
            "feeds": [_value(value) for value in graph.feeds],
            "states": [_value(value) for value in graph.states],
            "nodes": [_node(node) for node in graph.nodes],
            "results": [value.name for value in graph.results],
        },
        "memory": {
            "accounts": memory_accounts(plan),
            "arena_nbytes": memory.arena_nbytes,
            "live_nbytes": memory.live_nbytes,
            "nbytes": plan.nbytes,
            "slots": {
                value.name: {"space": slot.space, "offset": slot.offset, "nbytes": slot.nbytes}
                for value in graph.values
                for slot in (memory.slots[value],)
            },
        },
        "plan": {
            "policy": plan.schedule.policy,
            "edges": plan.edges,
            "lanes": [_lane(plan, name) for name in plan.lanes],
        },
        "totals": {
            "nodes": len(graph.nodes),
            "steps": len(plan.steps),
            "flops": graph.flops,
            "nbytes": graph.nbytes,
        },
    }


def json_text(plan: Plan) -> str:
    """The text of `plan_json`, the same bytes for the same plan: a line for each node and slot."""
    return _laid_out(plan_json(plan), "", 3) + "\n"


def memory_accounts(plan: Plan) -> dict[str, int]:
    """Bytes of each account at the peak, workspaces included; their sum is `plan.nbytes`."""
    held = {name: size for name, size in plan.memory.accounts.items() if size or name in USUAL}
    return {**held, "workspaces": sum(plan.workspace.values())}


def networkx_graph(plan: Plan) -> networkx.MultiDiGraph:
    """Nodes and the values between them, as a directed networkx graph.

    Its nodes are the names of the plan's; its edges run from the node that defines a value to each
    that reads it, with the value's name as key. All attributes are numbers and texts, which every
    writer of networkx takes.
    """
    import networkx  # a quarter of a second that training need not spend

    graph = plan.graph
    drawing = networkx.MultiDiGraph(name=graph.name)
    lanes = plan.schedule.placements
    for index, node in enumerate(graph.nodes):
        drawing.add_node(
            node.name,
            index=index,
            op=node.op.name,
            inputs="; ".join(map(str, node.inputs)),
            outputs="; ".join(map(str, node.outputs)),
            attrs=_attrs(node),
            flops=node.flops,
            nbytes=node.nbytes,
            lanes=", ".join(lanes[index]),
        )
    for first, second, value in _edges(graph):
        drawing.add_edge(
            graph.nodes[first].name,
            graph.nodes[second].name,
            key=value.name,
            value=value.name,
            dtype=value.spec.dtype,
            shape=", ".join(map(str, value.spec.shape)),
            nbytes=value.spec.nbytes,
        )
    return drawing


def graphml_text(plan: Plan) -> str:
    """The networkx graph as GraphML.

    Nodes are called n0, n1, ... and edges e0, e1, ..., for GraphML's identifiers may not hold all
    that names of ours do; a node's name is its attribute `name`.
    """
    import networkx

    graph, named = plan.graph, networkx_graph(plan)
    drawing = networkx.MultiDiGraph(name=graph.name)
    for index, node in enumerate(graph.nodes):
        drawing.add_node(f"n{index}", name=node.name, **named.nodes[node.name])
    for number, (first, second, value) in enumerate(_edges(graph)):
        attributes = named.edges[graph.nodes[first].name, graph.nodes[second].name, value.name]
        drawing.add_edge(f"n{first}", f"n{second}", key=f"e{number}", **attributes)
    return "\n".join(networkx.generate_graphml(drawing)) + "\n"


def dot_text(plan: Plan) -> str:
    """The same drawing in DOT, Graphviz's language; a node's colour says the family of its op."""
    graph = plan.graph
    lines = [
        "digraph plan {",
        f"  rankdir=TB; labelloc=t; label={_label([graph.name])};",
        '  node [shape=box, style="rounded,filled", fontname="Helvetica"];',
        '  edge [fontname="Helvetica", fontsize=9];',
    ]
    for index, node in enumerate(graph.nodes):
        placed = plan.schedule.placements[index]
        label = [node.name, node.op.name, f"{node.flops / 1e9:.3g} GFLOP", ", ".join(placed)]
        colour = COLOURS.get(FAMILIES.get(node.op.name, ""), OTHER_COLOUR)
        lines.append(
            f'  n{index} [label={_label(label)}, fillcolor="{colour}", '
            f"tooltip={_label([str(node)])}];"
        )
    for first, second, value in _edges(graph):
        lines.append(f"  n{first} -> n{second} [label={_label([value.name, str(value.spec)])}];")
    return "\n".join([*lines, "}"]) + "\n"


def _edges(graph: Graph) -> Iterator[tuple[int, int, Value]]:
    """Producer, consumer and value of each edge, in program order of the consumers."""
    for index, node in enumerate(graph.nodes):
        for value in dict.fromkeys(node.inputs):
            if value in graph.producer:
                yield graph.producer[value], index, value


def _value(value: Value) -> dict[str, object]:
    return {
        "name": value.name,
        "dtype": value.spec.dtype,
        "shape": list(value.spec.shape),
        "nbytes": value.spec.nbytes,
        "role": value.role,
    }


def _node(node: Node) -> dict[str, object]:
    return {
        "name": node.name,
        "op": node.op.name,
        "inputs": [value.name for value in node.inputs],
        "outputs": [_value(value) for value in node.outputs],
        "attrs": dict(sorted(node.attrs.items())),
        "flops": node.flops,
        "nbytes": node.nbytes,
    }


def _lane(plan: Plan, name: str) -> dict[str, object]:
    return {
        "name": name,
        "workspace_nbytes": plan.workspace[name],
        "steps": [
            {
                "step": step.index,
                "node": step.node,
                "part": step.part,
                "parts": step.parts,
                "waits": list(step.waits),
                **({} if step.kind == "node" else {"kind": step.kind, "value": step.value}),
            }
            for step in (plan.steps[index] for index in plan.lanes[name])
        ],
    }


def _attrs(node: Node) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(node.attrs.items()))


def _laid_out(content: object, margin: str, depth: int) -> str:
    """JSON with a line for each entry down to `depth` levels, and one line for all below."""
    if not isinstance(content, dict | list) or not content or not depth:
        return json.dumps(content, allow_nan=False)
    inner = margin + " "
    if isinstance(content, list):
        entries = [f"{inner}{_laid_out(entry, inner, depth - 1)}" for entry in content]
        return "[\n" + ",\n".join(entries) + f"\n{margin}]"
    entries = [
        f"{inner}{json.dumps(key)}: {_laid_out(entry, inner, depth - 1)}"
        for key, entry in content.items()
    ]
    return "{\n" + ",\n".join(entries) + f"\n{margin}}}"


def _label(lines: list[str]) -> str:
    """A DOT string of several lines, in which quotes and backslashes stand for themselves."""
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
