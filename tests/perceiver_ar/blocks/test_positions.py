import math

import torch

from perceiver_ar.blocks.positions import (
    RotaryAngles,
    fourier_features,
    grid_positions,
    restart_positions,
    rotary_frequencies,
    rotate,
    token_positions,
)


def angles_at(positions, channels=8):
    return RotaryAngles.at(positions, rotary_frequencies(channels, 10_000.0))


def test_rotation_is_complex_multiplication_of_channel_pairs():
    x = torch.randn(2, 3, 5, 10, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 7, 100, 4095]])
    rotated = rotate(x, angles_at(positions))
    as_complex = torch.complex(x[..., :4], x[..., 4:8])
    turn = torch.exp(1j * positions[0, :, None] * rotary_frequencies(8, 10_000.0).double())
    expected = as_complex * turn
    torch.testing.assert_close(rotated, torch.cat((expected.real, expected.imag, x[..., 8:]), -1), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        rotated[..., :2, :], torch.cat((expected.real, expected.imag, x[..., 8:]), -1)[..., :2, :]
    )


def test_scores_depend_on_relative_positions_only():
    q, k = torch.randn(2, 1, 1, 6, 8)
    positions = torch.arange(6)[None]
    scores = [
        rotate(q, angles_at(positions + shift)) @ rotate(k, angles_at(positions + shift)).mT for shift in (0, 1000)
    ]
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)


def test_rotation_gradient():
    x = torch.randn(1, 2, 4, 8, dtype=torch.float64, requires_grad=True)
    angles = RotaryAngles(*(t.double() for t in angles_at(torch.arange(4)[None])))
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles), (x,))


def test_endpoint_spreads_frequencies_up_to_the_base():
    frequencies = rotary_frequencies(8, 24.0, endpoint=True)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 24 ** (-1 / 3), 24 ** (-2 / 3), 1 / 24]))


def test_padding_does_not_advance_positions():
    valid = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    assert token_positions(valid).tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]]


def test_positions_restart_at_every_document():
    segments = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 2, 2, 2, 2]])
    assert restart_positions(torch.arange(6)[None], segments).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]


def test_padding_does_not_advance_positions_within_documents():
    valid = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 0, 1, 1]], dtype=torch.bool)
    for segments in ([0, 0, 0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 2, 2, 2, 3]):
        starts = [segments.index(number) for number in segments]
        counted = [int(valid[0, start:i].sum()) for i, start in enumerate(starts)]
        assert restart_positions(token_positions(valid), torch.tensor([segments])).tolist() == [counted]


def test_grid_positions_are_row_major_from_minus_one_to_one():
    assert grid_positions((2, 3)).tolist() == [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    assert grid_positions((5,)).flatten().tolist() == [-1, -0.5, 0, 0.5, 1]
    assert grid_positions((1, 2)).tolist() == [[-1, -1], [-1, 1]]


def test_fourier_features_are_positions_then_sines_then_cosines_up_to_nyquist():
    grid = grid_positions((37, 50))
    features = fourier_features(grid, 64, (368, 496))
    assert features.shape == (37 * 50, 258) and features.dtype == torch.float32
    row, column = grid[1234].double().tolist()
    angles = [math.pi * x * (1 + i / 63 * (n / 2 - 1)) for x, n in ((row, 368), (column, 496)) for i in range(64)]
    expected = torch.tensor([row, column, *map(math.sin, angles), *map(math.cos, angles)])
    torch.testing.assert_close(features[1234], expected, rtol=0, atol=1e-4)
    assert (fourier_features(grid.unflatten(0, (37, 50)), 64, (368, 496)).flatten(0, 1) == features).all()


def test_fourier_features_of_a_low_precision_model_have_exact_angles():
    positions = torch.tensor([[-0.5, 0.25]])
    exact = fourier_features(positions, 8, (224, 224))
    assert (fourier_features(positions.bfloat16(), 8, (224, 224)) == exact).all()
