"""Rendering of HTML templates, every text escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def rendered(template: str, **values: Any) -> str:
    """A page from one of the templates; every text among the values is escaped."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(values)
