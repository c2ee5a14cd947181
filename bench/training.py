"""Training before and after: windows a second of two versions on one network, in turns, and what a step is made of.

    python bench/training.py STORE [--before COMMIT] [--preset head-128] [--rounds 3] [--out docs/results/training.json]

The version before is checked out of git into a temporary folder. Each round runs both, one after the other, as a user
would: `slicewise train STORE --preset NAME` with all processors, for a few dozen steps; start-up and first steps are
left out. Then, in this process and one thread: seconds of processor time to make a batch and to take a step of the
version at hand. Nothing else may run meanwhile. Prints Markdown.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS = 60
# What each version calls "nothing but steps".
QUIET = {
    "before": ["--save-every", "0", "--validate-every", "0", "--residual-windows", "0"],
    "after": ["--validations", "0"],
}


def rate(tree: Path, which: str, store: Path, preset: str, folder: Path) -> float:
    """Windows a second between the first logged step and the last."""
    out = folder / f"{which}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "slicewise", "train", str(store), "--out", str(out), "--preset", preset]
    command += ["--steps", str(STEPS), *QUIET[which]]
    env = {**os.environ, "PYTHONPATH": str(tree / "src")}
    env.pop("OMP_NUM_THREADS", None)
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "images_per_s" in row]
    if which == "after":
        return median(row["images_per_s"] for row in rows[1:])
    # There the log holds the mean rate since the start; steps count for windows, the batch being the same.
    passed = [row["step"] / row["images_per_s"] for row in rows]
    return float((rows[-1]["step"] - rows[0]["step"]) / (passed[-1] - passed[0]))


def step_parts(store: Path, preset: str, steps: int = 12) -> dict[str, Any]:
    """Processor seconds, in one thread, of a batch and of a whole step."""
    import torch

    from slicewise.data.store import open_store
    from slicewise.runtime import ALONE
    from slicewise.settings import fill
    from slicewise.settings import preset as read_preset
    from slicewise.training.denoiser import DenoiserTrainer
    from slicewise.training.settings import DenoiserTraining

    torch.set_num_threads(1)
    settings = fill(DenoiserTraining(device="cpu"), read_preset("train", preset), preset)
    with tempfile.TemporaryDirectory() as folder:
        trainer = DenoiserTrainer(open_store(store), Path(folder), settings, None, ALONE)
    trainer.step(0)
    times = []
    for work in (trainer.batches.make, trainer.step):
        begun = time.process_time()
        for step in range(1, steps + 1):
            work(step)
        times.append((time.process_time() - begun) / steps)
    flops, moved = counted(lambda: trainer.step(steps + 1))
    return {"batch_s": times[0], "step_s": times[1], "batch": settings.batch, "flops": flops, "bytes": moved}


def counted(run: Callable[[], Any]) -> tuple[int, int]:
    """FLOP (two for a multiply-add) of products and convolutions, and bytes that all operators read and write, each
    operator on its own: what a program moves that fuses nothing."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    class Bytes(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if not function.is_view:
                tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
                self.total += sum(x.numel() * x.element_size() for x in tensors)
            return result

    with FlopCounterMode(display=False) as flop, Bytes() as moved:
        run()
    return int(flop.get_total_flops()), moved.total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="prepared store of the preset's size")
    parser.add_argument("--before", default="", help="commit to compare with; none measures this version alone")
    parser.add_argument("--preset", default="head-128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    a = parser.parse_args()
    found: dict[str, Any] = {"preset": a.preset, "before": [], "after": [], "commit": a.before}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trees = {"after": ROOT}
        if a.before:
            old = folder / "tree"
            subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(old), a.before], check=True)
            trees = {"before": old, **trees}
        try:
            for _ in range(a.rounds):
                for which, tree in trees.items():
                    found[which].append(rate(tree, which, a.store.resolve(), a.preset, folder))
        finally:
            if a.before:
                subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(trees["before"])])
    found |= step_parts(a.store, a.preset)
    if a.out:
        a.out.write_text(json.dumps(found, indent=1) + "\n")
    print("| version | windows/s, every round | median |")
    print("| --- | --- | ---: |")
    for which in trees:
        print(f"| {which} | {', '.join(f'{r:.1f}' for r in found[which])} | {median(found[which]):.1f} |")
    if a.before:
        ratios = [after / before for before, after in zip(found["before"], found["after"])]
        print(f"\nRatio: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} over rounds).")
    share = found["batch_s"] / found["step_s"]
    per = found["batch"]
    print(
        f"\nA window takes {found['flops'] / per / 1e9:.2f} GFLOP and, unfused, {found['bytes'] / per / 1e9:.2f} GB of "
        f"memory traffic; a GPU of 800 TFLOP/s and 3 TB/s is bound to {800e12 / (found['flops'] / per):,.0f} windows/s "
        f"by the first and {3e12 / (found['bytes'] / per):,.0f} by the second."
    )
    took = f"{found['step_s']:.2f} s of one processor"
    print(f"\nA step of {found['batch']} windows takes {took}, its batch {share:.1%} of that.")


if __name__ == "__main__":
    main()
