"""Rendering of HTML templates, every text escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), 127)}
"""Characters that HTML may not hold, as codes."""


def rendered(template: str, **values: Any) -> str:
    """A page from one of the templates; every text among the values is escaped, and what HTML may
    not hold is spelt out.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(values).translate(_CONTROL)
