import pytest

from symdyn_core.errors import InputError
from symdyn_core.files import check_writable, write_atomically


def test_a_file_is_whole_and_alone(tmp_path):
    path = write_atomically(tmp_path / "deep" / "er" / "a.txt", "one")
    write_atomically(path, b"two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(InputError, match="cannot write to .*taken"):
        write_atomically(folder, "text")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_checking_creates_nothing(tmp_path):
    check_writable(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []


def test_a_place_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to .*file/folder: Not a directory"):
        check_writable(tmp_path / "file" / "folder")
