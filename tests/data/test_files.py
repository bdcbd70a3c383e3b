"""Small files of a checkpoint that are not what they should be."""

import pytest

from vlvm_jax.data import files
from vlvm_jax.errors import InputError


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a":' * 500 + b"0" + b"}" * 500, "nested more than 100 levels deep"),
        (b"[" * 100_000, "nested more than 100 levels deep"),
        (b'{"a": "\xff"}', "not JSON"),
        (b"[]", "expected a JSON object, found list"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, data, message):
    file = tmp_path / "config.json"
    file.write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        files.read_json(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"chat_template.jinja: not UTF-8"):
        files.read_text(tmp_path / "chat_template.jinja")
