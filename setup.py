"""Builds the package; the metadata stands in pyproject.toml.

`tasks/` and `criterions/` lie at the top level of the repository and become subpackages of `rt_plugin`.
"""

from setuptools import setup

setup(
    packages=["rt_plugin", "rt_plugin.tasks", "rt_plugin.criterions"],
    package_dir={"rt_plugin.tasks": "tasks", "rt_plugin.criterions": "criterions"},
)
