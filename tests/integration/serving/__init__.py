"""Tests of one application on real Ray Serve: a package, at whose end pytest stops it."""
