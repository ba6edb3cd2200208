import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.format.sizes import MAX_OBJECT, MIN_OBJECT, is_object_size, padded_size


@given(st.integers(0, MAX_OBJECT))
def test_the_padded_size_is_the_least_object_that_holds_it(size: int) -> None:
    padded = padded_size(size)
    assert padded >= size and is_object_size(padded)
    assert padded == MIN_OBJECT or padded // 2 < size


@pytest.mark.parametrize("size", [-1, MAX_OBJECT + 1])
def test_what_no_object_holds(size: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        padded_size(size)


def test_object_sizes() -> None:
    sizes = [size for size in range(-10, 100_000) if is_object_size(size)]
    assert sizes == [4096, 8192, 16384, 32768, 65536]
    assert is_object_size(MAX_OBJECT) and not is_object_size(MAX_OBJECT * 2)
