"""What the tests of data share: texts in an empty home."""

from pathlib import Path

import pytest


@pytest.fixture
def write(home):
    """Writes a file below the home, which is the working directory; its path from there."""

    def write(name, content):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Path(name)

    return write
