"""What `slicewise pull` takes in memory and time from PACS peers that mean harm (tests/hostile.py), with a time-out of
5 s, no retries and images of 64 MB at most, as a table.

    python bench/hostile_peers.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import hostile


def main() -> None:
    """Print the table."""
    print("| peer | sends | s | MB | ends with |\n| --- | --- | --- | --- | --- |")
    for kind, attacks in (("DICOMweb", hostile.WEB), ("DIMSE", hostile.DIMSE)):
        for what, attack in attacks.items():
            with attack() as url:
                seconds, mb, line = hostile.measured(url, timeout_s=5, max_image_mb=64)
            print(f"| {kind} | {what} | {seconds:.1f} | {mb:.0f} | {line} |", flush=True)


if __name__ == "__main__":
    main()
