"""A foreign process that is as busy as it is told: each line on standard input, "0.8", is a share of a core."""

import select
import sys
import time

import torch

PERIOD_S = 0.02


def main() -> None:
    torch.set_num_threads(1)
    a = torch.randn(256, 256)
    share = 0.0
    print("ready", flush=True)
    while True:
        began = time.perf_counter()
        while time.perf_counter() - began < share * PERIOD_S:
            a @ a
        rest_s = max(0.0, began + PERIOD_S - time.perf_counter()) if share else None
        if select.select([sys.stdin], [], [], rest_s)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            share = float(line)


if __name__ == "__main__":
    main()
