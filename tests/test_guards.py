"""Guard statistics of pictures whose values are known from paper, and the baseline that raises the alarm."""

import math

import pytest
import torch

from rewards.guards import GuardBaseline, edge_density, guard_stats
from studio.errors import ShapeError

BLACK, WHITE = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)


def half(left: float = 0.0, right: float = 1.0) -> torch.Tensor:
    image = torch.full((1, 3, 32, 32), left)
    image[..., 16:] = right
    return image


@pytest.mark.parametrize(
    ("image", "name", "value"),
    [
        (BLACK, "luminance", 0.0),
        (BLACK, "dark_share", 1.0),
        (BLACK, "edge_density", 0.0),
        (BLACK, "color_entropy", 0.0),
        (WHITE, "luminance", 1.0),
        (WHITE, "dark_share", 0.0),
        (WHITE, "color_entropy", 0.0),
        (half(), "luminance", 0.5),
        (half(), "dark_share", 0.5),
        (half(), "color_entropy", 1.0),  # two equal bins are one bit
        # two of the 30 inner columns see the step: (1 + 2 + 1) / 8 · 1 = 1/2 each
        (half(), "edge_density", 2 * 0.5 / 30),
        (half(0.14, 0.16), "dark_share", 0.5),  # the border is 0.15
    ],
)
def test_by_hand(image, name, value):
    assert guard_stats(image)[name].tolist() == pytest.approx([value], abs=1e-6)


def test_colors_weigh_into_luminance_as_rec_601():
    colors = torch.eye(3)[:, :, None, None].expand(3, 3, 32, 32)
    assert guard_stats(colors)["luminance"].tolist() == pytest.approx([0.299, 0.587, 0.114])


def test_all_64_bins_alike_are_six_bits():
    level = (torch.arange(4) + 0.5) / 4
    bins = torch.cartesian_prod(level, level, level)  # [64, 3]
    image = bins.T.reshape(3, 8, 8).repeat(1, 4, 4)[None]
    assert guard_stats(image)["color_entropy"].item() == pytest.approx(6)


@pytest.mark.parametrize("turn", [False, True])
def test_edge_density_of_a_ramp_is_its_slope(turn):
    ramp = torch.arange(32.0).expand(1, 32, 32) / 100
    assert edge_density(ramp.mT if turn else ramp).item() == pytest.approx(0.01, abs=1e-6)


def test_jpeg_of_noise_is_larger_than_of_a_flat_picture():
    torch.manual_seed(0)
    flat, noise = guard_stats(torch.cat([BLACK, torch.rand(1, 3, 32, 32)]))["jpeg_kb"].tolist()
    assert 0 < flat < noise


def test_diversity_is_the_mean_distance_within_the_group():
    # group 0: black, black, white: distances 0 and 1 -> 1/2, 1/2, and 1 for the white one; group 5 has one picture
    images, group = torch.cat([BLACK, WHITE, BLACK, WHITE]), torch.tensor([0, 5, 0, 0])
    assert guard_stats(images, group)["diversity"].tolist() == pytest.approx([0.5, 0, 0.5, 1])


def test_a_small_diversity_is_not_lost_in_rounding():
    # 30 equal pictures, and 30 brighter by 0.0001: of the 59 others, 30 are that far away
    torch.manual_seed(0)
    image = 0.9 * torch.rand(1, 3, 32, 32)
    images = torch.cat([image, image + 1e-4]).repeat(30, 1, 1, 1)
    found = guard_stats(images, torch.zeros(60, dtype=torch.int64))["diversity"]
    assert found.tolist() == pytest.approx([1e-4 * 30 / 59] * 60, rel=1e-2)


def test_diversity_is_only_there_with_groups():
    assert "diversity" not in guard_stats(BLACK)


def test_shapes_and_types():
    for value in guard_stats(torch.rand(5, 3, 20, 24), torch.tensor([0, 0, 1, 1, 1])).values():
        assert value.shape == (5,) and value.dtype == torch.float32
    with pytest.raises(ShapeError, match=r"\[2, 4, 8, 8\]"):
        guard_stats(torch.rand(2, 4, 8, 8))


def test_baseline_by_hand():
    # mean 0.5, population std 0.1
    baseline = GuardBaseline.from_stats({"luminance": torch.tensor([0.4, 0.6])})
    assert baseline == GuardBaseline({"luminance": pytest.approx(0.5)}, {"luminance": pytest.approx(0.1)})
    assert baseline.violations({"luminance": torch.tensor([0.3, 0.3, 0.3])}) == {}  # 2 sigmas
    assert baseline.violations({"luminance": torch.tensor([0.0, 0.2])}) == {"luminance": pytest.approx(-4, abs=1e-4)}
    assert baseline.violations({"luminance": torch.tensor([0.3])}, sigmas=1) == {"luminance": pytest.approx(-2, abs=1e-4)}


def test_a_statistic_that_is_not_a_number_is_a_violation():
    baseline = GuardBaseline.from_stats({"luminance": torch.tensor([0.4, 0.6])})
    assert math.isnan(baseline.violations({"luminance": torch.tensor([math.nan])})["luminance"])


def test_pictures_that_turn_dark_are_noticed():
    torch.manual_seed(0)
    before = guard_stats(0.9 - 0.2 * torch.rand(64, 1, 1, 1) * torch.rand(64, 3, 32, 32))
    found = GuardBaseline.from_stats(before).violations(guard_stats(0.1 * torch.rand(64, 3, 32, 32)))
    assert found["luminance"] < -3 and found["dark_share"] > 3
