"""Draws a heat map with axes and a colour bar into an indexed PNG; NumPy alone."""

import struct
import zlib
from collections.abc import Mapping

import numpy as np

WIDTH, HEIGHT = 548, 320
TOP, BOTTOM, LEFT, RIGHT = 34, 278, 80, 456  # of the plot; ends are exclusive
_BAR = (470, 484)  # columns of the colour bar
_SCALE = 2  # pixels per dot of the font
_ADVANCE, _CAPITAL = 6 * _SCALE, 7 * _SCALE  # from letter to letter; height of a digit
_TICK = 4

_WHITE, _INK, _DARK, _GRID, _ZERO = range(5)  # indices of the palette
_FIRST, _COLOURS = 16, 240  # of the ramp
# Viridis without its darkest quarter: brightness alone tells the order, in grey as well.
_RAMP = np.array(
    [
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ]
)

# Rows of five dots from the top of a digit down; the last two hang below the line.
_FONT = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00010 00100 01000 11111",
    "3": "11111 00010 00100 00010 00001 10001 01110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
    "-": "00000 00000 00000 11111 00000 00000 00000",
    ".": "00000 00000 00000 00000 00000 01100 01100",
    " ": "00000 00000 00000 00000 00000 00000 00000",
    "a": "00000 00000 01110 00001 01111 10001 01111",
    "c": "00000 00000 01110 10000 10000 10001 01110",
    "e": "00000 00000 01110 10001 11111 10000 01110",
    "g": "00000 00000 01111 10001 10001 10001 01111 00001 01110",
    "h": "10000 10000 10110 11001 10001 10001 10001",
    "i": "00100 00000 01100 00100 00100 00100 01110",
    "l": "01100 00100 00100 00100 00100 00100 01110",
    "n": "00000 00000 10110 11001 10001 10001 10001",
    "o": "00000 00000 01110 10001 10001 10001 01110",
    "p": "00000 00000 11110 10001 10001 10001 11110 10000 10000",
    "s": "00000 00000 01110 10000 01110 00001 11110",
    "t": "01000 01000 11100 01000 01000 01001 00110",
    "u": "00000 00000 10001 10001 10001 10011 01101",
    "v": "00000 00000 10001 10001 10001 01010 00100",
}
_GLYPHS = {
    letter: np.kron(
        [[dot == "1" for dot in row] for row in rows.split()], np.ones((_SCALE, _SCALE), bool)
    ).astype(bool)
    for letter, rows in _FONT.items()
}


def _palette() -> np.ndarray:
    """Red, green and blue of each index, (256, 3) of uint8."""
    colours = np.zeros((256, 3), np.uint8)
    colours[_WHITE] = 255
    colours[_INK] = 40
    colours[_DARK] = 16, 16, 28
    colours[_GRID] = 44, 44, 58
    colours[_ZERO] = 96, 96, 110
    places = np.linspace(0.0, len(_RAMP) - 1.0, _COLOURS)
    for channel in range(3):
        ramp = np.interp(places, np.arange(len(_RAMP)), _RAMP[:, channel])
        colours[_FIRST : _FIRST + _COLOURS, channel] = np.rint(ramp)
    return colours


PALETTE = _palette()


