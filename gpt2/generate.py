"""Generates text: tokens one at a time, over cached keys and values.

A token costs one pass over the parameters and one over the cache, however long the text is. The
prompt is read in chunks. When the context is full, the later half of it is read again into an
empty cache, so generation can go on for ever.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import decoding, inference
from aieflow.gpt2.params import parameter_specs
from aieflow.gpt2.pretrained import load_parameters, read_model_config
from aieflow.ops.errors import InputError
from aieflow.ops.graph import Graph
from aieflow.ops.op import Array
from aieflow.runtime.executor import Executor
from aieflow.runtime.machine import Machine
from aieflow.runtime.states import States

CHUNK = 32  # tokens of the prompt that are read at once


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; raises InputError for a value out of its range."""

    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature = {self.temperature}: must be 0 or more, and finite")
        if self.top_k < 0:
            raise InputError(f"--top-k = {self.top_k}: must be 0 (no limit) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p = {self.top_p}: must lie above 0 and not above 1")
        if self.seed < 0:
            raise InputError(f"--seed = {self.seed}: must be 0 or more")


def choose(logits: Array, sampling: Sampling, rng: np.random.Generator) -> int:
    """Draw a token from logits (V,): temperature, then top-k, then top-p (Holtzman et al. 2020)."""
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    with np.errstate(over="ignore"):  # a temperature near 0 makes the less likely ones -infinity
        scaled = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = np.exp(scaled[order])
    cumulative = np.cumsum(weights) / weights.sum()
    kept = int(np.searchsorted(cumulative, sampling.top_p)) + 1  # the token that crosses is kept
    cumulative = np.cumsum(weights[:kept])
    place_of = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return int(order[min(place_of, len(cumulative) - 1)])


class Generator:
    """A model ready to generate `samples` texts side by side. Close it, or use it in a `with`.

    `parameters` are float32 arrays by name; they are used as they are, not copied. Raises
    InputError where keys, values and logits of so many samples do not fit into memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Mapping[str, Array],
        machine: Machine,
        samples: int = 1,
    ) -> None:
        self.config = config
        self.samples = samples
        self._machine = machine
        self._chunk = min(CHUNK, config.seq_len)
        caches = 2 * config.layers * config.seq_len * config.channels
        nbytes = 4 * samples * (caches + self._chunk * config.vocab_size)
        _require_memory(nbytes, machine, f"--samples {samples}", "ask for fewer samples")
        graph = decoding(config, samples, 1)
        self._states = _with_parameters(graph, parameters, machine)
        self._executors = {1: self._open(graph)}
        if self._chunk > 1:
            self._executors[self._chunk] = self._open(decoding(config, samples, self._chunk))
        self._position = 0

    @classmethod
    def from_folder(cls, folder: Path, machine: Machine, samples: int = 1) -> "Generator":
        """Open a checkpoint or a Hugging Face folder; raises InputError."""
        config = read_model_config(folder)
        _require_memory(4 * config.parameters, machine, str(folder), "use a smaller model")
        parameters: dict[str, Array] = {
            name: np.empty(spec.shape, np.float32) for name, spec in parameter_specs(config).items()
        }
        load_parameters(folder, config, parameters)
        return cls(config, parameters, machine, samples)

    def logits(self, tokens: npt.NDArray[np.int32]) -> Array:
        """Logits of one whole sequence at once, without the cache; tokens (T,) -> (T, V)."""
        self._require_tokens(tokens)
        graph = inference(self.config, 1, len(tokens))
        with self._open(graph) as executor:
            executor.run({"tokens": tokens[None].astype(np.int32)})
            logits: Array = executor.array("logits")[0].copy()
            return logits

    def greedy(self, tokens: npt.NDArray[np.int32], count: int) -> list[int]:
        """The `count` likeliest further tokens, each given those before it."""
        stream = self.stream(tokens, Sampling(temperature=0))
        return [next(stream)[0] for _ in range(count)]

    def stream(
        self, prompt: npt.NDArray[np.int32] | Sequence[int], sampling: Sampling
    ) -> Iterator[list[int]]:
        """Endlessly the next token of each sample, all beginning with `prompt`.

        Each sample has a random stream of its own, so it does not depend on how many there are.
        Raises InputError for an empty prompt or ids beyond the vocabulary.
        """
        prompt = np.asarray(prompt, np.int32)
        self._require_tokens(prompt)
        texts = np.tile(prompt, (self.samples, 1))
        streams = [np.random.default_rng((sampling.seed, i)) for i in range(self.samples)]
        self._position = 0
        logits = self._read(texts[:, -self.config.seq_len :])
        while True:
            pairs = zip(logits, streams, strict=True)
            chosen = [choose(row, sampling, rng) for row, rng in pairs]
            yield chosen
            column = np.array(chosen, np.int32)[:, None]
            texts = np.concatenate([texts, column], axis=1)[:, -self.config.seq_len :]
            if self._position == self.config.seq_len:
                self._position = 0
                logits = self._read(texts[:, -max(1, self.config.seq_len // 2) :])
            else:
                logits = self._read(column)

    def close(self) -> None:
        """End the lanes' workers."""
        for executor in self._executors.values():
            executor.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, graph: Graph) -> Executor:
        return self._machine.open(self._machine.plan(graph), self._states)

    def _read(self, tokens: npt.NDArray[np.int32]) -> Array:
        """Append tokens (samples, n) to the cache; the logits after the last: (samples, V)."""
        done = 0
        logits: Array = np.empty(0)
        while done < tokens.shape[1]:
            count = self._chunk if tokens.shape[1] - done >= self._chunk else 1
            executor = self._executors[count]
            part = np.ascontiguousarray(tokens[:, done : done + count])
            position = np.array([self._position], np.int64)
            executor.run({"tokens": part, "position": position})
            logits = executor.array("logits")[:, -1]
            done += count
            self._position += count
        return logits

    def _require_tokens(self, tokens: Array) -> None:
        if tokens.size == 0:
            raise InputError("the prompt is empty: give at least one token")
        beyond = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]
        if beyond.size:
            raise InputError(
                f"token id {int(beyond[0])} is beyond the vocabulary of {self.config.vocab_size}: "
                "the tokenizer does not belong to the model"
            )


def _require_memory(nbytes: int, machine: Machine, what: str, remedy: str) -> None:
    free = machine.free_nbytes()
    if nbytes > free:
        raise InputError(
            f"{what}: needs {nbytes / 2**30:,.2f} GiB of memory, {machine.name} has "
            f"{free / 2**30:,.2f} GiB free: {remedy}"
        )


def _with_parameters(graph: Graph, parameters: Mapping[str, Array], machine: Machine) -> States:
    """Parameters and empty caches; the parameters' own memory where every device can reach it."""
    if machine.is_plain:
        caches = [value for value in graph.states if value.role == "cache"]
        return States({**parameters, **machine.allocate_states(graph, caches)})
    states = machine.allocate_states(graph)
    for name, array in parameters.items():
        states[name][...] = array
    return states
