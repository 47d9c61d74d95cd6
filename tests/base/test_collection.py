"""The garbage collector during imports."""

import gc
from contextlib import suppress

from distrib.base.collection import no_collection


def test_the_collector_is_back_at_work_after_an_import_that_fails() -> None:
    still = []
    with suppress(ImportError), no_collection():
        still.append(not gc.isenabled())
        raise ImportError
    assert still == [True]
    assert gc.isenabled()


def test_a_collector_that_its_user_has_turned_off_stays_off() -> None:
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
