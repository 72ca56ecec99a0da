"""Text files: what cannot be read is one sentence that names the file."""

import pytest

from rlhfv_jax import textfiles
from rlhfv_jax.errors import UserError


def test_a_text_comes_with_plain_line_ends_and_without_a_byte_order_mark_where_asked(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffé\r\n1\r2\n".encode())
    assert textfiles.read(path, "utf-8-sig") == path.read_text("utf-8-sig") == "é\n1\n2\n"
    assert textfiles.read(path) == path.read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.txt", r"^The file .*none\.txt does not exist\.$"),
        ("", r"^Cannot read .* \(Is a directory\)\.$"),
        ("latin.txt", r"^.*latin\.txt is not UTF-8 text \('utf-8' codec can't decode byte 0xe9 in position 0"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, sentence):
    (tmp_path / "latin.txt").write_bytes("é x".encode("latin-1"))
    with pytest.raises(UserError, match=sentence):
        textfiles.read(tmp_path / name)
