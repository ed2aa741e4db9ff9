from __future__ import annotations

import subprocess
import sys

LOOK = """
import resource
from homeport.kernel.descriptors import raise_limit
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
print(raise_limit(300), raise_limit(200), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 280))
print(raise_limit(300))
"""


def test_a_process_allows_itself_what_it_needs_as_far_as_it_may() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout == "300 300 300\n280\n"
