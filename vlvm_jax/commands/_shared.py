"""Flags and checks that several subcommands share."""

from pathlib import Path

from absl import flags

from vlvm_jax.errors import InputError

flags.disclaim_key_flags()  # a flag belongs to the command that asks for it


def define_media_root() -> flags.FlagHolder:
    return flags.DEFINE_string("media_root", None, "Folder of the media (default: that of the annotation file).")


def define_format() -> flags.FlagHolder:
    return flags.DEFINE_string("format", "auto", "Format of the sources (docs/your_data.md).")


def define_workers(more: str = "") -> flags.FlagHolder:
    """Defines `--workers`; `more` is what its help says besides."""
    text = f"Processes that work (default: one per core); 0 works in this process alone. {more}"
    return flags.DEFINE_integer("workers", None, text.strip(), lower_bound=0, upper_bound=1024)


def number_of_workers(given: int | None) -> int:
    from vlvm_jax.data.batch.tuning import usable_cores

    return usable_cores() if given is None else given


def check_name(name: str | None) -> None:
    """Raises `InputError` for a name that shards cannot begin with."""
    if name is not None and (not name.strip() or "/" in name or not name.isprintable() or len(name) > 100):
        raise InputError(f"--name={name}: expected the beginning of a file's name, without a folder")


def in_new_folder(name: str) -> Path:
    """The path of a file to write, whose folder is made."""
    path = Path(name).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
