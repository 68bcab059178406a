"""The known answers of the Random123 distribution for Philox4x32-10."""

import numpy as np
import pytest
from warmfleet_worker.engine.philox import first_words, philox

ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> np.ndarray:
    return np.array([[int(word, 16)] for word in text.split()], dtype=np.uint64)


@pytest.mark.parametrize(("counter", "key", "answer"), ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    assert np.array_equal(philox(words(counter), words(key)), words(answer))


def test_numbers_belong_to_seed_position_and_choice() -> None:
    seed = 0x299F31D0_A4093822
    alone = first_words([(seed, 7, 3)])[0]
    together = first_words(
        [(seed, 7, 2), (seed, 7, 3), (seed, 8, 3), (seed + (1 << 32), 7, 3), (2**64 - 1, 0, 0)]
    )
    assert together[1] == alone
    assert len(set(together)) == 5
    assert alone == philox(words("7 3 0 0"), words("a4093822 299f31d0"))[0, 0]
    assert first_words([(0, 0, 0)])[0] == 0x6627E8D5
