"""Variable-length integers, read as docs/formats.md describes them."""


def leb128(data: bytes) -> list[int]:
    """The numbers of some bytes."""
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value, shift = 0, 0
    return numbers
