from __future__ import annotations

from homeport.node.pieces import LINES_COST_MAX, PIECE_BYTES_MIN, pieces


def test_long_lines_come_in_large_pieces_and_short_ones_in_small() -> None:
    long, short = b"x" * 1_000_000, b"y\n" * 100_000
    found = list(pieces(long + short))
    assert b"".join(found) == long + short
    assert len(found[0]) > 500_000
    for piece in found:
        cost = piece.count(b"\n") * len(piece)
        assert cost <= LINES_COST_MAX or len(piece) <= PIECE_BYTES_MIN
    assert len(list(pieces(short))) >= len(short) // PIECE_BYTES_MIN
    assert list(pieces(b"")) == []
