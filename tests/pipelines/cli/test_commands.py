"""The command line as its users meet it: help with examples, completion, colours; and a typed library."""

import inspect
import os
import pty
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

import tadvae
from tadvae.model.ensemble import Ensemble
from tadvae.model.tadvae import TADVAE
from tune.cli import app, main

ROOT = Path(__file__).parents[3]
TADVAE_COMMAND = [str(Path(sys.executable).parent / "tadvae")]
COLOUR = re.compile(r"\x1b\[[0-9;]*?(3[0-8]|4[0-8]|9[0-7]|10[0-7])[0-9;]*m")


def commands(group=None, words=("tadvae",)):
    """Every command with the words that call it."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(commands())


def test_there_are_commands():
    assert {("tadvae", "train"), ("tadvae", "datasets", "fetch"), ("tadvae", "tune", "run")} <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example_that_parses(words):
    command = COMMANDS[words]
    example = re.search(r"^Example: (tadvae .+)$", inspect.cleandoc(command.help), re.M)
    assert example, f"{' '.join(words)} has no example"
    given = shlex.split(example[1])
    assert tuple(given[: len(words)]) == words
    command.make_context(words[-1], given[len(words) :])
    for parameter in command.params:
        assert getattr(parameter, "help", None) or parameter.name == "help", parameter.name


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tadvae data", {"datasets"}),
        ("tadvae datasets fetch repl", {"replogle22_k562", "replogle22_rpe1"}),
        ("tadvae train store --preset sen", {"sena", "sena-1e-3", "sena-1e-2"}),
        ("tadvae train --che", set()),
        ("tadvae train --work", {"--workers"}),
    ],
)
def test_a_shell_completes(typed, offered, monkeypatch, capfd):
    asked = {
        "_TADVAE_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    if typed == "tadvae data":  # as the shell asks; the others in this process
        environment = {**os.environ, **asked}
        done = subprocess.run(TADVAE_COMMAND, env=environment, capture_output=True, text=True, timeout=120)
        assert set(done.stdout.split()) == offered
        return
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["tadvae"])
    with pytest.raises(SystemExit):
        main()
    assert set(capfd.readouterr().out.split()) == offered


def on_a_terminal(command, **environment):
    """What a command writes to a terminal."""
    leader, follower = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    done = subprocess.Popen(
        command, stdout=follower, stderr=follower, stdin=follower,
        env={**kept, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(follower)
    text = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    os.close(leader)
    assert done.wait(120) == 0
    return text.decode()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train", "--help"], ["datasets", "list"]])
def test_colours_are_for_terminals_and_for_those_who_want_them(words):
    command = [*TADVAE_COMMAND, *words]
    on_terminal = on_a_terminal(command)
    assert "\x1b[" in on_terminal
    assert "--help" not in words or COLOUR.search(on_terminal)
    assert not COLOUR.search(on_a_terminal(command, NO_COLOR="1"))
    environment = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "CI")}
    piped = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "\x1b" not in piped.stdout + piped.stderr


def test_the_library_is_typed():
    assert (Path(tadvae.__file__).parent / "py.typed").exists()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"] is True
    assert "tadvae" in settings["packages"]
    loosened = [name for rule in settings["overrides"] for name in rule["module"] if "strict" not in rule]
    assert not [name for name in loosened if name.startswith("tadvae")]


@pytest.mark.parametrize("kind", [TADVAE, Ensemble])
def test_public_methods_say_what_they_take_give_and_refuse(kind):
    for name, method in vars(kind).items():
        if name.startswith("_") or not callable(getattr(method, "__func__", method)):
            continue
        function = getattr(method, "__func__", method)
        text = inspect.getdoc(function) or ""
        assert text, name
        source = inspect.getsource(function)
        if "raise UserError" in source:
            assert "UserError" in text, f"{kind.__name__}.{name} does not say what it refuses"
        returns = str(inspect.signature(function).return_annotation)
        if "ndarray" in returns or "DataFrame" in returns:
            assert re.search(r"[Ss]hape|one row", text), f"{kind.__name__}.{name} has no shape"
