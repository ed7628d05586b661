"""From records to files that people read: the run directory with its tables and its one self-contained page."""

from unfooled.report.files import write
from unfooled.report.hardened import write as write_hardened

__all__ = ["write", "write_hardened"]
