"""Damage that FFmpeg hides: files that end early, and zeros where a download or a disk left a hole.

FFmpeg reads a file that was cut as a shorter one, and conceals what it cannot decode.
"""

import os
from typing import BinaryIO

from vlmft.errors import DataError

_BOXES = frozenset(b"ftyp moov mdat free skip wide moof mfra sidx ssix styp meta uuid udta emsg pdin prft pnot".split())
_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"


def refuse_cut_file(name: str, file: BinaryIO) -> None:
    """Compare the length that an MP4, Matroska or AVI container claims with the file's own.

    Other containers (MPEG-TS, FLV, ...) claim none. `file` is left anywhere.

    Raises:
        DataError: the file ends early.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[4:8] in _BOXES:
        end = _end_of_boxes(name, file, size)
    elif head[:4] == _EBML:
        end = _end_of_segment(file)
    elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
        end = _end_of_riff(file, size)
    elif head[:4] == b"GIF8":
        end = size if _last_byte(file) in b";\0" else size + 1
    else:
        return
    if end > size:
        raise DataError(
            f"{name} is cut off: it has {size} bytes and its header promises at least {end}; "
            "replace the file or remove its samples"
        )


def _end_of_boxes(name: str, file: BinaryIO, size: int) -> int:
    position, found = 0, set()
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:  # the true length follows in 8 bytes
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # up to the end of the file
            length = size - position
        if kind not in _BOXES or length < 8:
            break  # padding behind the last box; damage within is FFmpeg's to find
        found.add(kind)
        position += length
    if position == size and b"moov" not in found:
        raise DataError(
            f"{name} is cut off: it has no moov box, in which an MP4 lists its frames; "
            "replace the file or remove its samples"
        )
    return position


def _end_of_segment(file: BinaryIO) -> int:
    """Where Matroska's one Segment ends; 0 where it does not say (a live recording)."""
    file.seek(4)
    header = _vint(file)
    if header is None:
        return 0
    file.seek(file.tell() + header)
    if file.read(4) != _SEGMENT:
        return 0
    length = _vint(file)
    return 0 if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """An EBML length: as many bytes as its first byte has leading zero bits, and one; None where all ones: unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    raw = first + file.read(width - 1)
    mask = (1 << 7 * width) - 1
    value = int.from_bytes(raw, "big") & mask
    return None if value == mask else value


def _end_of_riff(file: BinaryIO, size: int) -> int:
    position = 0
    while position + 12 <= size:
        file.seek(position)
        head = file.read(12)
        if head[:4] != b"RIFF":
            break
        position += 8 + int.from_bytes(head[4:8], "little")
    return position


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


class NalUnits:
    """The pieces of an H.264 or H.265 packet as MP4 and Matroska hold them, each behind its length.

    An encoder never lets three zeros, or two and a 1 or 2, stand within a piece (they would look like a start code),
    so where they do the bytes are not the encoder's. FFmpeg takes them for the piece's end and conceals the rest.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        at = {"h264": 4, "hevc": 21}.get(codec)
        known = at is not None and extradata is not None and len(extradata) > at and extradata[0] == 1
        self._hevc = codec == "hevc"
        self._width = (extradata[at] & 3) + 1 if known and extradata and at else 0

    def split(self, packet: bytes) -> list[bytes] | None:
        """The pieces; None where the stream is not made of them.

        Raises:
            ValueError: the lengths do not add up to the packet's.
        """
        if not self._width:
            return None
        pieces, position = [], 0
        while position < len(packet):
            start = position + self._width
            position = start + int.from_bytes(packet[position:start], "big")
            if position > len(packet):
                raise ValueError("its parts claim more bytes than it has")
            pieces.append(packet[start:position])
        return pieces

    def check(self, packet: bytes) -> None:
        """Look for what no encoder writes. Raises `ValueError` where it is found."""
        for piece in self.split(packet) or ():
            body = piece.rstrip(b"\0")  # some multiplexers pad
            if any(code in body for code in (b"\0\0\0", b"\0\0\1", b"\0\0\2")):
                raise ValueError("zeros stand where its encoder wrote none")

    def is_random_access(self, packet: bytes) -> bool:
        """Whether all pictures from this one on decode without what comes before: its container says that of more."""
        try:
            pieces = self.split(packet)
        except ValueError:
            return False
        if pieces is None:
            return False
        if self._hevc:
            return any(16 <= piece[0] >> 1 & 63 <= 21 for piece in pieces if piece)
        return any(piece[0] & 31 == 5 for piece in pieces if piece)
