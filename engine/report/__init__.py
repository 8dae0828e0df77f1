"""The report: one page with every figure, plot and picture inside."""

from __future__ import annotations

from engine.report.failures import changed_images
from engine.report.gallery import GalleryItem, gallery_from
from engine.report.page import write_report
from engine.report.pictures import contact_sheet, draw_boxes
from engine.report.recipe import compare_command

__all__ = [
    "GalleryItem", "changed_images", "compare_command", "contact_sheet", "draw_boxes", "gallery_from", "write_report",
]  # fmt: skip
