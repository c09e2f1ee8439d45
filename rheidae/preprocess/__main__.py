"""``python -m rheidae.preprocess``."""

from rheidae.preprocess.pipeline import main

raise SystemExit(main())
