"""Makes ``harness`` importable: the test folders are no packages, since verl installs one named ``tests``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
