"""``tadvae doctor``: check a cluster before a run, and say how to fix each problem."""

import importlib.metadata
import os
import platform
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.address import FIX, UnreachableError, find_cluster
from pipelines.cluster.connection import ray_session
from pipelines.cluster.gpus import facts, problems, tokens_that_fit
from tadvae import __version__
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location, absolute

PACKAGES = ("ray", "torch", "numpy", "pyarrow", "pydantic", "safetensors")
MARKER = ".tadvae-doctor-"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes
    ----------
    what
        What was checked, in one word.
    found
        What was found.
    fix
        How to fix the problem; None if there is none.
    """

    what: str
    found: str
    fix: str | None = None

    def __str__(self) -> str:
        if self.fix is None:
            return f"ok    {self.what}: {self.found}"
        return f"FIX   {self.what}: {self.found}; {self.fix}."


def examine(
    workers: int = 1, gpu: bool = False, storage: str | None = None, tokens: int | None = None
) -> Iterator[Finding]:
    """Run all checks, one after the other.

    Parameters
    ----------
    workers, gpu
        Number of workers of the planned run, and whether each needs a GPU.
    storage
        Folder or URL of stores and runs; None: storage is not checked.
    tokens
        Tokens of a step of one worker, for the memory of GPUs; None: not checked.
    """
    address = _address()
    yield address
    if address.fix is not None and os.environ.get("RAY_ADDRESS"):
        return
    try:
        with ray_session():
            yield Finding("connection", f"{_n(len(_nodes()), 'node')}, Ray {ray.__version__}")
            yield _token()
            yield _dashboard()
            yield _cpus(workers)
            answers = _ask_every_node(gpu)
            yield from _versions(answers)
            if gpu:
                yield from _gpus(workers, answers, tokens)
            if storage is not None:
                yield from _storage(absolute(storage))
    except UserError as error:
        yield _finding("connection", error)


def _finding(what: str, error: UserError) -> Finding:
    sentence, _, fix = str(error).rstrip(".").rpartition("; ")
    return Finding(what, sentence, fix)


def _address() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        try:
            find_cluster(address)
        except UnreachableError as error:
            return Finding("address", f"no server answers at RAY_ADDRESS={address} ({error.reason})", FIX)
        return Finding("address", f"RAY_ADDRESS={address}")
    others = ray._private.services.find_gcs_addresses()
    if others:
        return Finding(
            "address",
            f"RAY_ADDRESS is not set, but Ray runs on this machine at {', '.join(sorted(others))}: a "
            "run would start a second one",
            "set RAY_ADDRESS to the one to use",
        )
    return Finding("address", "RAY_ADDRESS is not set: a run starts a Ray on this machine alone")


def _token() -> Finding:
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return Finding("token", "the cluster asks for a token and takes this one")
    return Finding(
        "token",
        "the cluster asks for no token: whoever reaches its ports can run code on it",
        "export RAY_AUTH_MODE=token on every node and client, and start it again",
    )


def _dashboard() -> Finding:
    """Send the request that Ray Train's placement-group cleaner sends: without an answer it leaks CPUs."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        list_nodes(limit=1, timeout=20)
    except (RayStateApiException, ConnectionError, OSError, AssertionError, RuntimeError) as error:
        return Finding(
            "dashboard",
            f"the state API does not answer ({_first_line(error)}), so stopped runs would keep their CPUs",
            "start the head with `ray start --head --include-dashboard=true` and `ray[default]` installed",
        )
    return Finding("dashboard", "the state API answers")


def _cpus(workers: int) -> Finding:
    cpus = ray.cluster_resources().get("CPU", 0)
    if cpus < workers:
        return Finding(
            "cpus",
            f"{cpus:g} CPUs, but {_n(workers, 'worker')} need {workers}",
            "add nodes or lower --workers",
        )
    return Finding("cpus", f"{cpus:g} CPUs for {_n(workers, 'worker')}")


def _describe_node(gpu: bool) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions |= {"python": platform.python_version(), "tadvae": __version__}
    about: dict[str, Any] = {"versions": versions}
    if gpu:
        about["gpus"] = facts()
    return about


