"""Configuration: pydantic models in, YAML in and out, dotted overrides.

Each component defines its config class next to the code that reads it; this module holds only what
they share. The resolved config is saved with every run.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tadvae.base.documents import dump_yaml, parse_yaml
from tadvae.base.errors import UserError
from tadvae.base.filesystem import absolute, refuse_credentials


@dataclass(frozen=True)
class IsFile:
    """Marks a setting as the path or URL of a file: ``Annotated[str | None, IsFile()]``.

    Attributes
    ----------
    words
        Values that are no files.
    """

    words: tuple[str, ...] = ()

    def located(self, value: Any, folder: str | Path = "") -> Any:
        """The value with an absolute path; a relative one starts from a folder, by default the working one.

        ``None``, URLs and the marker's words stay as they are, as does whatever validation will refuse.
        """
        if not isinstance(value, str) or not value or value in self.words:
            return value
        return absolute(value if "://" in value else Path(folder) / Path(value).expanduser())


OptionalFile = Annotated[str | None, IsFile()]
"""Type of a setting that is the path or URL of a file, or None."""


class Config(BaseModel):
    """Base of every config: immutable, and an unknown key is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    removed: ClassVar[tuple[str, ...]] = ()
    """Dotted names of settings that earlier versions wrote into saved configs and that no longer exist."""

    @classmethod
    def parse(cls, data: Any, source: str) -> Self:
        """Validate ``data``; on failure raise a UserError that names ``source`` and the key."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise UserError(f"{source}: {_first_problem(error)}.") from None

    @classmethod
    def load(
        cls,
        path: str | Path | None,
        overrides: Iterable[str] = (),
        base: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a YAML file (``None``: the defaults) and apply ``key.sub=value`` overrides.

        Relative paths in the file start from its folder, those of overrides from the working folder.

        Parameters
        ----------
        base
            Settings that the settings of the file replace, such as those of a preset.
        """
        data = read_yaml(path) if path is not None else {}
        if not isinstance(data, dict):
            raise UserError(f"{path}: expected a mapping of settings, found {type(data).__name__}.")
        source = str(path) if path is not None else "--set"
        if path is not None:
            data = cls.locate(data, Path(path).absolute().parent)
        return cls.parse(override(_over(base or {}, data), overrides), source)

    @classmethod
    def load_text(cls, text: str, source: str) -> Self:
        """Validate a YAML text, such as the config saved with a run.

        Settings in :attr:`removed` are left out, so that runs of earlier versions can still be read.
        """
        data = parse_yaml(text, source)
        for key in cls.removed:
            *parents, leaf = key.split(".")
            node = data
            for name in parents:
                node = node.get(name) if isinstance(node, dict) else None
            if isinstance(node, dict):
                node.pop(leaf, None)
        return cls.parse(data, source)

    @classmethod
    def every_setting(cls) -> Iterator[tuple[str, IsFile | None]]:
        """Dotted names of all single settings, each with its marker if it names a file."""
        for name, field in cls.model_fields.items():
            if (group := _group(field.annotation)) is not None:
                yield from ((f"{name}.{key}", marker) for key, marker in group.every_setting())
            else:
                yield name, _marker(field.metadata)

    @classmethod
    def locate(cls, data: Mapping[str, Any], folder: str | Path = "") -> dict[str, Any]:
        """Return settings that are not validated yet, with absolute paths of all files.

        Parameters
        ----------
        folder
            Where relative paths start; by default the working folder.
        """
        result = dict(data)
        for name, field in cls.model_fields.items():
            if name not in result:
                continue
            group, marker, value = _group(field.annotation), _marker(field.metadata), result[name]
            if group is not None and isinstance(value, Mapping):
                result[name] = group.locate(value, folder)
            elif marker is not None:
                result[name] = marker.located(value, folder)
        return result

    def located(self) -> Self:
        """Return the config with absolute paths of files, for processes with another working folder."""
        return type(self).model_validate(self.locate(self.model_dump()))

    def to_yaml(self) -> str:
        """The resolved config as YAML, every default written out."""
        return dump_yaml(self.model_dump(mode="json"))


def read_yaml(path: str | Path) -> Any:
    """Read one YAML document; a missing or malformed file is a UserError."""
    refuse_credentials(str(path))
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of an existing YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    return parse_yaml(text, str(path)) or {}


def override(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``data`` with ``a.b=value`` settings applied; values are parsed as YAML.

    In a group with names of settings as keys, such as the parameters of a sweep, what is left is such a name.

    Examples
    --------
    >>> override({"train": {"epochs": 5}}, ["train.epochs=1", "seed=3"])
    {'train': {'epochs': 1}, 'seed': 3}
    >>> override({"parameters": {"train.epochs": 5}}, ["parameters.train.learning_rate=0.1"])
    {'parameters': {'train.epochs': 5, 'train.learning_rate': 0.1}}
    """
    result = _copy(data)
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key.strip():
            raise UserError(f"--set {item}: expected key=value, for example --set train.epochs=1.")
        node, leaf = result, key.strip()
        while "." in leaf and not any("." in str(name) for name in node):
            name, _, leaf = leaf.partition(".")
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {item}: '{name}' is a value, not a group of settings.")
        node[leaf] = parse_yaml(text, f"--set {key.strip()}")
    return result


def _group(annotation: Any) -> type[Config] | None:
    """The config that a field holds; None for a single setting."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Config) else None


def _marker(metadata: Iterable[Any]) -> IsFile | None:
    return next((each for each in metadata if isinstance(each, IsFile)), None)


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _over(base: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``data`` into ``base``, group by group; values of ``data`` win."""
    result = _copy(base)
    for key, value in data.items():
        below = result.get(key)
        result[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return result


def _first_problem(error: ValidationError) -> str:
    """Describe the first validation error of pydantic in one clause, with the number of others."""
    problem, *others = error.errors()
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        text = f"unknown setting '{where}'; remove it or fix its spelling"
    elif problem["type"] == "missing":
        text = f"'{where}' is missing"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "model_type":
            message = "expected a mapping of settings"
        text = (f"'{where}': " if where else "") + message[:1].lower() + message[1:]
        if not isinstance(problem["input"], Mapping):  # printing a whole group of settings would not help
            shown = repr(problem["input"])
            text += f" (got {shown if len(shown) <= 80 else shown[:79] + '…'})"
    return text + (f" (and {len(others)} more problems)" if others else "")
