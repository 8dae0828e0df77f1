"""The templates beside this file, by one set of rules for every page."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def open_templates(autoescape: bool = True) -> Environment:
    """Where a page's template is taken from. A value that a template names and is not given is an error.

    Args:
        autoescape: what comes from people is escaped for HTML; False for a template that is none.
    """
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
