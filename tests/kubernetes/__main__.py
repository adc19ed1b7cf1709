"""One play, inside the hub that tests/kubernetes/test_plays.py has made.

python -m tests.kubernetes PLAY DIRECTORY
"""

import asyncio
import sys
from pathlib import Path

from tests.kubernetes.plays import perform

if __name__ == "__main__":
    asyncio.run(perform(sys.argv[1], Path(sys.argv[2])))
