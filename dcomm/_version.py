"""The package's version, as the compiled core reports it."""

from dcomm import _core

__version__: str = _core.__version__
