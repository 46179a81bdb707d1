"""Numbers, shares and intervals as a person reads them."""

import pytest

from bayes_sched.format import chance, chances, number, percent, span, sureness


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12.345, "12.3"),
        (0.00123456, "0.00123"),
        (9.996, "10.0"),
        (123456.0, "123,000"),
        (-2.5, "-2.50"),
        (1.5e-7, "1.50 × 10⁻⁷"),
        (2e9, "2.00 × 10⁹"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares_are_percentages_and_intervals_have_two_ends() -> None:
    assert percent(0.9) == "90%"
    assert percent(0.9132, 1) == "91.3%"
    assert span(1.0, 2.5) == "1.00 to 2.50"


@pytest.mark.parametrize(
    ("share", "risk", "confidence"),
    [
        (0.5, "50.0%", "50.0%"),
        (0.00042, "0.04%", "under 0.1%"),
        (1e-7, "under 0.0001%", "under 0.1%"),
        (0.99999, "over 99.9%", "over 99.9%"),
        (None, "–", "–"),
    ],
)
def test_rare_shares_keep_the_digits_that_matter(share: float | None, risk: str, confidence: str) -> None:
    assert chance(share) == risk
    assert sureness(share) == confidence


def test_ends_that_read_the_same_are_one() -> None:
    assert chances(0.1, 0.2) == "10.0% to 20.0%"
    assert chances(0.99991, 0.99999) == "over 99.9%"
