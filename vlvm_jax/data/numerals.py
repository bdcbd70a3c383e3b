"""Numbers in English words."""

_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def in_words(number: int) -> str:
    """An English numeral below a million, as the package num2words writes it."""
    if number < 20:
        return _TO_NINETEEN.split()[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS.split()[tens - 2] + (f"-{in_words(ones)}" if ones else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    count, rest = divmod(number, unit)
    if not rest:
        return f"{in_words(count)} {name}"
    return f"{in_words(count)} {name}{' and' if rest < 100 else ','} {in_words(rest)}"
