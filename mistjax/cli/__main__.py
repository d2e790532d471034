"""`python -m mistjax.cli` is the `mistjax` command."""

import sys

from mistjax.cli import main

sys.exit(main())
