"""What the tests of repairs share: the same thing with and without one of them."""

import pytest

from rt_plugin.repairs import registry


def with_and_without(name, action):
    """Run `action` with all repairs; return what it raises without the repair `name`."""
    action()
    with registry.without(name), pytest.raises(Exception) as caught:
        action()
    action()
    return caught.value


def as_exception(action):
    """Run `action`; a failure of pytest.raises in it becomes an exception that `with_and_without` can return."""
    try:
        action()
    except pytest.fail.Exception as failure:  # is no Exception
        raise AssertionError(str(failure)) from None
