"""One protocol per module: bytes in, decision asked, bytes out."""
