"""Files found on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pretrain.errors import InputError

NOBODY = 65534


@contextmanager
def without_privileges() -> Iterator[None]:
    """As another user than root, whom no permissions stop."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Here, as the folders around it may be closed to others, with a folder in it that cannot be read."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    for name in ("a.txt", "open/b.txt", "open/closed/c.txt", "open/closed/deep/d.txt"):
        path = Path("tree") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    closed = Path("tree", "open", "closed")
    closed.chmod(0o000)
    yield Path("tree")
    closed.chmod(0o755)


@pytest.mark.parametrize("pattern", ["**/*.txt", "*/*/*.txt", "open/closed/*.txt", "*/closed/deep/d.txt", "**/d.txt"])
def test_a_folder_that_cannot_be_read_is_named(tree, make_source, pattern):
    with without_privileges(), pytest.raises(InputError, match=r"^sources: folder tree/open/closed cannot be read"):
        make_source("text", root=tree, pattern=pattern).units()


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_root_that_cannot_be_read_is_named(tree, make_source, mode):
    tree.chmod(mode)
    try:
        with without_privileges(), pytest.raises(InputError, match=r"^sources: folder tree cannot be read"):
            make_source("text", root=tree).units()
    finally:
        tree.chmod(0o755)


def test_a_folder_where_nothing_is_looked_for_may_be_closed(tree, make_source):
    source = make_source("text", root=tree, pattern=["*.txt", "open/*.txt"])
    with without_privileges():
        assert [file.id for unit in source.units() for file in unit.files] == ["a.txt", "open/b.txt"]
