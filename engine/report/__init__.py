"""The report: one page with every figure, plot and picture inside."""

from __future__ import annotations

from engine.report.gallery import GalleryItem, gallery_from
from engine.report.page import write_report
from engine.report.pictures import contact_sheet, draw_boxes

__all__ = ["GalleryItem", "contact_sheet", "draw_boxes", "gallery_from", "write_report"]