def _ask_every_node(gpu: bool) -> dict[str, dict[str, Any] | str]:
    """The description of every node, or the error that occurred there."""
    return _on_every_node(_describe_node, lambda node: (gpu,))


def _versions(answers: dict[str, Any]) -> Iterator[Finding]:
    here = _describe_node(gpu=False)["versions"]
    wrong = False
    for node, answer in answers.items():
        if isinstance(answer, str):
            wrong = True
            yield Finding(
                "versions",
                f"node {node} cannot run tadvae ({answer})",
                "install the same environment on it, or start this as a job with --working-dir",
            )
            continue
        others = {k: v for k, v in answer["versions"].items() if v != here[k]}
        if others:
            wrong = True
            text = ", ".join(f"{name} {version} (here {here[name]})" for name, version in others.items())
            yield Finding("versions", f"node {node} has {text}", "install the same versions on every node")
    if not wrong:
        shown = ", ".join(f"{name} {version}" for name, version in here.items())
        yield Finding("versions", f"the same on {_n(len(answers), 'node')}: {shown}")


def _gpus(workers: int, answers: dict[str, Any], tokens: int | None) -> Iterator[Finding]:
    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus < workers:
        text = f"{gpus:g} GPUs for {_n(workers, 'worker')}"
        yield Finding("gpus", text, "add GPU nodes, lower --workers or leave out --gpu")
    for node in _nodes():
        answer = answers.get(_name(node))
        promised = node["Resources"].get("GPU", 0)
        if not promised or not isinstance(answer, dict):
            continue
        for found, fix in problems(answer["gpus"], promised, tokens):
            yield Finding("gpus", f"node {_name(node)}: {found}", fix)
        for card in dict.fromkeys(answer["gpus"].gpus):
            room = f"{tokens_that_fit(card.memory):,}"
            yield Finding("gpus", f"{card.name}: room for about {room} tokens of a step with the encoder")
    if gpus >= workers:
        yield Finding("gpus", f"{gpus:g} GPUs for {_n(workers, 'worker')}")


def _read_and_write(storage: str, written: str, mine: str) -> str:
    text = (Location.of(storage) / written).read_text()
    (Location.of(storage) / mine).write_text(text)
    return text


def _storage(storage: str) -> Iterator[Finding]:
    """Check that every node can read a file written here, and that files of every node can be read here."""
    place, word = Location.of(storage), uuid.uuid4().hex
    fix = (
        "use storage that every node reaches: a shared folder, s3:// or gs://, with credentials on every node"
    )
    driver = f"{MARKER}{word}"
    try:
        place.make_folder()
        (place / driver).write_text(word)
    except UserError as error:
        yield _finding("storage", error)
        return
    names = {_name(node): f"{driver}-{i}" for i, node in enumerate(_nodes())}
    try:
        answers = _on_every_node(_read_and_write, lambda node: (storage, driver, names[node]))
        wrong = False
        for node, answer in answers.items():
            reason = None
            if answer != word:
                reason = f"node {node} cannot read there what this machine wrote ({answer[:160]})"
            elif not (place / names[node]).exists():
                reason = f"node {node} writes there what this machine cannot read"
            if reason:
                wrong = True
                yield Finding("storage", f"{storage}: {reason}", fix)
        if not wrong:
            yield Finding("storage", f"{storage}: shared by {_n(len(answers), 'node')} and this machine")
    finally:
        for name in (driver, *names.values()):
            (place / name).delete()


def _on_every_node(function: Callable[..., Any], arguments: Callable[[str], tuple]) -> dict[str, Any]:
    """Results by node name; the error as text if a task failed."""
    call = ray.remote(num_cpus=0, max_retries=0)(function)
    references = {}
    for node in _nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        references[_name(node)] = call.options(scheduling_strategy=there).remote(*arguments(_name(node)))
    answers: dict[str, Any] = {}
    for name, reference in references.items():
        try:
            answers[name] = ray.get(reference, timeout=120)
        except ray.exceptions.RayError as error:
            answers[name] = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
    return answers


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _n(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
