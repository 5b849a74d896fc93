"""`captions.md` of a folder of figures: the caption of each picture by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bsnn_cli.common.files import read_text, write_text


def captions(directory: Path) -> dict[str, str]:
    """Read the caption of each picture that `captions.md` names; a name leads nowhere but into the folder."""
    path = directory / "captions.md"
    text = read_text(path) if path.exists() else ""
    return dict(re.findall(r"^## ([A-Za-z0-9._-]+)\n\n(.+)$", text, flags=re.MULTILINE))


def write_captions(directory: Path, texts: Mapping[str, str]) -> None:
    """Write `captions.md`, sorted by name."""
    parts = [f"\n## {name}\n\n{text}\n" for name, text in sorted(texts.items())]
    write_text(directory / "captions.md", "# Captions\n" + "".join(parts))
