"""Renders chat templates of other people: in Jinja's sandbox, with bounds on size, steps, values and time.

The environment has what transformers gives to templates, and equal results (a test compares them). Jinja's sandbox
keeps a template from escaping, but lets it loop, and grow values, without end. Here every iteration, call, lookup and
operation is counted, and what an operation makes is bounded before or, where it cannot be large, after it is made.
docs/security.md states the bounds.
"""

import datetime
import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import ext, nodes, runtime
from jinja2.compiler import CodeGenerator
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_SOURCE = 200_000  # characters of a template
MAX_STEPS = 1_000_000  # iterations, calls, lookups and operations of one rendering
MAX_TEXT = 4_000_000  # characters of one text
MAX_WRITTEN = 100_000_000  # characters of all texts that are made on the way
MAX_ITEMS = 100_000  # items of one value, those inside its items included
MAX_DEPTH = 100  # of lists and objects inside one another
MAX_BITS = 100_000  # of a whole number
SECONDS = 5.0  # of the thread's processor time; what no count sees in time


class OverBudgetError(jinja2.TemplateRuntimeError):
    """A template takes more than it may."""


class _Budget:
    """What one rendering has used."""

    def __init__(self):
        self.steps = self.written = 0
        self.until = time.thread_time() + SECONDS

    def step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps > MAX_STEPS:
            raise OverBudgetError(f"more than {MAX_STEPS:,} steps")
        if time.thread_time() > self.until:
            raise OverBudgetError(f"more than {SECONDS:g} seconds of processor time")

    def text(self, length: int) -> None:
        """Charges for a text that will be, or has been made."""
        if length > MAX_TEXT:
            raise OverBudgetError(f"a text of more than {MAX_TEXT:,} characters")
        self.written += length
        if self.written > MAX_WRITTEN:
            raise OverBudgetError(f"texts of more than {MAX_WRITTEN:,} characters in all")

    def value(self, value: Any) -> Any:
        """The value itself, charged for."""
        if isinstance(value, str):
            self.text(len(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            if value.bit_length() > MAX_BITS:
                raise OverBudgetError(f"a number of more than {MAX_BITS:,} bits")
        elif isinstance(value, list | tuple | dict | set | frozenset):
            items, _, _ = self.weigh(value)
            self.step(items // 100)
        elif isinstance(value, Iterator):
            return self.counted(value)
        return value

    def weigh(self, value: Any) -> tuple[int, int, int]:
        """Numbers of items and of characters in a value, and its depth; what is in it twice counts twice."""
        items = chars = depth = 0
        level = [value]
        while level:
            following = []
            for one in level:
                if isinstance(one, str):
                    chars += len(one)
                elif isinstance(one, Mapping):
                    following += (*one.keys(), *one.values())
                elif isinstance(one, list | tuple | set | frozenset):
                    following += one
            items, depth, level = items + len(following), depth + bool(following), following
            if items > MAX_ITEMS:
                raise OverBudgetError(f"a value of more than {MAX_ITEMS:,} items")
            if depth > MAX_DEPTH:
                raise OverBudgetError(f"a value of more than {MAX_DEPTH} levels")
        return items, chars, depth

    def counted(self, iterable: Iterable) -> Iterator:
        for item in iterable:
            self.step()
            yield item


_LONG = re.compile(r"\d{5}")
_OPEN_WIDTHS = (_LONG, re.compile(r"\{[^{}]*\{"), re.compile(r"%[-+ #0-9.]*\*"))  # of fields of a format


def _length_of_result(budget: _Budget, name: str, value: Any, args: tuple, kwargs: dict) -> int:
    """At most how long the text is that a method or filter of this name makes, 0 if it is about as long as `value`."""
    given = [*args, *kwargs.values()]
    numbers = [abs(one) for one in given if isinstance(one, int)]
    texts = [len(one) for one in given if isinstance(one, str)]
    if name == "join":  # of a list or the characters of a text; which is the separator, filter and method disagree
        many = chars = long = 0
        for one in (value, *given):
            if isinstance(one, str):
                many, chars, long = max(many, len(one)), chars + len(one), max(long, len(one))
            elif isinstance(one, list | tuple):
                items, inside, _ = budget.weigh(one)
                many, chars = max(many, items), chars + inside
        return chars + many * long
    if name == "tojson":
        items, chars, depth = budget.weigh(value)
        return 6 * chars + (items + 1) * (1 + depth * max([*numbers, *texts, 0]))
    if name == "to_bytes":
        return max(numbers, default=0)
    if not isinstance(value, str):
        return 0
    if name in ("center", "ljust", "rjust", "zfill"):
        return max([len(value), *numbers])
    if name in ("expandtabs", "indent"):
        return len(value) + (value.count("\t" if name == "expandtabs" else "\n") + 1) * max([8, *numbers, *texts])
    if name == "replace" and len(given) > 1 and isinstance(given[0], str) and isinstance(given[1], str):
        return len(value) + value.count(given[0]) * len(given[1])
    if name == "wordwrap":
        return len(value) * (2 + max(texts, default=0))
    if name in ("format", "format_map", "%"):
        if any(pattern.search(value) for pattern in _OPEN_WIDTHS):
            raise OverBudgetError("a format with a width that is very large or not stated in it")
        _, chars, _ = budget.weigh(given)
        return len(value) + (value.count("%") + value.count("{")) * (chars + 10_000)
    if name == "urlize" and len(value) > 10_000:
        raise OverBudgetError("urlize of more than 10,000 characters")
    return 0


class _CodeGenerator(CodeGenerator):
    """Has iterations, values in brackets, joined and written texts pass the environment's counters."""

    def visit_For(self, node: nodes.For, frame: Any) -> None:  # noqa: N802
        node.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [node.iter], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Any, finalize: Any) -> str:
        raise nodes.Impossible  # all that is written is written at run time, through `finalize`

    def _made(self, visit: Callable, node: nodes.Expr, frame: Any) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Any) -> None:  # noqa: N802
        self._made(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:  # noqa: N802
        self._made(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:  # noqa: N802
        if node.ctx == "load":
            self._made(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, whose templates are counted (`budget`), with what transformers adds to it."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self):
        self._local = threading.local()
        self._local.budget = _Budget()
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols], finalize=self.made
        )
        self.filters = {name: self._bounded(name, filter) for name, filter in self.filters.items()}
        self.filters["tojson"] = self._bounded("tojson", _tojson)
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": _now,
            "dict": _dict,
            "namespace": _Namespace,
            "lipsum": _lipsum,
        }

    @property
    def budget(self) -> _Budget:
        return self._local.budget

    def begin(self) -> None:
        """Gives this thread's next rendering a budget of its own."""
        self._local.budget = _Budget()

    def counted(self, iterable: Iterable) -> Iterator:
        return self.budget.counted(iterable)

    def made(self, value: Any) -> Any:
        self.budget.step()
        return self.budget.value(value)

    def joined(self, parts: tuple) -> str:
        shown = [part if isinstance(part, str) else str(self.made(part)) for part in parts]
        self.budget.step()
        self.budget.text(sum(map(len, shown)))
        return runtime.str_join(shown)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if __obj == __self.counted:
            return __self.counted(*args)
        __self.budget.step()
        if isinstance(__obj, runtime.LoopContext) and args:  # a recursive loop
            args = (__self.counted(args[0]), *args[1:])
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | int):
            if name == "join" and len(args) == 1 and not isinstance(args[0], str):
                args = (list(__self.counted(args[0])),)
            __self.budget.text(_length_of_result(__self.budget, name, owner, args, kwargs))
        if name == "translate":
            raise OverBudgetError("str.translate is not offered")
        return __self.budget.value(super().call(__context, __obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.budget.step()
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.budget.step()
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        budget.step()
        for one, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, str | list | tuple | bytes) and isinstance(other, int):
                size = budget.weigh(one)[0] if isinstance(one, list | tuple) else 0
                budget.text(len(one) * max(other, 0))
                if max(size, 1) * other > MAX_ITEMS and not isinstance(one, str | bytes):
                    raise OverBudgetError(f"a value of more than {MAX_ITEMS:,} items")
        if isinstance(left, str) and operator == "%":
            given = right if isinstance(right, tuple) else (right,)
            budget.text(_length_of_result(budget, "%", left, given, {}))
        if isinstance(left, str) and isinstance(right, str) and operator == "+":
            budget.text(len(left) + len(right))
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise OverBudgetError(f"a number of more than {MAX_BITS:,} bits")
        return budget.value(super().call_binop(context, operator, left, right))

    def _bounded(self, name: str, filter: Callable) -> Callable:
        """A filter that is counted, and whose result is bounded."""
        passed = 1 if hasattr(filter, "jinja_pass_arg") else 0  # the environment or a context, before the value

        @functools.wraps(filter)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            budget, (value, *rest) = self.budget, args[passed:]
            budget.step()
            if isinstance(value, Iterator):
                value = list(budget.counted(value))
                budget.value(value)
            if isinstance(value, list | tuple | dict):
                budget.step(len(value))
            if name == "sum" and any(not isinstance(one, int | float) for one in (*rest[1:], kwargs.get("start", 0))):
                raise OverBudgetError("the filter sum is for numbers")
            if name in ("batch", "slice") and any(isinstance(one, int) and one > MAX_ITEMS for one in rest):
                raise OverBudgetError(f"a value of more than {MAX_ITEMS:,} items")
            budget.text(_length_of_result(budget, name, value, tuple(rest), kwargs))
            return budget.value(filter(*args[:passed], value, *rest, **kwargs))

        return bounded


# --- what transformers gives to templates ------------------------------------------------------------------------


class _Generation(ext.Extension):
    """`{% generation %}`, which marks what an assistant wrote: its body is written as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(format: str) -> str:
    if len(format) > 1000 or _LONG.search(format):
        raise OverBudgetError("a format of a date of more than 1,000 characters")
    return datetime.datetime.now().strftime(format)


def _dict(*args: Any, **kwargs: Any) -> dict:
    return dict(*args, **kwargs)


def _lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    if n * max > 10_000:
        raise OverBudgetError("lipsum of more than 10,000 words")
    return jinja2.utils.generate_lorem_ipsum(n, html, min, max)


class _Namespace(Namespace):
    """A namespace none of whose names begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any):
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no name {name!r}")


# --- rendering ---------------------------------------------------------------------------------------------------


_LOCK = threading.Lock()


@functools.lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    if tuple(map(int, re.findall(r"\d+", jinja2.__version__)[:3])) < (3, 1, 6):
        raise ImportError(f"jinja2 3.1.6 or newer is needed, whose sandbox holds; this is {jinja2.__version__}")
    return BoundedEnvironment()


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def render(template: str, **variables: Any) -> str:
    """The text that a template makes of its variables: plain values, as JSON has them.

    Raises:
      OverBudgetError: it is too long, or takes too many steps, too much room or time.
      ImportError: jinja2 is too old.
      Exception: the template fails in any other way.
    """
    if len(template) > MAX_SOURCE:
        raise OverBudgetError(f"a template of more than {MAX_SOURCE:,} characters")
    with _LOCK:  # caches do not keep threads from making two environments at once, each with budgets of its own
        made = _compiled(template)
    environment = made.environment
    assert isinstance(environment, BoundedEnvironment)
    environment.begin()
    return made.render(variables)
