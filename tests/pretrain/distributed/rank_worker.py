"""One rank of a run that does nothing but exchange numbers with the others; its argument tells what else it does.

In step 3 it does what ``ranks`` has for it; ``last`` are seconds it takes after its last step, ``margin`` those of the
watchdog's last resort.
"""

import json
import os
import sys
import time
from typing import Any

from pretrain.config import WatchdogSection
from pretrain.distributed import Ranks, StoppedEarly, StopRequest, Watchdog, join, leave, report_failure
from pretrain.distributed import watchdog as watching
from pretrain.errors import DONE, FAILED, STOPPED


def run(what: dict[str, Any], stop: StopRequest) -> int:
    section = WatchdogSection(**what.get("watchdog", {}))
    watching._MARGIN_SECONDS = what.get("margin", watching._MARGIN_SECONDS)
    with Watchdog(section) as watchdog:
        ranks = join(section, stop)
        code = take_steps(what, ranks, stop, watchdog)
    time.sleep(what.get("last", {}).get(str(ranks.rank), 0))
    return code


def take_steps(what: dict[str, Any], ranks: Ranks, stop: StopRequest, watchdog: Watchdog) -> int:
    for step in range(1, what["steps"] + 1):
        watchdog.enter(f"step {step}: reading data", "step")
        if step == 3:
            misbehave(what.get("ranks", {}).get(str(ranks.rank), {}))
        watchdog.enter(f"step {step}: meeting the other ranks", "step")
        if ranks.sum(bool(stop)) != [0]:
            return STOPPED
        print(f"step {step}", flush=True)
        time.sleep(0.05)
    return DONE


def misbehave(how: dict[str, Any]) -> None:
    if "raise" in how:
        raise ValueError(how["raise"])
    time.sleep(how.get("sleep", 0))
    if "hold the lock" in how:
        sum(range(10**13))


if __name__ == "__main__":
    request = StopRequest()
    print(f"rank {os.environ.get('RANK', 0)} started", flush=True)
    try:
        code, message = run(json.loads(sys.argv[1]), request), ""
    except StoppedEarly as error:
        print(error, flush=True)
        code, message = STOPPED, ""
    except BaseException as error:
        code, message = FAILED, report_failure(error)
    leave(code, message)
