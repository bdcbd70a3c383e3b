"""What all settings are: immutable, hashable, built from plain data with errors that name the key."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from vlvm_jax.errors import InputError

DType = Literal["float32", "bfloat16"]


class Settings(pydantic.BaseModel):
    """Base of all settings: immutable, hashable, unknown keys are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def _one_name(name: str) -> str:
    if not name.strip() or "/" in name or name in (".", "..") or not name.isprintable() or len(name) > 200:
        raise ValueError("expected the name of a folder, without others around it")
    return name


FolderName = Annotated[str, pydantic.AfterValidator(_one_name)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
Steps = Annotated[int, pydantic.Field(gt=0, lt=2**31)]  # counted in int32

SettingsT = TypeVar("SettingsT", bound=Settings)


class FrozenDict(dict):
    """A dict that hashes by content, so that a config stays hashable (NNX compares modules by their static parts)."""

    def __hash__(self):
        return hash(json.dumps(self, sort_keys=True, default=list))

    def __setitem__(self, key, value):
        raise TypeError("settings are immutable")

    def __delitem__(self, key):
        raise TypeError("settings are immutable")

    def __reduce__(self):
        """Settings go to worker processes, where unpickling a dict would set its items."""
        return type(self), (dict(self),)


def build(cls: type[SettingsT], values: Any, where: str = "config") -> SettingsT:
    """Builds settings from plain data, or raises `InputError` with one line for the first fault."""
    try:
        return cls.model_validate(_plain(values))
    except pydantic.ValidationError as error:
        raise InputError(_one_line(error, cls, where)) from None


def _plain(values: Any) -> Any:
    """A `ConfigDict` as plain dicts, also where it stands inside lists."""
    if hasattr(values, "to_dict"):
        values = values.to_dict()
    if isinstance(values, Mapping) and not isinstance(values, FrozenDict):
        return {key: _plain(value) for key, value in values.items()}
    return [_plain(value) for value in values] if isinstance(values, list) else values


def _one_line(error: pydantic.ValidationError, cls: type[Settings], where: str) -> str:
    fault = error.errors()[0]
    path = ".".join([where, *(str(part) for part in fault["loc"])])
    if fault["type"] == "extra_forbidden":
        known = _fields_at(cls, fault["loc"][:-1])
        close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(sorted(known))}"
        return f"{path}: unknown key{hint}"
    if fault["type"] == "missing":
        return f"{path}: this key is required and missing"
    message = fault["msg"].removeprefix("Value error, ")
    value = fault.get("input")
    given = "" if isinstance(value, Mapping | Settings) else f" (found {value!r})"
    return f"{path}: {message}{given}"


def _fields_at(cls: Any, loc: tuple) -> list[str]:
    """Field names of the settings class at a location of an error, following nested and tuple-typed fields."""
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = cls.model_fields[part].annotation
        nested = [annotation, *getattr(annotation, "__args__", ())]
        cls = next(a for a in nested if isinstance(a, type) and issubclass(a, Settings))
    return list(cls.model_fields)


def to_json(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def fingerprint(settings: Settings) -> str:
    """Short hash of all settings, defaults among them."""
    text = json.dumps(to_json(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
