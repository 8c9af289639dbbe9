"""Numbers of protobuf messages and of LevelDB tables, seven bits a byte.

https://protobuf.dev/programming-guides/encoding/ describes them.
"""


def read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Return the number of at most 64 bits that begins at `position`, and where it ends.

    Raises:
        ValueError: the data end before the number, or it is longer than ten bytes.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("it ends too early")
