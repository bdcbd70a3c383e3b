"""YAML of other people: plain values alone, and bounds on size, depth and what aliases repeat."""

from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # those that an alias repeats count each time
MAX_DEPTH = 100
_MAX_NUMBER = 100  # characters; a number to base 60 takes time by the square of its length


class _Loader(yaml.SafeLoader):
    """Counts what a text holds while it is read, before anything is made of it."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self._weights: dict[int, int] = {}  # of finished nodes, by id
        self._depth = self._values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        repeated = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        before, self._depth = self._values, self._depth + 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if repeated and id(node) not in self._weights:
            raise yaml.MarkedYAMLError(problem="an alias of what it is in", problem_mark=mark)
        self._values += self._weights[id(node)] if repeated else 1
        if self._values > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES:,} values, aliases resolved", problem_mark=mark)
        if (
            isinstance(node, yaml.ScalarNode)
            and node.tag.endswith((":int", ":float"))
            and len(node.value) > _MAX_NUMBER
        ):
            raise yaml.MarkedYAMLError(problem=f"a number of more than {_MAX_NUMBER} digits", problem_mark=mark)
        self._weights.setdefault(id(node), self._values - before)
        return node


def loads(text: str) -> Any:
    """The value of a YAML text.

    Raises:
      ValueError: it is not YAML, or has more in it than the bounds above.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
