"""All metadata is in pyproject.toml; this file is what older tools and ``pip install -e`` in compat
mode ask for."""

from setuptools import setup

setup()
