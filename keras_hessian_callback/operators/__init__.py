"""The Hessian as a linear operator: products with vectors, never a matrix."""
