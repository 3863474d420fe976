"""An event loop that does nothing but note how late it wakes: what the machine itself adds to any loop's lag."""

from __future__ import annotations

import asyncio
import sys

from infra import metrics
from workers.loop_lag import observe_lag

if __name__ == "__main__":
    metrics.expose("127.0.0.1", int(sys.argv[1]))
    asyncio.run(observe_lag(metrics.LOOP_LAG))
