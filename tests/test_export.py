import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import networkx
import pytest

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops import attention, batch, embedding, loss, matmul, norm, optim, pointwise
from aieflow.ops.builder import Builder
from aieflow.ops.catalogue import OPS
from aieflow.ops.graph import Graph, Node
from aieflow.ops.kernel import Call, HostKernel, Split
from aieflow.ops.op import Op
from aieflow.ops.pointwise import ADD, GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.export import (
    COLOURS,
    FAMILIES,
    dot_text,
    graphml_text,
    json_text,
    memory_accounts,
    networkx_graph,
    plan_json,
)
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.schedule import Schedule

LANES = ("cpu.compute.0", "cpu.compute.1")
HOSTILE = 'b"\\N:1, <&>\\'  # a name that DOT and XML would stumble over


def no_bind(call: Call) -> Callable[[], None]:
    raise AssertionError("a plan is exported without executing it")


def split_rows(node: Node) -> Split:
    everything = frozenset(range(len(node.inputs)))
    return Split(node.outputs[0].spec.shape[0], everything, frozenset({0}))


def plan_on_two_lanes(graph: Graph, placements: tuple[tuple[str, ...], ...]) -> Plan:
    kernels = {
        name: HostKernel(name, op, no_bind, split_rows, lambda node: 96) for name, op in OPS.items()
    }
    return compile_plan(graph, Schedule("by hand", LANES, placements), {"cpu": kernels})


@pytest.fixture
def plan() -> Plan:
    """
    cpu.compute.0  [ a 1/2 ]          [ c ]
    cpu.compute.1  [ a 2/2 ][ HOSTILE ]
    """
    builder = Builder("three nodes")
    x = builder.feed("x", Spec((4, 2)))
    (a,) = builder.apply(GELU, [x], ["a"])
    (b,) = builder.apply(GELU, [x], [HOSTILE])
    (c,) = builder.apply(ADD, [a, b], ["c"])
    return plan_on_two_lanes(builder.finish([c]), (LANES, LANES[1:], LANES[:1]))


@pytest.fixture(scope="module")
def training_plan() -> Plan:
    """A whole training step, its nodes in turn on either lane."""
    graph = training_step(ModelConfig(11, 4, 2, 2, 8), 2, 4, shards=2)
    return plan_on_two_lanes(graph, tuple((LANES[i % 2],) for i in range(len(graph.nodes))))


def test_json_is_the_whole_plan(plan: Plan) -> None:
    def value(name: str, role: str = "activation") -> dict[str, object]:
        return {"name": name, "dtype": "float32", "shape": [4, 2], "nbytes": 32, "role": role}

    def slot(space: str, offset: int) -> dict[str, object]:
        return {"space": space, "offset": offset, "nbytes": 32}

    def step(index: int, node: int, part: int, parts: int, *waits: int) -> dict[str, object]:
        return {"step": index, "node": node, "part": part, "parts": parts, "waits": list(waits)}

    def node(name: str, op: Op, *inputs: str) -> dict[str, object]:
        flops = plan.graph.node(name).flops
        nbytes = 32 * (len(inputs) + 1)
        return {
            "name": name,
            "op": op.name,
            "inputs": list(inputs),
            "outputs": [value(name)],
            "attrs": {},
            "flops": flops,
            "nbytes": nbytes,
        }

    assert plan_json(plan) == {
        "aieflow_plan": 1,
        "graph": {
            "name": "three nodes",
            "feeds": [value("x", "feed")],
            "states": [],
            "nodes": [
                node("a", GELU, "x"),
                node(HOSTILE, GELU, "x"),
                node("c", ADD, "a", HOSTILE),
            ],
            "results": ["c"],
        },
        "memory": {
            "accounts": {
                "parameters": 0,
                "moments": 0,
                "cache": 0,
                "feeds": 32,
                "gradients": 0,
                "activations": 512,
                "workspaces": 192,
            },
            "arena_nbytes": 512,
            "live_nbytes": 512,
            "nbytes": 32 + 512 + 192,
            "slots": {
                "x": slot("x", 0),
                "a": slot("arena", 0),
                HOSTILE: slot("arena", 256),
                "c": slot("arena", 0),
            },
        },
        "plan": {
            "policy": "by hand",
            "edges": 1,
            "lanes": [
                {
                    "name": "cpu.compute.0",
                    "workspace_nbytes": 96,
                    "steps": [step(0, 0, 0, 2), step(3, 2, 0, 1, 2)],
                },
                {
                    "name": "cpu.compute.1",
                    "workspace_nbytes": 96,
                    "steps": [step(1, 0, 1, 2), step(2, 1, 0, 1)],
                },
            ],
        },
        "totals": {
            "nodes": 3,
            "steps": 4,
            "flops": plan.graph.flops,
            "nbytes": 32 * 7,
        },
    }


