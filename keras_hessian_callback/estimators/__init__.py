"""Estimators of a symmetric operator's norms from products with it, one algorithm a file."""
