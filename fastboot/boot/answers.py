"""Answer files: what an installer asks a person, written before it asks. Templates of the administrator, rendered
for one machine at a time."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any, Final

from jinja2 import BaseLoader, Environment, TemplateError, TemplateNotFound, TemplateSyntaxError, meta

from fastboot.boot.profile_templates import ProfileTemplates
from fastboot.boot.sandbox import Sandbox
from fastboot.boot.tree import Directory, refusal_of
from fastboot.model import AnswerFormat, ConfigError, Profile

MAX_TEMPLATE: Final = 256 * 1024
"""Octets of a template."""
MAX_BESIDE: Final = 256
"""Files beside a template of which one is included by a name that only its rendering tells."""


@dataclass(frozen=True, slots=True)
class Format:
    """A language of answer files.

    `file` is the name in a machine's directory; `told` what the installer is told, with {answers} for the URL of
    that directory. `schemes`: how it can fetch it. `beside` are files that it wants besides, by their names.
    """

    file: str
    told: str
    schemes: tuple[str, ...] = ("http", "ftp")
    beside: tuple[str, ...] = ()


FORMATS: Final[Mapping[AnswerFormat, Format]] = {
    "kickstart": Format("ks.cfg", "inst.ks={answers}/ks.cfg"),
    "preseed": Format("preseed.cfg", "auto=true priority=critical url={answers}/preseed.cfg"),
    # cloud-init joins names to the URL as it is, and takes http and https only (NoCloud, 22.3). Where there is no
    # meta-data it ignores the rest.
    "autoinstall": Format(
        "user-data",
        "autoinstall ds=nocloud-net;s={answers}/",
        ("http",),
        ("meta-data", "vendor-data"),
    ),
    "autoyast": Format("autoinst.xml", "autoyast={answers}/autoinst.xml"),
}
_IN_TEMPLATE: Final = "__jinja_exception__"
SAMPLE: Final = "TOKEN"
"""What stands for the secret part of a machine's directory where there is none, and in all that people read."""
CALLBACKS: Final = ("done", "failed")
"""What an installer calls at its end, in the same directory."""


class Beside(BaseLoader):
    """The files of one directory as they were when they were read. Nothing outside it is a template."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError."""
        self.path = directory
        self.texts: dict[str, str] = {}
        self._tree = Directory(directory)
        self._faults: dict[str, str] = {}

    def close(self) -> None:
        """Read nothing more."""
        self._tree.close()

    def read(self, name: str) -> str | None:
        """Read a file; None where that can not be, which is told to who wants it."""
        if "/" in name:
            self._faults[name] = "only files of the same directory are included"
            return None
        try:
            source = self._tree.open(name)
            if source.size > MAX_TEMPLATE:
                self._faults[name] = f"is larger than {MAX_TEMPLATE >> 10} KiB"
                return None
            self.texts[name] = source.read().decode()
        except UnicodeDecodeError as error:
            self._faults[name] = f"is not text in UTF-8: {error.reason} at octet {error.start}"
        except (OSError, UnicodeEncodeError) as error:
            self._faults[name] = refusal_of(error).text
        return self.texts.get(name)

    def names(self) -> list[str]:
        """Return the files that there are, the first of very many."""
        with suppress(OSError):
            return [entry.name for entry in self._tree.scan(".") if not entry.is_dir][:MAX_BESIDE]
        return []

    def fault(self, name: str) -> str:
        return self._faults.get(name, "was not there when the configuration was read")

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        if (text := self.texts.get(template)) is None:
            raise TemplateNotFound(template, f"{template}: {self.fault(template)}")
        return text, str(self.path / template), lambda: True


class Answers:
    """The answer files of profiles. Templates, and what they include, are read when it is made."""

    def __init__(self, profiles: Sequence[Profile]) -> None:
        """Raises ConfigError where a template can not be read or is none."""
        self._templates = ProfileTemplates("answers", _told)
        self.texts: dict[str, Mapping[str, str]] = {}
        """What was read for each profile, by the names of files."""
        for profile in profiles:
            if profile.answers is not None:
                self._read(profile.name, profile.answers)

    def render(self, profile: str, context: Mapping[str, Any]) -> str:
        """Return the answer file of a profile. Raises RenderError."""
        return self._templates.render(profile, context)

    def _read(self, profile: str, path: Path) -> None:
        key = f"profiles {profile}: answers"
        try:
            beside = Beside(path.parent)
        except OSError as error:
            raise ConfigError(f"{key}: {path.parent}: {error.strerror}") from error
        sandbox = Sandbox(beside, {"quote": shlex.quote})
        try:
            if beside.read(path.name) is None:
                raise ConfigError(f"{key}: {path}: {beside.fault(path.name)}")
            _read_included(sandbox, beside, path.name)
            self._templates.add(profile, sandbox, sandbox.get_template(path.name))
            self.texts[profile] = beside.texts
        except TemplateError as error:
            raise ConfigError(f"{key}: {_told(error)}") from error
        finally:
            beside.close()


def _read_included(sandbox: Sandbox, beside: Beside, first: str) -> None:
    """Read and compile what a template includes, and what that does. Raises TemplateError."""
    known, todo = set[str](), [first]
    while todo:
        name = todo.pop()
        if name in known:
            continue
        known.add(name)
        if name not in beside.texts and beside.read(name) is None:
            continue  # it may not be wanted in the end; if it is, the rendering fails
        tree = sandbox.parse(beside.texts[name], name, str(beside.path / name))
        for other in meta.find_referenced_templates(tree):
            if other is not None:
                todo.append(other)
                continue
            # Which one is known when it is rendered, and then the disk is not asked.
            for each in set(beside.names()) - set(beside.texts):
                beside.read(each)
                with suppress(TemplateError):
                    sandbox.get_template(each)
        sandbox.get_template(name)


def _told(error: Exception) -> str:
    """Say what is wrong and in which line of which template."""
    text = str(error) or type(error).__name__
    if isinstance(error, TemplateSyntaxError):
        return f"{error.name} line {error.lineno}: {error.message}"
    # Jinja puts the lines of templates into the traceback.
    frames = [(frame, line) for frame, line in walk_tb(error.__traceback__) if _IN_TEMPLATE in frame.f_globals]
    if not frames:
        return text
    frame, line = frames[-1]
    return f"{Path(frame.f_code.co_filename).name} line {line}: {text}"
