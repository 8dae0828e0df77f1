"""A detector = backbone -> pyramid -> head. The adapter and the downstream detectors share all but the backbone."""
