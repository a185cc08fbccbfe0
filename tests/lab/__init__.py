"""Nine blank Debian hosts on one machine; see lab.py."""
