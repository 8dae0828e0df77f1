"""`detector.options`: NAME=VALUE settings of the library that a detector comes from."""

from __future__ import annotations

from collections.abc import Iterable

import yaml

from engine.errors import ConfigError
from engine.sections import DetectorSettings


def options_of(settings: DetectorSettings, known: Iterable[str]) -> dict:
    """The options by name, values read as yaml.

    Raises:
        ConfigError: an option that is not NAME=VALUE, or whose name is not known.
    """
    known, given = sorted(known), {}
    for text in settings.options:
        name, found, value = text.partition("=")
        try:
            given[name.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"detector.options: the value of {text!r} is not readable: {error}") from None
        if not found or name.strip() not in known:
            raise ConfigError(
                f"detector.options: {settings.name} has no option {text!r}. Write NAME=VALUE with one of: "
                f"{', '.join(known) or 'none, it takes no options'}."
            )
    return given
