"""Deadline: what remains is shared and never negative."""

from anabranch.shared.runtime.deadline import Deadline


def test_remaining_is_what_is_left_and_never_negative() -> None:
    assert 4 < Deadline.after(5).remaining() <= 5
    assert Deadline.after(-1).remaining() == 0
    assert (Deadline.after(5).passed, Deadline.after(-1).passed) == (False, True)
