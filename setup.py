"""Finds the sub-packages of `quintain`; everything else about the project is in pyproject.toml.

The repository's top-level folders are the rooms of one import package: `envs/` is `quintain.envs`.
setuptools' own discovery cannot prefix what it finds, and a list written by hand goes stale in silence, so
the list is computed here. Invariant: a folder with an `__init__.py` below a room is a package of the wheel
(tests/packaging/test_wheel.py builds one and compares).
"""

from __future__ import annotations

from setuptools import find_packages, setup

ROOMS = {
    "quintain": "quintain",
    "quintain.envs": "envs",
    "quintain.rollout": "rollout",
    "quintain.trainers": "trainers",
    "quintain.verifiers": "verifiers",
}

setup(
    package_dir=ROOMS,
    packages=[
        package
        for room, folder in ROOMS.items()
        for package in (room, *(f"{room}.{found}" for found in find_packages(folder)))
    ],
)
