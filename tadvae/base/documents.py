"""YAML and JSON that was not written by this program: read within limits, or refused with the line.

A file of a few lines can stand for gigabytes (aliases of aliases), nest deeper than Python's stack, or hold
a number that takes minutes to read. Every YAML and JSON text of a file or an option comes through here.
"""

import json
import re
from typing import Any

import yaml

from tadvae.base.errors import UserError

LARGEST = 10_000_000
"""Most characters of a YAML text, also when its aliases are written out."""
DEEPEST = 50
"""Most levels of mappings and lists inside each other."""
LONGEST_NUMBER = 100
"""Most characters of a number."""
_INTEGERS = range(-(2**63), 2**64)
"""Integers that fit into 64 bits."""
_MERGE, _VALUE = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_TRUTH = "tag:yaml.org,2002:bool"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_RAW = (ValueError, LookupError, AttributeError, TypeError, OverflowError)
"""What PyYAML raises for a scalar that does not fit its type, such as the date 2024-99-99."""

# in C where PyYAML was built with it
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document; what is malformed, given twice or too large is a UserError.

    Parameters
    ----------
    source
        Name of the file or option, for the sentence.
    """
    if len(text) > LARGEST:
        raise UserError(
            f"{source}: has {len(text):,} characters, of which at most {LARGEST:,} are read as YAML; make it "
            "shorter."
        )
    try:
        _check_depth(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, loader, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeError:
        raise UserError(f"{source}: holds bytes that are no UTF-8 text; save it as UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{where}: not valid YAML ({reason}); fix it.") from None


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML, keys in their order."""
    written: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False)
    return written


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; what is malformed, too deep, or no text or number of this program is a ValueError."""
    try:
        data = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels") from None
    level = [data]
    for _ in range(DEEPEST + 1):
        inner = [node for node in level if isinstance(node, dict | list)]
        level = [child for node in inner for child in (node.values() if isinstance(node, dict) else node)]
        if not level:
            break
    else:
        raise ValueError(f"more than {DEEPEST} levels")
    if _SURROGATE.search(text if isinstance(text, str) else text.decode("utf-8", "replace")):
        json.dumps(data, ensure_ascii=False).encode()  # half a character cannot be written again
    return data


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER or int(digits) not in _INTEGERS:
        raise ValueError(f"the number {digits[:20]}… has more than 64 bits")
    return int(digits)


def _check_depth(text: str) -> None:
    """Look at the events before anything is built: building recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _refusal(f"more than {DEEPEST} levels of mappings and lists", event)


def _check(node: yaml.Node, loader: Any, sizes: dict[yaml.Node, int]) -> int:
    """Check a node and those below it; return its size in characters when aliases are written out."""
    if node in sizes:
        if not sizes[node]:
            raise _refusal("an alias stands inside of what it names", node)
        return sizes[node]
    sizes[node] = 0  # not known yet: an alias that comes back here is a circle
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, loader)
        size = len(node.value)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node, loader, sizes)
        size = sum(_check(each, loader, sizes) for pair in node.value for each in pair)
    else:
        size = sum(_check(each, loader, sizes) for each in node.value)
    if size >= LARGEST:
        raise _refusal(f"with its aliases written out it has more than {LARGEST:,} characters", node)
    sizes[node] = size + 1
    return sizes[node]


def _check_keys(node: yaml.MappingNode, loader: Any, sizes: dict[yaml.Node, int]) -> None:
    """Refuse a key that is given twice: the first value would be lost."""
    seen: set[Any] = set()
    for key, _ in node.value:
        if key.tag == _MERGE or not isinstance(key, yaml.ScalarNode):
            continue
        _check(key, loader, sizes)
        name = loader.construct_object(key)
        if name in seen:
            raise _refusal(f"the key {key.value[:80]!r} is given twice", key)
        seen.add(name)


def _check_scalar(node: yaml.ScalarNode, loader: Any) -> None:
    if node.tag == _MERGE:
        return
    if node.tag == _VALUE:  # PyYAML knows an unquoted = as a key alone
        node.tag = "tag:yaml.org,2002:str"
    shown = node.value[:20] + ("…" if len(node.value) > 20 else "")
    if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
        raise _refusal(f"the number {shown} has more than {LONGEST_NUMBER} characters", node)
    try:
        value = loader.construct_object(node)
        if isinstance(value, str):
            value.encode()
    except _RAW:
        kind = node.tag.rpartition(":")[2]
        raise _refusal(f"{shown!a} is no {kind}; put quotes around it if it is text", node) from None
    if isinstance(value, int) and value not in _INTEGERS:
        raise _refusal(f"the number {shown} has more than 64 bits", node)
    if not node.style and not _is_usual(node, value):
        node.tag = "tag:yaml.org,2002:str"  # a label stays as it is written; a setting makes a number of it
        del loader.constructed_objects[node]


def _is_usual(node: yaml.Node, value: Any) -> bool:
    """Whether a number or boolean is written as such, and not as YAML 1.1 reads 007, 1_000, 12:30 and no."""
    if node.tag == _TRUTH:
        return str(node.value).lower() == str(value).lower()
    if node.tag not in _NUMBERS or value != value or value in (float("inf"), float("-inf")):
        return True
    exact = repr(value)
    with_point = exact if "." in exact else exact.replace("e", ".0e")  # as PyYAML writes it
    return str(node.value).lower() in (exact, with_point)


def _refusal(reason: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=place.start_mark)
