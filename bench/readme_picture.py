"""The README's picture: generated images with their boxes and scores, evenly over the encode ratios.

uv run python bench/readme_picture.py demo/generated docs/generated.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.data.images import load_image
from engine.report import contact_sheet, draw_boxes, gallery_from
from engine.report.pictures import label_colours

COUNT = 18  # of which half are spread over the encode ratios, and a sixth are the least sure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    items = [item for item in gallery_from(args.generated, None, COUNT) if item.reason in ("spread", "worst")]
    colours = label_colours(sorted({label for item in items for label in item.labels}))
    pictures = [
        draw_boxes(load_image(i.generated), i.boxes_xywh, i.labels, i.scores, colours=colours, short_edge=256)
        for i in items
    ]
    captions = [f"encode ratio {item.strength:.2f}" for item in items]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, columns=4, captions=captions).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
