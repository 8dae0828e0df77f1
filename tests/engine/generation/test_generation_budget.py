"""How many images the budget of a night allows."""

from __future__ import annotations

import pytest

from engine.errors import ConfigError
from engine.generation.budget import GB, Measured, allowed_images, check_disk_left
from engine.generation.disk import ImageSize, free_bytes
from engine.sections import ScaleUpSettings

SMALL = Measured(2.0, ImageSize(jpeg_bytes=3000.0, boxes=1.0))


def budget(**changes) -> ScaleUpSettings:
    return ScaleUpSettings(**{"images_max": 500, "hours": 0.0, "disk_gb": 0.0, **changes})


def test_the_smallest_of_three_limits_holds(tmp_path):
    assert allowed_images(budget(), SMALL, 1, tmp_path).images == 500
    timed = allowed_images(budget(hours=0.1), SMALL, 1, tmp_path)
    assert (timed.images, timed.limited_by) == (180, "hours")
    assert allowed_images(budget(hours=0.1), SMALL, 2, tmp_path).images == 360
    huge = Measured(2.0, ImageSize(jpeg_bytes=free_bytes(tmp_path) / 50.5, boxes=0.0))
    assert allowed_images(budget(), huge, 1, tmp_path).limited_by == "disk_gb"
    assert allowed_images(budget(), huge, 1, tmp_path).images in (49, 50, 51)


def test_no_room_for_a_single_image_is_a_message(tmp_path):
    with pytest.raises(ConfigError, match=r"has .* free, and scale_up.disk_gb says to leave 1e\+06 TB"):
        allowed_images(budget(disk_gb=1e9), SMALL, 1, tmp_path / "not" / "there")
    with pytest.raises(ConfigError, match="scale_up.hours=0.0001 is too short for one image, which takes 2 s"):
        allowed_images(budget(hours=0.0001), SMALL, 1, tmp_path)
    with pytest.raises(ConfigError, match="scale_up.disk_gb"):
        check_disk_left(budget(disk_gb=1e9), tmp_path)
    check_disk_left(budget(disk_gb=0.5 * free_bytes(tmp_path) / GB), tmp_path)
