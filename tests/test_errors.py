"""Messages of mistyped names."""

from __future__ import annotations

import pytest

from genie_cli.errors import UsageError, look_up, unknown_name


def test_name_that_is_known() -> None:
    assert look_up({"a": 1, "b": 2}, "letter", "b") == 2


@pytest.mark.parametrize(
    ("name", "told", "message"),
    [
        ("zero", None, "Unknown preset 'zero': genie, zeroq. Did you mean 'zeroq'?"),
        ("9", None, "Unknown preset '9': genie, zeroq."),
        ("zero", "; a list has them", "Unknown preset 'zero'; a list has them. Did you mean 'zeroq'?"),
        ("9", "", "Unknown preset '9'."),
    ],
)
def test_name_that_is_not(name: str, told: str | None, message: str) -> None:
    known = {"genie": 1, "zeroq": 2}
    assert str(unknown_name("preset", name, known, told)) == message
    with pytest.raises(UsageError) as caught:
        look_up(known, "preset", name, told)
    assert str(caught.value) == message
