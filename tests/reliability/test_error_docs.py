"""Every exception of dcomm's has its section in docs/errors.md, and every text that users see points to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_threads import thread_outcomes

import dcomm

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
# As GitHub makes them of headings of one word.
ANCHORS = {heading.lower() for heading in re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)}
CLASSES = [cls for cls in vars(dcomm).values() if isinstance(cls, type) and issubclass(cls, dcomm.DcommError)]


def test_every_class_has_its_section_and_every_text_its_link() -> None:
    assert len(CLASSES) == 10
    for cls in CLASSES:
        assert cls.__name__.lower() in ANCHORS
        assert str(cls("text")) == f"text (see docs/errors.md#{cls.__name__.lower()})"
        assert str(cls(str(cls("text")))) == str(cls("text"))  # once, also where one text becomes another's


def test_a_subclass_has_the_link_of_its_base() -> None:
    class Special(dcomm.PeerLostError):
        pass

    assert str(Special("text")) == "text (see docs/errors.md#peerlosterror)"


def test_errors_of_the_core_have_it() -> None:
    def body(comm: dcomm.Communicator) -> Any:
        comm.all_reduce(np.ones(4 + comm.rank))

    for error in thread_outcomes(2, body):
        assert isinstance(error, dcomm.MismatchError)
        assert str(error).endswith(" (see docs/errors.md#mismatcherror)")
    comm = dcomm.init_threads(1)[0]
    comm.close()
    with pytest.raises(dcomm.AbortedError, match=r" \(see docs/errors.md#abortederror\)$"):
        comm.barrier()


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for anchor in re.findall(r"errors\.md#([\w-]+)", page.read_text(encoding="utf-8")):
            assert anchor in ANCHORS, f"{page.name}: errors.md#{anchor}"
