"""Texts cut and joined as a model reads them."""

import pytest

from rt_plugin.text.encode import cut_lengths


@pytest.mark.parametrize(
    ("lengths", "room", "expected"),
    [
        ([3], 5, [3]),
        ([9], 5, [5]),
        ([2, 3], 5, [2, 3]),
        ([2, 9], 6, [2, 4]),
        ([9, 2], 6, [4, 2]),
        ([9, 9], 7, [3, 4]),
        ([4, 9], 7, [3, 4]),
        ([0, 9], 4, [0, 4]),
    ],
)
def test_longest_text_is_cut_first(lengths, room, expected):
    assert cut_lengths(lengths, room) == expected
