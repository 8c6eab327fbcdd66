"""``python -m lightning_gradwatch``, for where the command ``gradwatch`` is not on the path."""

import sys

from lightning_gradwatch.cli.main import main

sys.exit(main())
