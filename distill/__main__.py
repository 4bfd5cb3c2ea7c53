"""`python -m distill` is `distill`."""

from distill.cli import main

raise SystemExit(main())
