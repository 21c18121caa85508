"""``python -m lora_study``."""

import sys

from lora_study.cli import main

if __name__ == "__main__":
    sys.exit(main())
