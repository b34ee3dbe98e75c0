"""Packages of the wheel: jvr1's folders, and configs/ as jvr1.configs, for --config by name."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["jvr1*"]), "jvr1.configs"], package_dir={"jvr1.configs": "configs"})
