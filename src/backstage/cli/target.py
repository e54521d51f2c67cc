"""`module:attribute` → the object that the user's code keeps there."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import click

T = TypeVar("T")


def load(path: str, kind: type[T]) -> T:
    """The Worker or Scheduler at `module:attribute`; `module` alone does where it holds exactly one.

    Raises ClickException, whose text says what was found instead.
    """
    name, _, attribute = path.partition(":")
    module = _import(name, path)
    held = {key: value for key, value in vars(module).items() if isinstance(value, kind)}
    if not attribute:
        names = list({id(value): key for key, value in reversed(held.items())}.values())[::-1]
        if not names:
            raise click.ClickException(f"{name} holds no {kind.__name__}")
        if len(names) > 1:
            right = f"say which, like {name}:{names[0]}"
            raise click.ClickException(f"{name} holds {len(names)} {kind.__name__}s ({', '.join(names)}): {right}")
        return held[names[0]]
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise click.ClickException(f"{name} has no {attribute!r}; {_listed(name, held, kind)}") from None
    if not isinstance(found, kind):
        raise click.ClickException(
            f"{path} is a {type(found).__name__}, not a {kind.__name__}; {_listed(name, held, kind)}"
        )
    return found


def _import(name: str, path: str) -> ModuleType:
    if name.endswith(".py") or "/" in name or os.sep in name:
        right = ".".join(Path(name).with_suffix("").parts)
        raise click.ClickException(f"{path!r} names a file; write the module's name, like {right}:worker")
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise click.ClickException(f"{path!r} is no module:attribute, like app:worker")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise click.ClickException(
                f"there is no module {exc.name!r}, neither in {folder} nor among the installed ones"
            ) from exc
        raise click.ClickException(f"importing {name} failed: {exc}{_where(exc)}") from exc
    except Exception as exc:  # whatever the user's code raises
        raise click.ClickException(f"importing {name} failed: {type(exc).__name__}: {exc}{_where(exc)}") from exc


def _where(error: BaseException) -> str:
    """The last line of code outside the import machinery."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    if len(frames) < 2:  # only our own call: the module can't even be read
        return "; --debug shows more"
    return f" ({frames[-1].filename}, line {frames[-1].lineno}; --debug shows more)"


def _listed(name: str, held: dict[str, T], kind: type[T]) -> str:
    if not held:
        return f"and no other {kind.__name__} is in {name}"
    return f"{kind.__name__}s there: {', '.join(f'{name}:{key}' for key in held)}"
