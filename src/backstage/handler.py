"""Reading a handler: what a worker must know of a function to call it, and the rule for what it may look like."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any, NoReturn

from backstage.errors import TaskError

RULE = "a handler takes the payload first, or nothing; then `Run` by annotation; anything else needs a default"


@dataclass(frozen=True, slots=True)
class Handler:
    """How to call a registered function: `fn(payload)` or `fn()`, and the run by the name of its parameter."""

    where: str
    is_async: bool
    takes_payload: bool
    payload_optional: bool
    payload_type: object
    run_parameter: str | None


def read_handler(name: str, fn: Callable[..., Any], run_type: type) -> Handler:
    """TaskError, with the task's name, file and line, for a function that can't be a handler."""
    where = place_of(fn)

    def refuse(why: str) -> NoReturn:
        raise TaskError(f"task {name!r} ({where}): {why}")

    if inspect.isclass(fn) or not callable(fn):
        what = f"the class {fn.__name__}" if inspect.isclass(fn) else repr(fn)
        refuse(f"{what} can't be a handler: give a function, or an object with a __call__")
    is_async = _is_async(fn, refuse)
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (ValueError, TypeError, NameError) as error:
        refuse(f"its parameters can't be read ({error}): wrap it in a function of your own")
    hints = {p.name: _hint(p, fn, refuse) for p in parameters}
    payload = parameters[0] if parameters and _is_payload(parameters[0], hints, run_type) else None
    runs = [p for p in parameters if p is not payload and _is_run(hints[p.name], run_type)]
    for parameter in parameters:
        if parameter is not payload and parameter not in runs:
            _check_rest(parameter, payload, refuse)
    if len(runs) > 1:
        refuse(f"parameters {' and '.join(repr(p.name) for p in runs)} are both annotated Run: one is enough")
    if runs and runs[0].kind is Parameter.POSITIONAL_ONLY:
        refuse(f"parameter {runs[0].name!r} is passed by name: move it behind the `/`")
    return Handler(
        where=where,
        is_async=is_async,
        takes_payload=payload is not None,
        payload_optional=payload is not None and payload.default is not Parameter.empty,
        payload_type=hints[payload.name] if payload else Any,
        run_parameter=runs[0].name if runs else None,
    )


def place_of(fn: Callable[..., Any]) -> str:
    """`file:line` of the function itself, beneath its decorators; its module where it isn't written in Python."""
    function = _innermost(fn)
    if function is not None:
        return f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
    return f"in {getattr(fn, '__module__', None) or 'an unknown module'}"


def _layers(fn: object) -> Iterator[object]:
    """The callable, then what it stands for: beneath partials, methods, `functools.wraps` and callable objects."""
    while fn is not None:
        yield fn
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif inspect.ismethod(fn):
            fn = fn.__func__
        elif (wrapped := getattr(fn, "__wrapped__", None)) is not None:
            fn = wrapped
        elif inspect.isroutine(fn) or inspect.isclass(fn):
            return
        else:
            fn = getattr(type(fn), "__call__", None)  # noqa: B004 - the method is wanted, not whether there is one


def _innermost(fn: object) -> types.FunctionType | None:
    functions = [layer for layer in _layers(fn) if isinstance(layer, types.FunctionType)]
    return functions[-1] if functions else None


def _is_async(fn: Callable[..., Any], refuse: Callable[[str], NoReturn]) -> bool:
    """The outermost layer that is a coroutine function or a generator says what a call gives.

    So a plain decorator around an `async def` passes the coroutine on, and an async one may drive what it wraps.
    """
    for layer in _layers(fn):
        if inspect.iscoroutinefunction(layer):
            return True
        if inspect.isgeneratorfunction(layer) or inspect.isasyncgenfunction(layer):
            refuse("a generator can't be a handler, for nobody would iterate it: return, don't yield")
    return False


def _hint(parameter: Parameter, fn: Callable[..., Any], refuse: Callable[[str], NoReturn]) -> object:
    """The annotation as a type; those written as strings are looked up where the function stands."""
    annotation = parameter.annotation
    if annotation is Parameter.empty:
        return Any
    function = _innermost(fn)
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    scope = function.__globals__ if function else {}
    enclosing = _enclosing(function) if function else {}
    try:
        return typing.get_type_hints(holder, scope, enclosing, include_extras=True)["it"]
    except Exception as error:  # an annotation is an expression of the user's, which may raise anything
        refuse(
            f"the annotation of {parameter.name!r}, {annotation!r}, can't be resolved ({error}): "
            f"define or import that type at module level, outside `if TYPE_CHECKING:`"
        )


def _enclosing(function: types.FunctionType) -> dict[str, object]:
    """The variables of enclosing functions that this one uses, as far as they have a value yet."""
    found: dict[str, object] = {}
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[variable] = cell.cell_contents
        except ValueError:
            continue
    return found


def _is_payload(first: Parameter, hints: dict[str, object], run_type: type) -> bool:
    positional = first.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return positional and not _is_run(hints[first.name], run_type)


def _is_run(hint: object, run_type: type) -> bool:
    """`Run`, `Run | None`, `Optional[Run]`, and either inside Annotated."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set(typing.get_args(hint)) == {run_type, types.NoneType}
    return hint is run_type


def _check_rest(parameter: Parameter, payload: Parameter | None, refuse: Callable[[str], NoReturn]) -> None:
    """A parameter that is neither the payload nor the run."""
    match parameter.kind:
        case Parameter.VAR_POSITIONAL:
            refuse(f"*{parameter.name} hides what it takes (a decorator without functools.wraps?): {RULE}")
        case Parameter.VAR_KEYWORD if payload is None:
            refuse(f"**{parameter.name} gets nothing, for the payload is passed as one positional argument: {RULE}")
        case Parameter.VAR_KEYWORD:
            return
        case _:
            if parameter.default is Parameter.empty:
                refuse(f"parameter {parameter.name!r} can't be filled: {RULE}")
