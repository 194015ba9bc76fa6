"""The templates of profiles: rendered for one machine at a time, and none twice that went on for too long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Template

from fastboot.boot.languages import RenderError
from fastboot.boot.sandbox import OverrunError, Sandbox


class ProfileTemplates:
    """One template of each profile, that of a key."""

    def __init__(self, key: str, told: Callable[[Exception], str]) -> None:
        """`told` says in words what is wrong with a template that fails."""
        self._key, self._told = key, told
        self._templates: dict[str, tuple[Sandbox, Template]] = {}
        # A storm of machines is not to run again, one by one, what costs `MAX_SECONDS` each time.
        self._overran: dict[str, RenderError] = {}

    def add(self, profile: str, sandbox: Sandbox, template: Template) -> None:
        """Take the template of a profile, and the sandbox that it is of."""
        self._templates[profile] = sandbox, template

    def render(self, profile: str, context: Mapping[str, Any]) -> str:
        """Return the text for one machine. Raises RenderError."""
        if profile in self._overran:
            raise self._overran[profile]
        sandbox, template = self._templates[profile]
        try:
            return sandbox.run(template, context)
        except Exception as error:  # a template may fail in any way its expressions can
            fault = RenderError(f"profile {profile}: {self._key}: {self._told(error)}")
            if isinstance(error, OverrunError | RecursionError | MemoryError):
                self._overran[profile] = fault
            raise fault from error
