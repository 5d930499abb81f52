"""What is on the disk survives the death of its writer."""

import errno
import json
import os

import pytest

from trl_opd.errors import UserError
from trl_opd.evals.files import Appender, Tail, read_rows


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 15, 16])
def test_a_cut_last_line_is_dropped_and_whole_lines_stay(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":2}\n'[:cut])
    assert list(read_rows(path)) == [{"a": 1}, {"a": 2}][: cut // 8]
    rows = Appender(path)
    rows.append({"a": 3})
    rows.close()
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [*[1, 2][: cut // 8], 3]


def test_a_long_cut_line_is_dropped_as_a_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n' + b"x" * 200_000)
    Appender(path).close()
    assert path.read_bytes() == b'{"a":1}\n'


def test_a_damaged_line_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a":\n{"a":2}\n')
    with pytest.raises(UserError, match=r"Line 1 of .* is damaged"):
        list(read_rows(tmp_path / "rows.jsonl"))


def test_odd_line_ends_inside_a_string_do_not_split_a_row(tmp_path):
    rows = Appender(tmp_path / "rows.jsonl")
    rows.append({"a": "x\u2028y\x85z\ud800"})
    rows.close()
    assert list(read_rows(tmp_path / "rows.jsonl")) == [{"a": "x\u2028y\x85z\ud800"}]


def test_a_reader_sees_each_row_once_and_no_half_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    tail = Tail(path)
    seen = [list(tail.new_rows())]
    for part in (b'{"a":1}\n{"a"', b":2}", b'\n{"a":3}\n'):
        with path.open("ab") as file:
            file.write(part)
        seen.append(list(tail.new_rows()))
    assert seen == [[], [{"a": 1}], [], [{"a": 2}, {"a": 3}]]


def test_a_full_disk_is_a_sentence_and_leaves_whole_lines(tmp_path, monkeypatch):
    rows = Appender(tmp_path / "rows.jsonl")
    rows.append({"a": 1})
    write = os.write

    def full(descriptor, content):
        if len(content) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[:10])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        rows.append({"a": "12345678"})
    monkeypatch.undo()
    rows.append({"a": 2})
    rows.close()
    assert list(read_rows(tmp_path / "rows.jsonl")) == [{"a": 1}, {"a": 2}]
