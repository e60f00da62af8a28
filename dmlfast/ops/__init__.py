"""Argument checks, operators, autograd and the choice of backend; one module a family."""
