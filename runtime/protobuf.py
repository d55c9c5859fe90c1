"""Protocol buffers' wire format, as far as a writer needs it.

A message is its fields one after the other, each a key (number and wire type) and a value: a
varint, eight bytes, or a length and so many bytes. Source: Protocol Buffers, Encoding.

>>> varint_field(1, 150).hex()
'089601'
>>> text_field(2, "testing").hex()
'120774657374696e67'
>>> fixed_field(3, 1).hex()
'190100000000000000'
"""

import struct

_VARINT, _FIXED, _BYTES = 0, 1, 2


def varint(number: int) -> bytes:
    """An unsigned integer, seven bits a byte, the lowest first; raises ValueError below 0.

    >>> varint(300).hex()
    'ac02'
    """
    if number < 0:
        raise ValueError(f"{number}: a varint is unsigned here")
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def varint_field(field: int, number: int) -> bytes:
    """A field of an integer, enum or boolean."""
    return varint(field << 3 | _VARINT) + varint(number)


def fixed_field(field: int, number: int) -> bytes:
    """A field of type fixed64."""
    return varint(field << 3 | _FIXED) + struct.pack("<Q", number)


def double_field(field: int, number: float) -> bytes:
    """A field of type double."""
    return varint(field << 3 | _FIXED) + struct.pack("<d", number)


def bytes_field(field: int, content: bytes) -> bytes:
    """A field of bytes, or of a message already encoded."""
    return varint(field << 3 | _BYTES) + varint(len(content)) + content


def text_field(field: int, text: str) -> bytes:
    """A field of type string."""
    return bytes_field(field, text.encode())
