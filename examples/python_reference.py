"""Write the Python language reference that every CPython carries (`pydoc_data.topics`) as one text file.

python examples/python_reference.py examples/text/python-reference.txt
"""

from __future__ import annotations

import sys
from pathlib import Path
from pydoc_data.topics import topics


def main() -> None:
    """One topic after the other, by name."""
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n", encoding="utf-8")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(f"{out}: {len(topics)} topics of the Python {version} language reference")


if __name__ == "__main__":
    main()
