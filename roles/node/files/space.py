"""Prints how many MB apt needs to fetch and unpack packages, with all that they depend on. Arguments: the packages."""

import sys

import apt
import apt_pkg

apt_pkg.config.set("APT::Install-Recommends", "false")
cache = apt.Cache()
for name in sys.argv[1:]:
    if name in cache:  # else apt says so itself
        cache[name].mark_install()
print((cache.required_download + cache.required_space >> 20) + 1)  # noqa: T201