def heat_map(
    shares: np.ndarray,
    shown: np.ndarray,
    *,
    names: tuple[str, str, str],
    x_ticks: Mapping[str, float],
    y_ticks: Mapping[str, float],
    colour_ticks: Mapping[str, float],
) -> np.ndarray:
    """A picture of `shares`, with axes.

    Args:
        shares: Array (BOTTOM - TOP, columns), the top row first: places on the colour ramp, in
            [0, 1]; NaN: nothing is there.
        shown: Array (RIGHT - LEFT,) of ints: which column each pixel of the width shows.
        names: Of the x axis, of the y axis and of the colours.
        x_ticks: Place by label, in [0, 1] from left to right. Where labels would touch, the
            later one is left out, here and below.
        y_ticks: Place by label, in [0, 1] from the bottom up; "0" has a brighter line.
        colour_ticks: Place on the ramp by label, in [0, 1].

    Returns:
        Array (HEIGHT, WIDTH) of uint8, indices of `PALETTE`.
    """
    canvas = np.full((HEIGHT, WIDTH), _WHITE, np.uint8)
    plot = canvas[TOP:BOTTOM, LEFT:RIGHT]
    plot[:] = _DARK
    _y_axis(canvas, LEFT, y_ticks, grid=True)
    drawn = np.zeros(shares.shape, np.uint8)
    there = ~np.isnan(shares)
    drawn[there] = _ramp(shares[there])
    wide = drawn[:, shown]
    np.copyto(plot, wide, where=wide > 0)
    _x_axis(canvas, x_ticks)
    bar = canvas[TOP:BOTTOM, slice(*_BAR)]
    bar[:] = _ramp(np.linspace(1.0, 0.0, len(bar)))[:, None]
    _y_axis(canvas, _BAR[1], colour_ticks)
    x_name, y_name, colour_name = names
    _write(canvas, y_name, 6, 6)
    _write(canvas, x_name, (LEFT + RIGHT - _ADVANCE * len(x_name)) // 2, HEIGHT - 20)
    _write(canvas, colour_name, _BAR[0], 6)
    return canvas


def png(canvas: np.ndarray) -> bytes:
    """The PNG file of a canvas: 8 bits a pixel with a palette, quickly packed."""
    height, width = canvas.shape
    rows = np.zeros((height, width + 1), np.uint8)  # the first of a row says: not filtered
    rows[:, 1:] = canvas
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"PLTE", PALETTE.tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), level=1)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _ramp(shares: np.ndarray) -> np.ndarray:
    clipped = np.clip(shares, 0.0, 1.0)
    return (_FIRST + np.rint(clipped * (_COLOURS - 1.0))).astype(np.uint8)


def row_of(share: float) -> int:
    """The row of the canvas at a share of the plot's height, from the bottom up."""
    return BOTTOM - 1 - round(share * (BOTTOM - TOP - 1))


def column_of(share: float) -> int:
    """The column of the canvas at a share of the plot's width, from the left."""
    return LEFT + round(share * (RIGHT - LEFT - 1))


def _y_axis(canvas: np.ndarray, edge: int, ticks: Mapping[str, float], grid: bool = False) -> None:
    """Ticks to the left of the plot, with lines across it, or to the right of the bar."""
    taken: list[int] = []
    for label, share in ticks.items():
        row = row_of(share)
        if any(abs(row - other) < _CAPITAL + 2 * _SCALE for other in taken):
            continue
        taken.append(row)
        top = row - _CAPITAL // 2
        if grid:
            canvas[row, LEFT:RIGHT] = _ZERO if label == "0" else _GRID
            canvas[row, edge - _TICK : edge] = _INK
            _write(canvas, label, edge - _TICK - _ADVANCE * len(label), top)
        else:
            canvas[row, edge : edge + _TICK] = _INK
            _write(canvas, label, edge + _TICK + _SCALE, top)


def _x_axis(canvas: np.ndarray, ticks: Mapping[str, float]) -> None:
    free = 0
    for label, share in ticks.items():
        column = column_of(share)
        width = _ADVANCE * len(label) - _SCALE
        left = column - width // 2
        if left < free or left + width > WIDTH:
            continue
        free = left + width + _ADVANCE
        canvas[BOTTOM : BOTTOM + _TICK, column] = _INK
        _write(canvas, label, left, BOTTOM + _TICK + _SCALE)


def _write(canvas: np.ndarray, text: str, left: int, top: int) -> None:
    left = max(left, 0)
    for place, letter in enumerate(text):
        dots = _GLYPHS[letter]
        start = left + place * _ADVANCE
        canvas[top : top + dots.shape[0], start : start + dots.shape[1]][dots] = _INK