def test_json_text_reads_back_line_by_line(plan: Plan, training_plan: Plan) -> None:
    for each in (plan, training_plan):
        text = json_text(each)
        assert json.loads(text) == plan_json(each)
        assert text.endswith("}\n")
        assert list(json.loads(text)) == ["aieflow_plan", "graph", "memory", "plan", "totals"]
        nodes = [line for line in text.splitlines() if '"op": ' in line]
        assert [json.loads(line.rstrip(","))["name"] for line in nodes] == [
            node.name for node in each.graph.nodes
        ]


def test_json_of_a_training_step_adds_up(training_plan: Plan) -> None:
    document = json.loads(json_text(training_plan))
    memory, graph = document["memory"], document["graph"]
    assert sum(memory["accounts"].values()) == memory["nbytes"] == training_plan.nbytes
    assert memory["accounts"] == memory_accounts(training_plan)
    defined = {value["name"] for value in graph["feeds"] + graph["states"]}
    for node in graph["nodes"]:
        assert defined.issuperset(node["inputs"])
        defined |= {value["name"] for value in node["outputs"]}
    assert set(memory["slots"]) == defined
    for slot in memory["slots"].values():
        assert slot["space"] in defined or slot["offset"] + slot["nbytes"] <= memory["arena_nbytes"]
    assert memory["slots"]["wte.weight'"] == memory["slots"]["wte.weight"]
    lane_of = {s["step"]: lane["name"] for lane in document["plan"]["lanes"] for s in lane["steps"]}
    assert sorted(lane_of) == list(range(document["totals"]["steps"]))
    waits = [
        (wait, s["step"])
        for lane in document["plan"]["lanes"]
        for s in lane["steps"]
        for wait in s["waits"]
    ]
    assert len(waits) == document["plan"]["edges"] > 0
    assert all(wait < step and lane_of[wait] != lane_of[step] for wait, step in waits)
    assert sum(node["flops"] for node in graph["nodes"]) == document["totals"]["flops"]


def test_every_process_writes_the_same_bytes() -> None:
    """Whatever the seed of Python's string hashes."""
    script = """
import hashlib
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.catalogue import OPS
from aieflow.ops.kernel import HostKernel
from aieflow.runtime import export
from aieflow.runtime.plan import compile_plan
from aieflow.runtime.schedule import Schedule
graph = training_step(ModelConfig(11, 4, 1, 2, 8), 2, 4)
kernels = {name: HostKernel(name, op, None) for name, op in OPS.items()}
lanes = ("cpu.a", "cpu.b", "cpu.c")
placements = tuple((lanes[i % 3],) for i in range(len(graph.nodes)))
plan = compile_plan(graph, Schedule("by hand", lanes, placements), {"cpu": kernels})
for text in (export.json_text, export.graphml_text, export.dot_text):
    print(hashlib.sha256(text(plan).encode()).hexdigest())
"""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    outputs = [child.communicate(timeout=60)[0].split() for child in children]
    assert len(outputs[0]) == 3
    assert outputs[0] == outputs[1]


def test_networkx_graph_holds_nodes_and_values(plan: Plan) -> None:
    drawing = networkx_graph(plan)
    assert list(drawing.nodes) == ["a", HOSTILE, "c"]
    assert drawing.nodes["c"] == {
        "index": 2,
        "op": "add",
        "inputs": f"%a: float32[4, 2]; %{HOSTILE}: float32[4, 2]",
        "outputs": "%c: float32[4, 2]",
        "attrs": "",
        "flops": 8,
        "nbytes": 96,
        "lanes": "cpu.compute.0",
    }
    assert drawing.nodes["a"]["lanes"] == "cpu.compute.0, cpu.compute.1"
    assert list(drawing.edges(keys=True)) == [("a", "c", "a"), (HOSTILE, "c", HOSTILE)]
    assert drawing.edges["a", "c", "a"] == {
        "value": "a",
        "dtype": "float32",
        "shape": "4, 2",
        "nbytes": 32,
    }


