"""Time greedy generation of one sequence with llama.cpp: a peer of the `generate` suite of olora-benchmarks.

    python llama_cpp.py --model FILE.gguf [--prompt 128] [--new-tokens 64] [--threads 2]

By the package llama-cpp-python, at the level of llama.cpp's own calls: one batch for the prompt, one for each token,
which is taken as the most likely. A first generation is not counted. Prints a table and, as the last line, one JSON
object. The package's library may be another build of llama.cpp: `LLAMA_CPP_LIB_PATH` names it.
"""

import argparse
import os
import platform
import random
import sys
import time

# Not this file, but the package of its name.
sys.path = [path for path in sys.path if os.path.abspath(path or ".") != os.path.dirname(os.path.abspath(__file__))]
import llama_cpp

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from common import peak_rss_bytes, print_json, table


def timed(model, prompt, new_tokens):
    """Seconds until the first token, and for all."""
    model.reset()
    start = time.perf_counter()
    model.eval(prompt)
    token = model.sample(temp=0.0)
    first = time.perf_counter() - start
    for _ in range(new_tokens - 1):
        model.eval([token])
        token = model.sample(temp=0.0)
    return first, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    model = llama_cpp.Llama(
        given.model,
        n_ctx=given.prompt + given.new_tokens + 8,
        n_batch=max(given.prompt, 32),
        n_ubatch=max(given.prompt, 32),
        n_threads=given.threads,
        n_threads_batch=given.threads,
        verbose=False,
    )
    numbers = random.Random(3)
    prompt = [numbers.randrange(model.n_vocab()) for _ in range(given.prompt)]
    timed(model, prompt, min(given.new_tokens, 4))
    first, whole = timed(model, prompt, given.new_tokens)
    result = {
        "prompt_tokens_per_second": given.prompt / first,
        "tokens_per_second": (given.new_tokens - 1) / (whole - first),
    }
    table(["what", "tokens/s"], [["prompt", result["prompt_tokens_per_second"]], ["generated", result["tokens_per_second"]]])
    print_json(
        {"benchmark": "generate", "prompt": given.prompt, "new_tokens": given.new_tokens, "threads": given.threads}
        | result
        | {
            "peak_rss_bytes": peak_rss_bytes(),
            "versions": {"python": platform.python_version(), "llama-cpp-python": llama_cpp.__version__},
            "system": llama_cpp.llama_print_system_info().decode(),
        }
    )


if __name__ == "__main__":
    main()
