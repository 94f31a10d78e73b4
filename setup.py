"""The compiled parts; everything else is in pyproject.toml.

`build_tools` says what is compiled and how, and which environment variables steer it.
"""

import sys
from pathlib import Path

from setuptools import setup

# Build front ends do not put the project's folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_tools.command import NinjaBuildExt, extensions

setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuildExt})
