"""The folders that the tests of tasks.review use too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tasks"))

from review_world import folders  # noqa: E402, F401
