"""Ways to damage bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st


class Edit(NamedTuple):
    """One change of some bytes; `place` is a share of their length."""

    kind: str
    place: float
    new: bytes

    def __call__(self, content: bytes) -> bytes:
        at = int(self.place * len(content))
        match self.kind:
            case "cut":
                return content[:at]
            case "insert":
                return content[:at] + self.new + content[at:]
            case "delete":
                return content[:at] + content[at + len(self.new) :]
            case _:
                return content[:at] + self.new + content[at + len(self.new) :]


_NUMBERS = (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00\x01", b"\xff")

edits = st.lists(
    st.builds(
        Edit,
        st.sampled_from(("replace", "replace", "replace", "cut", "insert", "delete")),
        st.floats(0, 1, exclude_max=True) | st.floats(0, 0.05),
        st.sampled_from(_NUMBERS) | st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def damaged(content: bytes, changes: Sequence[Edit]) -> bytes:
    """The bytes after all the changes."""
    for change in changes:
        content = change(content)
    return content
