"""Time the OLoRA initialisation of one linear layer: full QR, as PEFT does it, against thin QR and one product.

    python olora_init.py [--size 4096] [--rank 32] [--repeats 3] [--threads 2]

Both give B = Q[:, :r] and A = R[:r] and subtract the product from the weight. The thin way needs the first r columns
of Q only, which depend on the first r columns of the weight only: A = Qᵀ W. The two results are compared.
Prints a table and, as the last line, one JSON object.
"""

import argparse
import time

import torch

from common import peak_rss_bytes, print_json, spread, table, versions

SCALE = 1.0


def full(weight, rank):
    """The arithmetic of PEFT's LoraLayer.olora_init."""
    q, r = torch.linalg.qr(weight)
    b, a = q[:, :rank].contiguous(), r[:rank].contiguous()
    return a, b, weight - SCALE * b @ a


def thin(weight, rank):
    b, _ = torch.linalg.qr(weight[:, :rank])
    a = b.T @ weight
    return a, b, weight - SCALE * b @ a


def timed(initialise, weight, rank, repeats):
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = initialise(weight, rank)
        seconds.append(time.perf_counter() - start)
    return seconds, result


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main():
    given = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    weight = 0.02 * torch.randn(given.size, given.size)
    thin(weight, given.rank)  # warm-up
    thin_seconds, few = timed(thin, weight, given.rank, given.repeats)
    full_seconds, all_ = timed(full, weight, given.rank, given.repeats)
    difference = max((x - y).abs().max().item() for x, y in zip(few, all_))
    assert difference < 1e-4, f"thin and full disagree by {difference}"
    rows = [(name, spread(s)) for name, s in [("full QR (PEFT)", full_seconds), ("thin QR", thin_seconds)]]
    table(["way", "median s", "min s", "max s"], [[name, s["median"], s["min"], s["max"]] for name, s in rows])
    print_json(
        {
            "benchmark": "olora_init",
            "size": given.size,
            "rank": given.rank,
            "threads": given.threads,
            "repeats": given.repeats,
            "full_seconds": rows[0][1],
            "thin_seconds": rows[1][1],
            "speedup": rows[0][1]["median"] / rows[1][1]["median"],
            "max_abs_difference": difference,
            "peak_rss_bytes": peak_rss_bytes(),
            "versions": versions(),
        }
    )


if __name__ == "__main__":
    main()
