"""fastboot: installs operating systems over the network."""

__version__ = "0.1.0"
