"""Scores of detections, intervals of differences, and the results file."""
