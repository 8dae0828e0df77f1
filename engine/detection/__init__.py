"""A detector = backbone -> pyramid -> head. The Detection-Adapter and the downstream detectors share all but the backbone."""
