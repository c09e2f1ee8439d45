"""Analytic schemes: from moments before the instability to moments after it."""
