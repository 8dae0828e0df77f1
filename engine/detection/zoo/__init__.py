"""Detectors of other libraries, whole, behind the engine's one interface: see `engine.detection.build`."""
