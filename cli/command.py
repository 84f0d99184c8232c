"""A command that knows what was typed: options that a branch does not use, and their names in errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import Parameter, Signature, signature
from itertools import chain
from typing import Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from ..errors import DistcamError, InputError
from ..remarks import refusing

Function = TypeVar("Function", bound=Callable[..., Any])
_WORDS: ContextVar[str] = ContextVar("words", default="")
_TYPED: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())
_RUNNING: ContextVar[typer.Context | None] = ContextVar("running", default=None)


class Command(TyperCommand):
    """A command whose errors name options as they are typed, and whose branches can refuse what they do not use."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """The context of a call; while its options are read, it is known which command they belong to."""
        name, parent = args[0], extra.get("parent")
        token = _WORDS.set(" ".join(filter(None, (_words(parent), name))))
        typed = _TYPED.set(tuple(args[1]))
        try:
            return super().make_context(*args, **extra)
        finally:
            _TYPED.reset(typed)
            _WORDS.reset(token)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        token = _RUNNING.set(ctx)
        try:
            is_strict = bool(ctx.params.get("strict"))  # then what would be a note is an error, in every command
            with refusing(" (--strict)") if is_strict else nullcontext():
                return super().invoke(ctx)
        except DistcamError as error:
            if len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (option_names(error.args[0], self),)
            raise
        finally:
            _RUNNING.reset(token)


class Commands(typer.Typer):
    """A group of such commands; of one alone it is the command itself."""

    def __init__(self, **options: Any) -> None:
        given = {"add_completion": False, "rich_markup_mode": "markdown", "pretty_exceptions_enable": False}
        super().__init__(**{**given, **options})

    def command(self, *args: Any, **options: Any) -> Callable[[Function], Function]:
        """Register one."""
        register = super().command(*args, **{"cls": Command, **options})

        def command(function: Function) -> Function:
            register(_expanded(function))
            return function

        return command


def _expanded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as typer reads it: of each group of options that it takes, a dataclass, it sees the fields."""
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for name, each in signature(function, eval_str=True).parameters.items():
        kind = each.annotation
        if is_dataclass(kind):
            groups[name], hints = kind, get_type_hints(kind, include_extras=True)
            own = [Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default) for f in fields(kind)]
            parameters += [field.replace(annotation=hints[field.name]) for field in own]
        else:
            parameters.append(each.replace(kind=Parameter.KEYWORD_ONLY))

    def command(**values: Any) -> Any:
        """Calls the function with its groups."""
        made = {name: kind(**{f.name: values.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        return function(**values, **made)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return command


class OnDemand(TyperCommand):
    """A command or group of which name and line of help are known, and whose module's `app` is imported when called."""

    def __init__(self, name: str, module: str, line: str) -> None:
        super().__init__(name, help=line)
        self.module = module

    def load(self) -> Any:
        """The command itself."""
        command = typer.main.get_command(import_module(self.module).app)
        command.name, command.help = self.name, command.help or self.help
        return command

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """The context of a call of it."""
        return self.load().make_context(*args, **extra)


class FirstByDefault(TyperGroup):
    """A group whose first command is meant where none is named: `encoders dinov2` is `encoders list dinov2`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with the command's name before them."""
        names = list(self.commands)
        if not args or (args[0] not in names and not {"-h", "--help"} & set(args[:1])):
            args = [names[0], *args]
        return super().parse_args(ctx, args)


def _words(context: Any) -> str:
    """The words of a group of commands, such as `fewshot`; nothing of the root."""
    if context is None or context.parent is None:
        return ""
    return " ".join(filter(None, (_words(context.parent), context.info_name)))


def running_words() -> str:
    """The running command, such as `fewshot train`; empty where it is called from Python."""
    context = _RUNNING.get()
    return _WORDS.get() if context is None else _words(context)


def refuse_beside(option: str) -> None:
    """Refuse other options typed beside one that is answered before any other is looked at."""
    others = dict.fromkeys(word.partition("=")[0] for word in _TYPED.get() if word.startswith("-") and word != option)
    _refuse(list(others), f"with {option}")


def refuse_unused(branch: str, *options: str | type[Any], remedy: str = "") -> None:
    """Refuse options (parameters' names, or groups) that were typed and that this branch of the command does not use.

    `branch` goes on after "is not used": "without --explain"; `remedy` by default is to leave them out.
    """
    context = _RUNNING.get()
    if context is None:  # called from Python
        return
    by_name = {parameter.name: parameter for parameter in context.command.params}
    names = [[each] if isinstance(each, str) else [field.name for field in fields(each)] for each in options]
    typed = []
    for option in (by_name[name] for name in chain.from_iterable(names)):
        source = context.get_parameter_source(str(option.name))
        if source is not None and source.name == "COMMANDLINE":
            is_off = bool(option.secondary_opts) and context.params[str(option.name)] is False
            typed.append((option.secondary_opts if is_off else option.opts)[0])  # `--flip`, or `--no-flip`
    _refuse(typed, branch, remedy)


def _refuse(typed: list[str], branch: str, remedy: str = "") -> None:
    if typed:
        verb, them = ("is", "it") if len(typed) == 1 else ("are", "them")
        raise InputError(f"{', '.join(typed)} {verb} not used {branch}; {remedy or f'leave {them} out'}")


def option_names(message: str, command: TyperCommand | None = None) -> str:
    """A message in which the running command's options stand for the parameters of Python behind them.

    Replaced are names in backticks, names with an underscore, `name=True`, and the name after "pass": words of English
    are left alone, and so is whatever is quoted or part of a path.
    """
    if command is None:
        context = _RUNNING.get()
        if context is None:
            return message
        command = context.command  # type: ignore[assignment]
    before, after = r"(?<![\w/.'\"=-])(?<!in Python )", r"(?![\w'\"-]|[/.]\w)"
    for parameter in command.params:  # type: ignore[union-attr]
        if not isinstance(parameter, TyperOption) or not parameter.name:
            continue
        option = max(parameter.opts, key=len)
        for word in {parameter.name, option.removeprefix("--").replace("-", "_")}:
            message = re.sub(rf"`{word}(?:=(?:True|…))?`", option, message)
            message = re.sub(rf"`{word}=['\"]?([\w.:-]+)['\"]?`", rf"{option} \1", message)
            message = re.sub(rf"{before}{word}=True{after}", option, message)
            message = re.sub(rf"{before}{word}=('[^']*') is not known", rf"{option} \1 is not known", message)
            message = re.sub(rf"\bpass {word}{after}(?!=)", f"pass {option}", message)
            if "_" in word:
                message = re.sub(rf"{before}{word}{after}(?!=)", option, message)
    return message
