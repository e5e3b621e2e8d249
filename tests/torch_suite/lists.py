"""What dcomm's backend need not pass, with the reason and the error it fails with; and tests that run no operation."""

from __future__ import annotations

NOT_APPLICABLE: dict[str, tuple[str, str]] = {}

SILENT: dict[str, str] = {}