def test_values_between_the_same_nodes_are_edges_apart(training_plan: Plan) -> None:
    """layernorm's backward pass reads both the mean and the rstd of its forward pass."""
    drawing = networkx_graph(training_plan)
    assert set(drawing["h.0.ln_1"]["d:h.0.ln_1.weight"]) == {"h.0.ln_1.mean", "h.0.ln_1.rstd"}
    assert networkx.is_directed_acyclic_graph(drawing)
    assert drawing.nodes["h.0.attention"]["attrs"] == "heads=2"


def test_graphml_reads_back(plan: Plan, training_plan: Plan) -> None:
    for each in (plan, training_plan):
        read = networkx.parse_graphml(graphml_text(each), force_multigraph=True)
        ids = [*read.nodes, *(key for _, _, key in read.edges(keys=True))]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch(r"[ne]\d+", each_id) for each_id in ids)
        original = networkx_graph(each)
        name_of = dict(read.nodes(data="name"))
        for node, data in read.nodes(data=True):
            assert data == {"name": name_of[node], **original.nodes[name_of[node]]}
        edges = [
            (name_of[first], name_of[second], data["value"], data)
            for first, second, data in read.edges(data=True)
        ]
        assert sorted(edges, key=lambda edge: edge[:3]) == sorted(
            original.edges(keys=True, data=True), key=lambda edge: edge[:3]
        )


DOT_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|([A-Za-z_0-9]+)|(->|[][{}=;,]))', re.DOTALL)


def dot_tokens(text: str) -> Iterator[str]:
    place = 0
    text = text.rstrip()
    while place < len(text):
        match = DOT_TOKEN.match(text, place)
        assert match, f"no token at {text[place : place + 40]!r}"
        yield match[0].strip()
        place = match.end()


def dot_statements(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """What stands before the attributes of each statement, and the attributes, unescaped."""
    tokens = list(dot_tokens(text))
    assert tokens[:3] == ["digraph", "plan", "{"]
    assert tokens[-1] == "}"
    subject: list[str] = []
    attributes: dict[str, str] = {}
    place = 3
    while place < len(tokens) - 1:
        if tokens[place] == ";":
            yield " ".join(subject), attributes
            subject, attributes = [], {}
        elif tokens[place + 1] == "=":
            value = tokens[place + 2]
            if value.startswith('"'):
                value = re.sub(
                    r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value[1:-1], flags=re.DOTALL
                )
            attributes[tokens[place]] = value
            place += 2
        elif tokens[place] not in ("[", "]", ","):
            subject.append(tokens[place])
        place += 1


def test_dot_holds_nodes_and_values(plan: Plan, training_plan: Plan) -> None:
    for each in (plan, training_plan):
        statements = list(dot_statements(dot_text(each)))
        assert ("", {"label": each.graph.name}) in statements
        drawn = {subject: attributes for subject, attributes in statements if subject}
        for index, node in enumerate(each.graph.nodes):
            attributes = drawn[f"n{index}"]
            name, op, work, lanes = attributes["label"].split("\n")
            assert (name, op) == (node.name, node.op.name)
            assert work == f"{node.flops / 1e9:.3g} GFLOP"
            assert lanes == ", ".join(each.schedule.placements[index])
            assert attributes["fillcolor"] == COLOURS[FAMILIES[node.op.name]]
            assert attributes["tooltip"] == str(node)
        edges = sorted(
            (subject, attributes["label"]) for subject, attributes in statements if "->" in subject
        )
        index_of = {node.name: index for index, node in enumerate(each.graph.nodes)}
        assert edges == sorted(
            (
                f"n{index_of[first]} -> n{index_of[second]}",
                f"{value}\n{data['dtype']}[{data['shape']}]",
            )
            for first, second, value, data in networkx_graph(each).edges(keys=True, data=True)
        )


def test_every_op_has_the_family_of_its_file() -> None:
    files = (attention, batch, embedding, loss, matmul, norm, optim, pointwise)
    defined = {
        op.name: module.__name__.rpartition(".")[2]
        for module in files
        for op in vars(module).values()
        if isinstance(op, Op)
    }
    assert defined == {op: family for op, family in FAMILIES.items() if family != "npu"}
    assert {op for op, family in FAMILIES.items() if family != "npu"} == set(OPS)
    assert set(FAMILIES.values()) == set(COLOURS)
    assert len(set(COLOURS.values())) == len(COLOURS)
