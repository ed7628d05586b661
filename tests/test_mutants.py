"""Every mutant of the attack core is seen by the checks that are named for it, and the unmutated code passes them."""

import pytest

from .mutants import CHECKS, MUTANTS


@pytest.mark.parametrize("check", CHECKS)
def test_the_code_as_it_is_passes(check: str) -> None:
    CHECKS[check]()


@pytest.mark.parametrize(
    ("name", "check"), [(m.name, check) for m in MUTANTS.values() for check in m.seen_by], ids=lambda v: v
)
def test_a_mutant_is_seen(name: str, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name].put(monkeypatch)
    with pytest.raises(AssertionError):
        CHECKS[check]()


def test_every_mutant_and_every_check_is_used() -> None:
    assert len(MUTANTS) >= 30
    assert all(m.seen_by for m in MUTANTS.values())
    assert {check for m in MUTANTS.values() for check in m.seen_by} == set(CHECKS)
