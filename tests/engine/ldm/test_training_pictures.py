from __future__ import annotations

from engine.config import load_settings
from engine.data.pixels import Frame
from engine.data.world_folder import write_world
from engine.ldm.training_pictures import read_training_pictures


def test_pictures_without_labels_are_learned_with_the_words_of_their_domain(tmp_path):
    write_world(tmp_path, 3, 1, 1, unlabelled=2)
    settings = load_settings(None, ["generation.unlabelled=true", "generation.prompt=template"])

    def prompts(style: str | None) -> list[str]:
        pictures = read_training_pictures(tmp_path, Frame(64, 16), settings, style)
        return [picture.prompt for bucket in pictures.values() for picture in bucket]

    plain = prompts(None)
    assert len(plain) == 5 and plain[3:] == ["A photo"] * 2
    assert prompts("sketch") == [*plain[:3], *["A photo, sketch"] * 2]
