"""fastboot: installs operating systems over the network.

    config = fastboot.load(Path("lab.toml"))
    async with fastboot.Server(config, decide=mine) as server:
        async for event in server.events():
            ...

Names are imported when they are first used, so that `import fastboot.model` costs no more than that module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastboot._core import Source
    from fastboot.config import Config, load
    from fastboot.model import (
        IGNORE,
        BootRequest,
        Client,
        ConfigError,
        Event,
        FastbootError,
        Install,
        InstallState,
        Lease,
        Node,
        Option,
        Plan,
        Profile,
        Reason,
        Refusal,
        Scope,
        Settings,
        Stage,
        Verdict,
    )
    from fastboot.server import Server
    from fastboot.services.control_client import ControlClient, ControlError, NeedsRestart, NotRunning
    from fastboot.services.dhcp_decisions import Decide
    from fastboot.services.namespace import Resolve
    from fastboot.sockets import Sockets, open_sockets
    from fastboot.watch.diagnose import Diagnosis, Reached

__version__ = "0.1.0"
__all__ = [
    "IGNORE",
    "BootRequest",
    "Client",
    "Config",
    "ConfigError",
    "ControlClient",
    "ControlError",
    "Decide",
    "Diagnosis",
    "Event",
    "FastbootError",
    "Install",
    "InstallState",
    "Lease",
    "NeedsRestart",
    "Node",
    "NotRunning",
    "Option",
    "Plan",
    "Profile",
    "Reached",
    "Reason",
    "Refusal",
    "Resolve",
    "Scope",
    "Server",
    "Settings",
    "Sockets",
    "Source",
    "Stage",
    "Verdict",
    "__version__",
    "load",
    "open_sockets",
]
_HOMES = {
    "Source": "_core",
    "Config": "config",
    "load": "config",
    "Decide": "services.dhcp_decisions",
    "Server": "server",
    "Sockets": "sockets",
    "open_sockets": "sockets",
    "ControlClient": "services.control_client",
    "ControlError": "services.control_client",
    "NeedsRestart": "services.control_client",
    "NotRunning": "services.control_client",
    "Resolve": "services.namespace",
    "Diagnosis": "watch.diagnose",
    "Reached": "watch.diagnose",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'model')}"), name)
