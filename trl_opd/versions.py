"""The libraries whose versions matter: held to what the package was made for before the first of them is imported."""

from importlib import metadata

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from trl_opd.errors import UserError

#: Package -> versions that work; the same as in pyproject.toml, which a test holds.
RANGES = {"trl": ">=1.16,<1.18", "transformers": ">=5.10"}


def check_versions() -> None:
    """Refuses a TRL or a transformers that the package was not made for, without importing it.

    Raises:
        `UserError`: With the version that is installed and how to install one that works.
    """
    for package, wanted in RANGES.items():
        remedy = f"install one that works with: pip install '{package}{wanted}'"
        try:
            found = Version(metadata.version(package))
        except metadata.PackageNotFoundError as error:
            raise UserError(f"{package} is not installed, and trl_opd needs it; {remedy}.") from error
        if not SpecifierSet(wanted).contains(found, prereleases=True):
            raise UserError(f"{package} {found} is installed, but trl_opd needs {package}{wanted}; {remedy}.")
